"""
What will go wrong, decided before it does: the same seed, the same mishaps.

Shop, receiver and verdict each make the plan for themselves from the seed, so nothing has to be
passed between them and the verdict knows what should have become of every event.
"""

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, TypeAlias

Event: TypeAlias = dict[str, Any]

CLIENT_TIMEOUT_MS = 1_000
"""How long a delivery waits for the receiver."""

STALL_MS = 1_600
"""How long the receiver sits on a request that it means to stall: longer than anybody waits."""

RETRY_AFTER_S = 1
"""What the receiver asks for with a 429."""

MAX_FAILURES = 7
"""How many failures of one delivery are retried: the worst that is planned, a lost worker, and one to spare."""

CALLBACK_FAILS_FIRST = 2
"""How many tries the callback fails that is meant to."""

CALLBACK_TRIES = "callback-tries"
"""The file in the demo's folder that grows by one byte with each of them."""


class Mishap(StrEnum):
    """How the receiver treats the deliveries of one event."""

    NONE = "none"
    SLOW = "slow"
    ERROR_ONCE = "error once"
    ERROR_TWICE = "error twice"
    ERROR_THRICE = "error thrice"
    BUSY = "busy"
    """429 with Retry-After, once."""
    STALL = "stall"
    """No answer in time, once; nothing taken in."""
    STALL_AFTER_EFFECT = "stall after effect"
    """Taken in, but no answer in time, once."""
    RESET = "reset"
    """The connection is reset before anything was taken in, once."""
    RESET_MID_REPLY = "reset mid reply"
    """Taken in, then the connection is reset halfway through the reply, once."""
    REFUSED = "refused"
    """400, whatever is tried."""
    ERROR_ALWAYS = "error always"
    STALL_ALWAYS = "stall always"


class Fate(StrEnum):
    """What the shop does with one event besides delivering it."""

    NONE = "none"
    ROLLED_BACK = "rolled back"
    """Its transaction is rolled back."""
    CANCELED_BEFORE = "canceled before"
    """Scheduled for later, and canceled before it is due."""
    CANCELED_DURING = "canceled during"
    """Canceled while it executes."""
    CANCELED_AFTER = "canceled after"
    """Canceled when it has completed, which is too late."""
    CALLBACK_FAILS = "callback fails"
    """Its callback raises on its first tries."""


MISHAPS: Mapping[Mishap, int] = {
    Mishap.REFUSED: 8,
    Mishap.ERROR_ALWAYS: 4,
    Mishap.ERROR_THRICE: 8,
    Mishap.ERROR_TWICE: 14,
    Mishap.ERROR_ONCE: 26,
    Mishap.BUSY: 20,
    Mishap.STALL: 10,
    Mishap.STALL_AFTER_EFFECT: 8,
    Mishap.RESET: 10,
    Mishap.RESET_MID_REPLY: 16,
    Mishap.SLOW: 40,
}
FATES: Mapping[Fate, int] = {
    Fate.ROLLED_BACK: 12,
    Fate.CANCELED_BEFORE: 8,
    Fate.CANCELED_DURING: 6,
    Fate.CANCELED_AFTER: 4,
    Fate.CALLBACK_FAILS: 1,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver does with one delivery."""

    status: int = 200
    takes_effect: bool = True
    hold_ms: int = 0
    retry_after_s: int | None = None
    reset: bool = False

    @property
    def name(self) -> str:
        """The word for it in the ledger."""
        if self.reset:
            return "reset"
        return "stalled" if self.hold_ms >= CLIENT_TIMEOUT_MS else str(self.status)


ERROR = Answer(500, takes_effect=False)
STALL = Answer(hold_ms=STALL_MS, takes_effect=False)
STALL_ALWAYS = Answer(hold_ms=STALL_MS, takes_effect=False)

FIRST_ANSWERS: Mapping[Mishap, tuple[Answer, ...]] = {
    Mishap.ERROR_ONCE: (ERROR,),
    Mishap.ERROR_TWICE: (ERROR, ERROR),
    Mishap.ERROR_THRICE: (ERROR, ERROR, ERROR),
    Mishap.BUSY: (Answer(429, takes_effect=False, retry_after_s=RETRY_AFTER_S),),
    Mishap.STALL: (STALL,),
    Mishap.STALL_AFTER_EFFECT: (Answer(hold_ms=STALL_MS),),
    Mishap.RESET: (Answer(takes_effect=False, reset=True),),
    Mishap.RESET_MID_REPLY: (Answer(reset=True),),
}
FURTHER_ANSWERS: Mapping[Mishap, Answer] = {
    Mishap.SLOW: Answer(hold_ms=600),
    Mishap.REFUSED: Answer(400, takes_effect=False),
    Mishap.ERROR_ALWAYS: ERROR,
    Mishap.STALL_ALWAYS: STALL_ALWAYS,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Every event's mishap and fate."""

    events: frozenset[str]
    mishaps: Mapping[str, Mishap]
    fates: Mapping[str, Fate]

    def mishap(self, event_id: str) -> Mishap:
        """How the receiver treats this event."""
        return self.mishaps.get(event_id, Mishap.NONE)

    def fate(self, event_id: str) -> Fate:
        """What the shop does with this event."""
        return self.fates.get(event_id, Fate.NONE)

    def outcome(self, event_id: str) -> str:
        """The state in which this event's run has to end."""
        if self.fate(event_id) in (Fate.CANCELED_BEFORE, Fate.CANCELED_DURING):
            return "canceled"
        return "failed" if self.mishap(event_id) in (Mishap.REFUSED, Mishap.ERROR_ALWAYS) else "succeeded"

    def answer(self, event_id: str, nth: int) -> Answer:
        """What the receiver does with the *nth* delivery (from 1) of this event."""
        mishap = self.mishap(event_id)
        first = FIRST_ANSWERS.get(mishap, ())
        return first[nth - 1] if nth <= len(first) else FURTHER_ANSWERS.get(mishap, Answer())


@cache
def load_events() -> tuple[Event, ...]:
    """The events that come with the demo, in the order in which they happened."""
    text = files(__package__).joinpath("events.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.split("\n") if line)


def make_plan(seed: int, events: Iterable[Event]) -> Plan:
    """Decide every event's lot: exact numbers of each, drawn by *seed*."""
    events = list(events)
    everything = frozenset(event["id"] for event in events)
    siblings = Counter(event["order_id"] for event in events)
    alone = {event["id"] for event in events if siblings[event["order_id"]] == 1}
    # Whatever takes seconds to end begins early, or the end of the demo would be a long wait.
    early = {event["id"] for event in events[: len(events) // 2]}
    undecided = sorted(everything, key=lambda name: sha256(f"{seed}:{name}".encode()).digest())

    def draw(count: int, among: Container[str]) -> list[str]:
        drawn = [name for name in undecided if name in among][:count]
        undecided[:] = [name for name in undecided if name not in drawn]
        return drawn

    fates: dict[str, Fate] = {}
    for fate, count in FATES.items():
        fates |= dict.fromkeys(draw(count, alone if fate is Fate.ROLLED_BACK else early), fate)
    mishaps = {name: Mishap.STALL_ALWAYS for name, fate in fates.items() if fate is Fate.CANCELED_DURING}
    for mishap, count in MISHAPS.items():
        slow = mishap in (Mishap.ERROR_ALWAYS, Mishap.ERROR_THRICE)
        mishaps |= dict.fromkeys(draw(count, early if slow else everything), mishap)
    return Plan(everything, mishaps, fates)
