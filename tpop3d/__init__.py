"""tpop3d: a POP3 server for BSD mailspools and vmail-sql domains."""

__version__ = "2.0.0.dev0"
