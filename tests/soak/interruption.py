"""Ctrl-C and SIGTERM: the first has a soak come to its end early, the second ends it at once."""

import os
import signal
import time
from types import FrameType

EXIT_CODE = 130
_ONE_S = 1.0
"""What comes so soon after the first is the same: make hands on the SIGTERM that its group gets as well."""
_SAID = b"\nstopping: nothing more is injected or started, and the oracle is asked. Once more ends it at once.\n"


class Interruption:
    """Whether somebody wants a soak to stop."""

    def __init__(self) -> None:
        self.at = 0.0

    def is_wanted(self) -> bool:
        """Tell whether to come to an end."""
        return self.at > 0

    def heed(self) -> None:
        """Take the signals from now on, but for those that whoever started us has had ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._come)

    def _come(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.at:
            self.at = now
            os.write(2, _SAID)  # what writes to sys.stdout may be what was interrupted
        elif now - self.at > _ONE_S:
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, lambda *_: os._exit(EXIT_CODE))
            raise KeyboardInterrupt
