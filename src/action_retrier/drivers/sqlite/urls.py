"""What a SQLite URL says."""

import contextlib
import stat
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from .. import mask_password

_SYNCHRONOUS = ("full", "normal", "extra")


def parse(url: str, rest: str) -> tuple[Path, str]:
    """Return the absolute path and the synchronous mode that a URL names."""
    url = mask_password(url)
    name, _, query = rest.partition("?")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ValueError(f"database {url!r}: what follows the question mark must be synchronous=...") from None
    synchronous = options.pop("synchronous", "full").lower()
    if options:
        raise ValueError(f"database {url!r}: unknown option {min(options)!r}; the one there is is synchronous")
    if synchronous not in _SYNCHRONOUS:
        raise ValueError(f"database {url!r}: synchronous must be one of {', '.join(_SYNCHRONOUS)}, not {synchronous!r}")
    name = unquote(name)
    if not name.startswith("/"):
        raise ValueError(
            f"database {url!r}: use three slashes for a relative file (sqlite:///file.db), four for an absolute one"
        )
    name = name[1:]
    if name in {"", ":memory:"} or name.endswith("/") or "\0" in name:
        raise ValueError(
            f"database {url!r} names no file: runs have to survive the process, so use sqlite:///file.db "
            "(a temporary file in tests)"
        )
    path = Path(name).absolute()
    with contextlib.suppress(OSError):  # whoever opens it is told what is wrong with it
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"database {url!r}: {path} is not a file")
    return path.resolve(), synchronous
