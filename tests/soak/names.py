"""What faults are called, wherever a soak tells of them."""

import re

NAMES = {
    "kill": "SIGKILL of a worker",
    "kill at a write": "SIGKILL of a worker, at a write",
    "stop": "SIGSTOP of a worker, past its lease",
    "terminate": "SIGTERM of a worker",
    "kill a client": "SIGKILL of a client",
    "disk full": "disk full (ENOSPC) for a worker",
    "I/O error": "I/O error (EIO) for a worker",
    "write lock": "write lock held by somebody else",
    "old runs": "completed runs made older than retention keeps",
    "crash": "crash of the server (SIGKILL of a backend)",
    "restart": "restart of the server, fast",
    "stop at once": "restart of the server, immediate",
    "outage": "outage of the server, longer than every lease",
    "end sessions": "all sessions ended (pg_terminate_backend)",
    "read only": "period in which the server is read-only",
    "lose answers": "answers to COMMIT dropped",
    "lose commits": "COMMITs dropped",
    "partition": "partition, longer than the lease",
    "delay": "slow network",
    "cut": "connections cut",
    "half open": "connections half-opened",
    "refuse": "connections refused for a while",
    "own death": "worker killed by a run or a callback",
    "start in vain": "process that found no database when it began",
}
"""By the kind that the plan, and the code, has."""
UNPLANNED = ("own death", "start in vain")
"""They follow from what is injected, and from what runs do."""
CAME_OF_IT = {
    "kill at a write": "died at that write",
    "disk full": "system calls failed",
    "I/O error": "system calls failed",
    "old runs": "runs",
    "lose answers": "answers",
    "lose commits": "COMMITs",
}
"""What is counted beside the fault itself."""


def key(words: str) -> str:
    """Return what programs call it: in snake case."""
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def long(seconds: float) -> str:
    """Return how long something takes, for people."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
