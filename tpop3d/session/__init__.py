"""One connection, whatever door it came through."""
