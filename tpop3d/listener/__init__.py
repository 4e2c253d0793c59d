"""The listener: one process, root's and long-lived, that accepts all connections and reads none."""
