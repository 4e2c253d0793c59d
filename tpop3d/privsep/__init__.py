"""Both sides of the wall: a gatekeeper speaks with clients before login, a monitor decides."""
