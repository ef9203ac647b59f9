"""YuE v1, lyrics to song."""

__version__ = "0.1.0"
