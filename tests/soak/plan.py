"""What a soak injects, in which order: made from a seed, and from nothing else."""

import random
from dataclasses import dataclass, field

WORKERS = 4
THROUGH_PROXIES = 2
"""On PostgreSQL so many of the workers, the first, reach the server through a proxy of their own."""
CLIENTS = 2
OWNERS = 10
"""Threads of the clients that start runs in transactions of their own."""
ROUND_S = 60
LOST_ANSWERS = 10
"""How many answers to COMMIT get lost in a row."""
LONGEST_FIRST_WRITES = 60
"""At which write, after this many at most, a worker is killed."""

ROUNDS = {
    "sqlite": {
        "kill": 11,
        "kill at a write": 2,
        "stop": 2,
        "terminate": 1,
        "kill a client": 1,
        "disk full": 1,
        "I/O error": 2,
        "write lock": 1,
        "old runs": 1,
    },
    "postgres": {
        "kill": 12,
        "stop": 2,
        "terminate": 1,
        "kill a client": 1,
        "crash": 4,
        "restart": 1,
        "stop at once": 1,
        "outage": 1,
        "end sessions": 1,
        "read only": 1,
        "lose answers": 6,
        "lose commits": 1,
        "partition": 1,
        "delay": 1,
        "cut": 2,
        "half open": 1,
        "refuse": 1,
        "old runs": 1,
    },
    "pgbouncer": {"kill": 12, "stop": 3, "terminate": 1, "kill a client": 1, "old runs": 1},
}
"""How often what is injected in a minute."""
LAST = {
    "sqlite": {"kill": 3, "stop": 1},
    "pgbouncer": {"kill": 3, "stop": 1},
    "postgres": {"kill": 3, "stop": 1, "crash": 1, "partition": 1, "outage": 1},
}
"""The same of the end, in which leases are as long as they are by default."""


@dataclass(frozen=True, slots=True)
class Fault:
    """
    Something that goes wrong.

    Attributes:
        kind: What.
        victim: The number of a worker, a client or a proxy.
        amount: Of whatever there may be more or less of.
    """

    kind: str
    victim: int = 0
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """
    A soak.

    Attributes:
        faults: What is injected, by the instant at which it is due, in seconds from the start.
        long_leases_from_s: When workers are replaced by such with leases of the default length, if at all.
        ends_s: When nothing more is started.
    """

    faults: list[tuple[float, Fault]] = field(default_factory=list)
    long_leases_from_s: float | None = None
    ends_s: float = 0


def plan(database: str, seed: int, duration_s: float) -> Plan:
    """Make a plan."""
    rng = random.Random(f"{database} {seed}")
    rounds = max(1, round(duration_s / ROUND_S))
    each_s = duration_s / rounds
    last = 1 if rounds > 10 else 0
    faults = []
    for number in range(rounds):
        share = LAST[database] if number >= rounds - last else ROUNDS[database]
        # A shorter round has as much of everything, faster.
        kinds = [kind for kind, count in share.items() for _ in range(count)]
        rng.shuffle(kinds)
        for place, kind in enumerate(kinds):
            faults.append((each_s * (number + place / len(kinds)), _fault(rng, database, kind)))
    return Plan(faults, each_s * (rounds - last) if last else None, duration_s)


def _fault(rng: random.Random, database: str, kind: str) -> Fault:
    worker, client, proxied = rng.randrange(WORKERS), rng.randrange(CLIENTS), rng.randrange(THROUGH_PROXIES)
    amount = rng.randint(1, LONGEST_FIRST_WRITES)
    match kind:
        case "kill a client":
            return Fault(kind, client)
        case "lose answers" | "lose commits":
            return Fault(kind, rng.randrange(THROUGH_PROXIES + 1), LOST_ANSWERS)
        case "partition" | "delay" | "cut" | "half open" | "refuse":
            return Fault(kind, proxied)
        case "kill at a write" | "I/O error":
            return Fault(kind, worker, amount)
        case "kill" | "stop" | "terminate" | "disk full":
            return Fault(kind, worker)
    return Fault(kind)
