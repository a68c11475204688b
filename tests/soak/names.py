"""What faults, promises and counts are called, wherever a soak tells of them."""

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
PROMISES = {
    "lost": "runs lost (I1)",
    "callback": "callbacks missing, or run twice (I4)",
    "zombie": "reports of superseded attempts that were accepted (I2)",
    "canceled": "canceled runs that changed (I5)",
    "executions": "executions beyond what is allowed, or unaccounted for (I8)",
    "early": "attempts that began before they were due (I7)",
    "removed": "runs removed that retention keeps (I9)",
    "told": "histories of status, cancel and retry that no order explains",
    "final": "ends that changed (I3)",
    "rolled back": "runs of transactions that were rolled back (I6)",
    "taken": "executions taken from a worker that nothing had been done to (I1)",
    "illegal": "other illegal states (I1, I2)",
    "damage": "damage to the database",
    "left": "workers left behind",
}
WORK = {
    "executions": "executions",
    "lost_executions": "executions lost with their worker",
    "refused_reports": "of these, had returned, then or later, which counts for nothing",
    "most_losses_of_a_run": "most such losses of one run that kills nobody",
    "late_beginnings": "executions that began after their heirs, and counted for nothing",
    "callbacks": "callbacks whose writes were committed",
    "retries": "runs started afresh by retry",
    "calls": "calls of clients",
    "unanswered_calls": "calls that got no answer",
    "judged_runs": "runs whose status, cancel and retry were judged",
    "judged_calls": "calls judged",
    "writers": "who writes the file: workers, clients, and connections of clients",
    "reader_s": "seconds that somebody read for",
    "wal_while_read_mib": "largest WAL meanwhile, MiB",
    "wal_otherwise_mib": "largest WAL before and after, MiB",
    "wal_small_again_after_s": "it was small again after, s",
}
"""What is counted, and what that is for people."""
RECOVERY_IS = (
    "How soon work went on. Recovery lasts from the fault until the execution begins that replaces the one it cut off. That"
    " includes the lease where only its end tells a death, the backoff of about 0.1 s at most that these runs have, and"
    " whatever else is broken at that time."
)


def key(words: str) -> str:
    """Return what programs call it: in snake case."""
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def long(seconds: float) -> str:
    """Return how long something takes, for people."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
