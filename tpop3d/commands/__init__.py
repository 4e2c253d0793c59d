"""Commands that a person gives: each prints what it finds, and serves no client."""
