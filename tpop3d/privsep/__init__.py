"""Both sides of the wall: a gatekeeper speaks with strangers, a monitor decides."""
