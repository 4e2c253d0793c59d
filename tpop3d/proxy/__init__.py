"""Who the client is, where a balancer has made the connection for it."""
