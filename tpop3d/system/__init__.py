"""What the operating system gives: the log, processes and signals, privileges, files."""
