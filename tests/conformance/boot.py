"""The time that leases are judged by, as a test wants it."""

HEARTBEAT_US = 3_000_000


class Boot:
    """Time since the machine started."""

    def __init__(self) -> None:
        self.now_us = 1_000_000_000

    def __call__(self) -> int:
        return self.now_us
