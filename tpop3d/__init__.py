"""tpop3d: a POP3 server for BSD mailspools and vmail-sql domains."""

DEFAULT_FILE = "/etc/tpop3d.conf"  # the configuration, unless -f names another
__version__ = "2.0.0.dev0"
