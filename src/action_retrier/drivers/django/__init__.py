"""Django: its database connections as handles, and its databases by alias."""

from .handle import find_handle

__all__ = ["find_handle"]
