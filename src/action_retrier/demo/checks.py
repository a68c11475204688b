"""
What has to hold: one function a promise, which lists what contradicts it.

Pure functions of the witnesses' words and the plan.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise

from .evidence import Delivery, Evidence, LogRow, StoredRun
from .plan import CALLBACK_FAILS_FIRST, MAX_FAILURES, RETRY_AFTER_S, Fate, Mishap, Plan

COMPLETED = ("succeeded", "failed", "canceled")
OUTCOMES = {"succeeded": "success", "failed": "failed", "canceled": "canceled"}


class Case:
    """The evidence, with what the checks look up in it."""

    def __init__(self, evidence: Evidence, plan: Plan) -> None:
        self.evidence = evidence
        self.plan = plan
        self.runs: dict[str, StoredRun] = {run.id: run for run in evidence.runs}
        self.committed = [start for start in evidence.journal.started if start.committed]
        self.rolled_back = [start for start in evidence.journal.started if not start.committed]
        self.event_of = {start.run: start.event for start in evidence.journal.started}

    @cached_property
    def deliveries(self) -> dict[str, list[Delivery]]:
        """The ledger's lines by run."""
        found: dict[str, list[Delivery]] = defaultdict(list)
        for delivery in self.evidence.ledger:
            found[delivery.key].append(delivery)
        return found

    @cached_property
    def log(self) -> dict[str, list[LogRow]]:
        """The callbacks' rows by run."""
        found: dict[str, list[LogRow]] = defaultdict(list)
        for row in self.evidence.log:
            found[row.run].append(row)
        return found

    def fate(self, run: str) -> Fate:
        """What the shop did with the event of one run."""
        return self.plan.fate(self.event_of.get(run, ""))

    def effects(self, run: str) -> int:
        """How often the deliveries of one run took effect."""
        return sum(delivery.effect for delivery in self.deliveries.get(run, ()))

    def name(self, run: str) -> str:
        """A run as a problem names it: with its event, and what was planned for that."""
        event = self.event_of.get(run)
        if event is None:
            return f"run {run} (unknown to the shop)"
        return f"run {run} ({event}, {self.plan.mishap(event)}, {self.plan.fate(event)})"


def every_event_was_taken(case: Case) -> Iterator[str]:
    """The shop took every event, once: what follows is about all of them."""
    taken = Counter(start.event for start in case.evidence.journal.started)
    for event in sorted(case.plan.events | taken.keys()):
        if taken[event] != 1:
            yield f"the shop took {event} {taken[event]} times"
    if len(case.event_of) != taken.total():
        yield f"{taken.total()} runs were started under {len(case.event_of)} ids"


def nothing_lost(case: Case) -> Iterator[str]:
    """Every run whose transaction committed is stored and has completed, and its order is there."""
    for start in case.committed:
        run = case.runs.get(start.run)
        if run is None:
            yield f"{case.name(start.run)} is not in the database"
        elif run.state not in COMPLETED:
            yield f"{case.name(start.run)} is still {run.state}"
    events = Counter(start.order for start in case.committed)
    for order, count in events.items():
        if case.evidence.orders.get(order, 0) != count:
            yield f"order {order} has seen {case.evidence.orders.get(order, 0)} of its {count} events"


def every_outcome_is_due(case: Case) -> Iterator[str]:
    """Every run ended as the receiver and the shop deserved it."""
    for start in case.committed:
        run, due = case.runs.get(start.run), case.plan.outcome(start.event)
        if run is not None and run.state in COMPLETED and run.state != due:
            yield f"{case.name(run.id)} ended as {run.state}, due was {due}"


def delivered_as_reported(case: Case) -> Iterator[str]:
    """What succeeded took effect at the receiver once; what failed for good never did."""
    for run in case.evidence.runs:
        effects = case.effects(run.id)
        if run.state == "succeeded" and effects != 1:
            yield f"{case.name(run.id)} succeeded, but took effect {effects} times at the receiver"
        elif run.state == "failed" and effects:
            yield f"{case.name(run.id)} failed, but took effect at the receiver"
        elif run.state == "succeeded" and not any(line.answer == "200" for line in case.deliveries.get(run.id, ())):
            yield f"{case.name(run.id)} succeeded, but the receiver never answered 200"


def arrived_intact(case: Case) -> Iterator[str]:
    """Every event reached the receiver as the shop sent it, to the last character."""
    for delivery in case.evidence.ledger:
        if not delivery.intact:
            yield f"{case.name(delivery.key)} arrived altered"
        if case.event_of.get(delivery.key, delivery.event) != delivery.event:
            yield f"{case.name(delivery.key)} arrived as {delivery.event}"


def retried_within_bounds(case: Case) -> Iterator[str]:
    """No run was executed more often than its policy allows, and no request came without an execution."""
    for run in case.evidence.runs:
        requests = len(case.deliveries.get(run.id, ()))
        mishap = case.plan.mishap(case.event_of.get(run.id, ""))
        if run.executions > MAX_FAILURES + 1:
            yield f"{case.name(run.id)} was executed {run.executions} times, allowed are {MAX_FAILURES + 1}"
        if run.state == "failed" and mishap is Mishap.ERROR_ALWAYS and run.executions != MAX_FAILURES + 1:
            yield f"{case.name(run.id)} gave up after {run.executions} executions instead of {MAX_FAILURES + 1}"
        if requests > run.executions:
            yield f"{case.name(run.id)} reached the receiver {requests} times, but was executed {run.executions} times"


