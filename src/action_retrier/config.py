"""The environment and the logger: read here and nowhere else."""

import logging
import os
import sys
from typing import TextIO

logger = logging.getLogger("action_retrier")

DATABASE_URL_VARIABLE = "ACTION_RETRIER_DATABASE_URL"
LOG_LEVEL_VARIABLE = "ACTION_RETRIER_LOG_LEVEL"
DJANGO_SETTINGS_VARIABLE = "DJANGO_SETTINGS_MODULE"
DEFAULT_DATABASE_URL = "sqlite:///action_retrier.db"

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


def database_url() -> str:
    """Return ``$ACTION_RETRIER_DATABASE_URL``, else a SQLite file in the working directory."""
    return os.environ.get(DATABASE_URL_VARIABLE) or DEFAULT_DATABASE_URL


def set_database_url(url: str) -> None:
    """Make *url* what `database_url` returns from now on, here and in the processes started from here."""
    os.environ[DATABASE_URL_VARIABLE] = url


def django_settings() -> str | None:
    """Return the module of Django's settings that ``$DJANGO_SETTINGS_MODULE`` names, if it does."""
    return os.environ.get(DJANGO_SETTINGS_VARIABLE) or None


class _OwnHandler(logging.StreamHandler[TextIO]):
    """
    Writes to stderr what nobody else shows: each line once, and never none.

    Others may be configured later, as by the module that the App is imported from. One of the logger's
    own shows its lines where its user wants them. One of the root logger may only pass them on, to a
    queue or to telemetry: it counts if it writes to where we do.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if it is left to us."""
        if any(one is not self and not isinstance(one, logging.NullHandler) for one in logger.handlers):
            return
        if logger.propagate and any(
            record.levelno >= one.level and _is_on_terminal(one) for one in logging.root.handlers
        ):
            return
        self.stream = sys.stderr  # as it is now: a test runner may have replaced it
        super().emit(record)


def _is_on_terminal(handler: logging.Handler) -> bool:
    """Tell whether a handler, perhaps rich's, writes to where this process's stdout or stderr leads."""
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    if stream is None:
        return False
    if stream is sys.stdout or stream is sys.stderr:
        return True
    try:
        there = os.fstat(stream.fileno())
        return any(os.path.samestat(there, os.fstat(ours)) for ours in (1, 2))
    except (AttributeError, OSError, TypeError, ValueError):  # it is in memory, or closed
        return False


def configure_logging(*, always_show: bool = False) -> None:
    """
    Set the level of the logger ``action_retrier`` from ``$ACTION_RETRIER_LOG_LEVEL``.

    Args:
        always_show: Add a handler on stderr even if the variable is not set (the command line).
            It keeps silent where another one shows the same. Without this one is only ever added
            where none is configured.
    """
    value = os.environ.get(LOG_LEVEL_VARIABLE) or None  # empty is as good as not set
    name = (value or "INFO").strip().upper()
    level = _LEVELS.get(name)
    if value is not None or logger.level == logging.NOTSET:
        logger.setLevel(_LEVELS["INFO"] if level is None else level)
    is_ours_there = any(isinstance(one, _OwnHandler) for one in logger.handlers)
    if not is_ours_there and (always_show or (value is not None and not logger.hasHandlers())):
        logger.addHandler(_OwnHandler())
    if level is None:
        logger.warning("%s=%r is none of %s: using INFO", LOG_LEVEL_VARIABLE, value, ", ".join(_LEVELS))
