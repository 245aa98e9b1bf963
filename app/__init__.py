"""Background work in Python: arq workers on Redis."""

__version__ = "0.1.0"
