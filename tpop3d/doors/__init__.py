"""The ways in which a connection reaches us."""
