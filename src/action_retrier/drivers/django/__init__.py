"""Django: its database connections as handles, and its databases by alias."""

import django

from .handle import find_handle

__all__ = ["find_handle", "set_up"]


def set_up() -> None:
    """Load Django's settings and models, as its own commands do; once is enough. Raises whatever they raise."""
    django.setup()
