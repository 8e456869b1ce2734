"""One file an op. A new file that holds a ``CASE`` is found by itself."""
