"""The language of the configuration file: it knows no directive of this server."""


class Unanswered(ValueError):
    """Nobody could tell now whether there is a user or a group of that name; the text says why."""
