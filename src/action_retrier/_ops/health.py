"""Read what tells whether a namespace is well."""

from dataclasses import dataclass

from .._statements import Op, Rows, Statement


@dataclass(frozen=True, slots=True)
class Health:
    """
    What the doctor judges.

    Attributes:
        workers: Their rows, the dead ones that nobody has noticed yet among them.
        lanes: What is due, a row a kind of work; *overdue* counts those that have been for long.
        owned: How many runs and callbacks each worker owns, whether or not it has a row.
        callbacks: The pending ones, a row a name.
    """

    workers: Rows
    lanes: Rows
    overdue: Rows
    owned: Rows
    callbacks: Rows


def read_health(namespace: str, patience_us: int) -> Op[Health]:
    """Read it. A run that has been due for *patience_us* counts as overdue."""
    whose: dict[str, object] = {"namespace": namespace}
    workers = yield Statement("select_workers", whose)
    lanes = yield Statement("select_lanes", whose)
    overdue = yield Statement("count_overdue", whose | {"patience": patience_us})
    owned = yield Statement("count_owned", whose)
    callbacks = yield Statement("count_callbacks", whose)
    return Health(workers, lanes, overdue, owned, callbacks)
