"""The command line. Everything that talks to a terminal is here, and nothing that the library needs."""

from .commands import main

__all__ = ["main"]
