"""SQLAlchemy 2: users' sessions and connections as handles, and users' engines as databases."""

from .handle import find_handle

__all__ = ["find_handle"]
