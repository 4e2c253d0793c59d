"""The language of the configuration file."""
