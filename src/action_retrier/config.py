"""The environment and the logger: read here and nowhere else."""

import logging
import os
import sys

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


def configure_logging(*, always_show: bool = False) -> None:
    """
    Set the level of the logger ``action_retrier`` from ``$ACTION_RETRIER_LOG_LEVEL``.

    Args:
        always_show: Add a handler on stderr even if the variable is not set (the command line).
            A handler is only ever added where none is configured.
    """
    value = os.environ.get(LOG_LEVEL_VARIABLE) or None  # empty is as good as not set
    name = (value or "INFO").strip().upper()
    level = _LEVELS.get(name)
    if value is not None or logger.level == logging.NOTSET:
        logger.setLevel(_LEVELS["INFO"] if level is None else level)
    if (value is not None or always_show) and not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        # One that is configured later, as by the module that the App is imported from, shows the same records.
        handler.addFilter(lambda _: [*logger.handlers, *logging.root.handlers] == [handler])
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    if level is None:
        logger.warning("%s=%r is none of %s: using INFO", LOG_LEVEL_VARIABLE, value, ", ".join(_LEVELS))
