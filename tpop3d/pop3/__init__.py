"""The POP3 protocol without any I/O: command lines in, replies out."""
