"""The runs of a soak: what their actions and callbacks do, most of them quickly, some of them all that can go wrong."""

import random
from typing import Any

from crash_program import Later, call

from action_retrier import Call

INNOCENT = 20
"""How often a run may fail that is to succeed in the end, however many workers die with it."""
POISONED = 2
"""How often one may fail that kills its process: it is executed once more than that, and takes a worker along each time."""

_QUICK: dict[str, Any] = {"max_failures": INNOCENT}

# Each is (weight, script, callback, callback's script, options).
_KINDS: list[tuple[float, tuple[str, ...], str | None, list[str], dict[str, Any]]] = [
    (400, ("return",), None, ["return"], _QUICK),
    (250, ("return",), "record_shared", ["return"], _QUICK),
    (60, ("return",), "record", ["return"], _QUICK),
    (40, ("return",), "record_async", ["return"], _QUICK),
    (70, ("take 0.02",), "record_shared", ["return"], _QUICK),
    (30, ("take 0.3",), "record_shared", ["return"], _QUICK),
    (50, ("raise", "return"), None, ["return"], _QUICK),
    (20, ("raise", "raise", "return"), "record", ["return"], _QUICK),
    (20, ("raise",), "record_shared", ["return"], {"max_failures": 2}),  # fails
    (15, ("hold", "return"), "record_shared", ["return"], {"attempt_timeout_ms": 100, **_QUICK}),
    (10, ("hold",), "record", ["return"], {"deadline_ms": 400}),  # fails
    (15, ("return",), "record", ["raise", "return"], _QUICK),
    (10, ("raise", "return"), "record_async", ["raise", "raise", "return"], _QUICK),
]
_DEADLY: list[tuple[float, tuple[str, ...], str | None, list[str], dict[str, Any]]] = [
    *(
        (1, (death,), "record", ["return"], {"max_failures": POISONED})
        for death in ("kill", "exit", "abort", "segfault")
    ),
    (1, ("return",), "record", ["kill", "return"], _QUICK),
]
_DEADLY_SHARE = 1 / 4000
_SLOW = [("take 0.5",), ("raise", "take 0.2"), ("raise", "raise", "raise", "return"), ("raise",), ("return",)]


_LATER_SHARE = 0.2
_LATER_MS = 800
_DEADLINE_SHARE = 0.3
_DEADLINES_MS = 150, 1500
"""So short that some of the watched runs meet theirs, and so long that others do not."""


def some_call(rng: random.Random, tag: str) -> Call:
    """Make up one of the many."""
    kinds = _DEADLY if rng.random() < _DEADLY_SHARE else _KINDS
    (kind,) = rng.choices(kinds, [kind[0] for kind in kinds])
    _, script, callback, context, options = kind
    action = rng.choice(["work"] * 9 + ["work_sync"])
    return tagged(call(*script, action=action, on_complete=callback, context=context, **options), tag)


def watched_call(rng: random.Random, tag: str, key: str | None) -> Call:
    """Make up one that takes long enough to be canceled, or that may be started afresh; some are due later."""
    script = rng.choice(_SLOW)
    options: dict[str, Any] = {"max_failures": 1 if script == ("raise",) else INNOCENT, "idempotency_key": key}
    if rng.random() < _DEADLINE_SHARE:
        options["deadline_ms"] = rng.randint(*_DEADLINES_MS)
    callback = rng.choice([None, "record", "record_shared"])
    one = tagged(call(*script, on_complete=callback, initial_backoff_ms=100, **options), tag)
    if rng.random() < _LATER_SHARE:
        return Later(one, rng.uniform(0, _LATER_MS), as_instant=rng.random() < 0.5)
    return one


def tagged(one: Call, tag: str) -> Call:
    """Have a call say with which others it is made."""
    return Call(
        one.action, {**(one.args or {}), "tag": tag}, on_complete=one.on_complete, context=one.context, **one.options
    )
