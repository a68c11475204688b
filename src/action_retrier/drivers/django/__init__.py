"""Django: its database connections as handles, and its databases by alias."""

import django
from django.apps import apps

from .handle import find_handle

__all__ = ["find_handle", "is_set_up", "set_up"]


def set_up() -> None:
    """Load Django's settings and models, as its own commands do; once is enough. Raises whatever they raise."""
    django.setup()


def is_set_up() -> bool:
    """Tell whether somebody has."""
    return bool(apps.ready)
