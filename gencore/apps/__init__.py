"""Programs built on the library: the demonstration behind ``gencore demo``."""
