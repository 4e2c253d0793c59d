"""The language of the configuration file: it knows no directive of this server."""
