"""PostgreSQL, by psycopg 3: as many machines as wanted, one primary."""

from .database import PostgresDatabase

__all__ = ["PostgresDatabase"]
