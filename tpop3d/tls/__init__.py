"""TLS: relays, locked in, that speak it, and the keyholder, who alone has the keys."""