def called_back_exactly_once(case: Case) -> Iterator[str]:
    """Every completed run's callback committed once, and told the outcome that the run has."""
    for run in case.evidence.runs:
        rows = case.log.get(run.id, [])
        if run.state not in COMPLETED:
            if rows:
                yield f"{case.name(run.id)} is {run.state}, but its callback committed"
        elif len(rows) != 1:
            yield f"{case.name(run.id)} is {run.state}, and its callback committed {len(rows)} times"
        elif rows[0].outcome != OUTCOMES[run.state]:
            yield f"{case.name(run.id)} is {run.state}, but its callback was told {rows[0].outcome}"
        elif run.callback_state != "done":
            yield f"{case.name(run.id)} has called back, but its callback is {run.callback_state}"
    for name in case.log.keys() - case.runs.keys():
        yield f"{case.name(name)} has called back, but is not in the database"


def failing_callback_committed(case: Case) -> Iterator[str]:
    """The callback that fails its first tries was tried again until it committed, and its action was not."""
    chosen = [start.run for start in case.committed if case.fate(start.run) is Fate.CALLBACK_FAILS]
    tries = case.evidence.failing_callback_tries
    if not chosen:
        yield "no run with a failing callback was started"
    for name in chosen:
        if tries <= CALLBACK_FAILS_FIRST:
            yield f"{case.name(name)}: its callback ran {tries} times, but fails the first {CALLBACK_FAILS_FIRST}"
        if (run := case.runs.get(name)) and run.executions - run.lost > 1:
            yield f"{case.name(name)} was executed again because its callback failed"


def cancel_told_the_truth(case: Case) -> Iterator[str]:
    """`cancel` said True: the run is canceled. It said False: the run had completed, and is unchanged."""
    for call in case.evidence.journal.cancels:
        run = case.runs.get(call.run)
        state = run.state if run else "gone"
        if call.answer and state != "canceled":
            yield f"{case.name(call.run)}: cancel said True, but the run is {state}"
        if not call.answer and state != call.state:
            yield f"{case.name(call.run)}: cancel said False when it was {call.state}, but it is {state}"
        if case.fate(call.run) is Fate.CANCELED_BEFORE and call.run in case.deliveries:
            yield f"{case.name(call.run)} was canceled before it was due, but reached the receiver"
    canceled = {call.run for call in case.evidence.journal.cancels if call.answer}
    for run in case.evidence.runs:
        if run.state == "canceled" and run.id not in canceled:
            yield f"{case.name(run.id)} is canceled, but nobody canceled it"


def every_cancel_was_tried(case: Case) -> Iterator[str]:
    """The shop found every run that it meant to cancel before, during or after its execution."""
    tried = Counter(case.fate(call.run) for call in case.evidence.journal.cancels)
    meant = Counter(case.fate(start.run) for start in case.committed)
    for fate in (Fate.CANCELED_BEFORE, Fate.CANCELED_DURING, Fate.CANCELED_AFTER):
        if tried[fate] != meant[fate]:
            yield f"{meant[fate]} runs were to be {fate}, but the shop got to cancel {tried[fate]}"


def rolled_back_left_no_trace(case: Case) -> Iterator[str]:
    """Of what was rolled back there is no order, no run, no delivery, no callback; nor is there anything unheard of."""
    delivered = {delivery.event for delivery in case.evidence.ledger}
    for start in case.rolled_back:
        traces = {
            "its order": start.order in case.evidence.orders,
            "its run": start.run in case.runs,
            "a delivery": start.run in case.deliveries or start.event in delivered,
            "a callback": start.run in case.log,
        }
        for trace, found in traces.items():
            if found:
                yield f"{case.name(start.run)} was rolled back, but {trace} exists"
    for name in (case.runs.keys() | case.deliveries.keys()) - case.event_of.keys():
        yield f"{case.name(name)} exists"


def retry_after_was_honoured(case: Case) -> Iterator[str]:
    """Whoever was answered 429 with Retry-After came back no sooner, by the receiver's own clock."""
    for run in case.evidence.runs:
        if run.lost:  # The worker that was told so may have died of the kill before it could pass it on.
            continue
        for told, next_one in pairwise(case.deliveries.get(run.id, ())):
            waited_s = next_one.at - told.at
            if told.answer == "429" and waited_s < RETRY_AFTER_S:
                yield f"{case.name(run.id)} was told to wait {RETRY_AFTER_S} s, and came back after {waited_s:.3f} s"


def worker_died_in_flight(case: Case) -> Iterator[str]:
    """The kill took deliveries with it, and they were found again."""
    if not any(run.lost for run in case.evidence.runs):
        yield "no attempt was lost to the killed worker: nothing was in flight, or the loss was not recorded"


CHECKS: dict[str, Callable[[Case], Iterator[str]]] = {
    "every event taken": every_event_was_taken,
    "nothing lost": nothing_lost,
    "every outcome as due": every_outcome_is_due,
    "delivered as reported": delivered_as_reported,
    "payloads intact": arrived_intact,
    "retries within bounds": retried_within_bounds,
    "Retry-After honoured": retry_after_was_honoured,
    "callbacks exactly once": called_back_exactly_once,
    "failing callback committed": failing_callback_committed,
    "cancel told the truth": cancel_told_the_truth,
    "canceled before, during and after": every_cancel_was_tried,
    "rolled back left no trace": rolled_back_left_no_trace,
    "killed worker's runs found again": worker_died_in_flight,
}
