"""SQLite: one file, one machine, as many processes as wanted."""

from .database import SqliteDatabase

__all__ = ["SqliteDatabase"]
