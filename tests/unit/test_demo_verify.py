"""The demo's verdict: it holds for an honest world, and breaks for each way of cheating."""

from collections import Counter
from dataclasses import replace

import pytest

from action_retrier.demo.evidence import (
    CancelCall,
    Delivery,
    Evidence,
    Journal,
    LogRow,
    Started,
    StoredRun,
    read_journal,
)
from action_retrier.demo.plan import FATES, MAX_FAILURES, MISHAPS, Fate, Mishap, Plan, load_events, make_plan
from action_retrier.demo.verify import as_json, judge

OUTCOMES = {"succeeded": "success", "failed": "failed", "canceled": "canceled"}
EVENTS = load_events()
ORDER_OF = {event["id"]: event["order_id"] for event in EVENTS}


@pytest.fixture
def plan() -> Plan:
    return make_plan(1, EVENTS)


@pytest.fixture
def honest(plan: Plan) -> Evidence:
    """What the witnesses say when all has gone as it should."""
    started = tuple(
        Started(run_of(name), name, ORDER_OF[name], plan.fate(name) is not Fate.ROLLED_BACK) for name in ORDER_OF
    )
    committed = [start for start in started if start.committed]
    ledger: list[Delivery] = []
    for start in committed:
        ledger += deliveries(plan, start)
    requests = Counter(line.key for line in ledger)
    runs = [
        StoredRun(start.run, plan.outcome(start.event), requests[start.run], lost=0, callback_state="done")
        for start in committed
    ]
    slow = next(name for name, mishap in plan.mishaps.items() if mishap is Mishap.SLOW)
    runs = [replace(run, executions=2, lost=1) if run.id == run_of(slow) else run for run in runs]
    log = tuple(LogRow(start.run, start.event, OUTCOMES[plan.outcome(start.event)]) for start in committed)
    cancels = [cancel_call(plan, start) for start in committed if plan.fate(start.event).startswith("canceled")]
    orders = Counter(start.order for start in committed)
    return Evidence(Journal(started, tuple(cancels)), tuple(ledger), tuple(runs), log, orders, failing_callback_tries=3)


def run_of(event: str) -> str:
    return f"run of {event}"


def deliveries(plan: Plan, start: Started) -> list[Delivery]:
    if plan.fate(start.event) is Fate.CANCELED_BEFORE:
        return []
    lines: list[Delivery] = []
    for nth in range(1, MAX_FAILURES + 2):
        answer = plan.answer(start.event, nth)
        taken_before = any(line.effect for line in lines)
        effect = answer.takes_effect and not taken_before
        duplicate = answer.takes_effect and taken_before
        lines.append(Delivery(start.event, start.run, answer.name, effect, duplicate, intact=True, at=1.05 * nth))
        if answer.name in ("200", "400"):
            break
    return lines


def cancel_call(plan: Plan, start: Started) -> CancelCall:
    match plan.fate(start.event):
        case Fate.CANCELED_BEFORE:
            return CancelCall(start.run, "pending", answer=True)
        case Fate.CANCELED_DURING:
            return CancelCall(start.run, "running", answer=True)
        case _:
            return CancelCall(start.run, "succeeded", answer=False)


def an_event(plan: Plan, *, mishap: Mishap = Mishap.NONE, fate: Fate = Fate.NONE) -> str:
    return next(name for name in ORDER_OF if plan.mishap(name) is mishap and plan.fate(name) is fate)


def with_run(evidence: Evidence, run_id: str, **changes) -> Evidence:
    return replace(evidence, runs=tuple(replace(run, **changes) if run.id == run_id else run for run in evidence.runs))


def without_run(evidence: Evidence, run_id: str) -> Evidence:
    return replace(evidence, runs=tuple(run for run in evidence.runs if run.id != run_id))


def broken(evidence: Evidence, plan: Plan) -> set[str]:
    return {check.name for check in judge(evidence, plan).checks if not check.holds}


def test_an_honest_world_holds(honest, plan):
    verdict = judge(honest, plan)

    assert [check for check in verdict.checks if not check.holds] == []
    assert verdict.holds
    assert verdict.figures.events == len(EVENTS)
    assert verdict.figures.rolled_back == FATES[Fate.ROLLED_BACK]
    assert verdict.figures.failed_for_good == MISHAPS[Mishap.REFUSED] + MISHAPS[Mishap.ERROR_ALWAYS]
    assert verdict.figures.canceled == FATES[Fate.CANCELED_BEFORE] + FATES[Fate.CANCELED_DURING]
    assert verdict.figures.extra_deliveries == MISHAPS[Mishap.STALL_AFTER_EFFECT] + MISHAPS[Mishap.RESET_MID_REPLY]
    assert verdict.figures.callbacks == verdict.figures.started


def test_no_evidence_at_all_does_not_hold(plan):
    """Checks that are about nothing must not pass for it."""
    assert not judge(Evidence(Journal(), (), (), (), {}, 0), plan).holds


def test_a_line_missing_from_the_ledger_is_noticed(honest, plan):
    event = an_event(plan)
    ledger = tuple(line for line in honest.ledger if line.event != event)

    assert broken(replace(honest, ledger=ledger), plan) == {"delivered as reported"}


def test_a_second_effect_of_one_run_is_noticed(honest, plan):
    line = next(line for line in honest.ledger if line.duplicate)
    ledger = tuple(replace(line, effect=True) if other is line else other for other in honest.ledger)

    assert broken(replace(honest, ledger=ledger), plan) == {"delivered as reported"}


def test_an_effect_of_a_failed_run_is_noticed(honest, plan):
    event = an_event(plan, mishap=Mishap.REFUSED)
    ledger = tuple(replace(line, effect=line.event == event or line.effect) for line in honest.ledger)

    assert broken(replace(honest, ledger=ledger), plan) == {"delivered as reported"}


def test_an_altered_payload_is_noticed(honest, plan):
    ledger = (replace(honest.ledger[0], intact=False), *honest.ledger[1:])

    assert broken(replace(honest, ledger=ledger), plan) == {"payloads intact"}


def test_an_event_delivered_under_another_runs_key_is_noticed(honest, plan):
    event, other = honest.ledger[0].event, honest.ledger[-1].event
    ledger = (replace(honest.ledger[0], event=other), *honest.ledger[1:])

    assert event != other
    assert broken(replace(honest, ledger=ledger), plan) == {"payloads intact"}


def test_a_lost_run_is_noticed(honest, plan):
    """So is that its callback has committed all the same."""
    evidence = without_run(honest, run_of(an_event(plan)))

    assert broken(evidence, plan) == {"nothing lost", "callbacks exactly once"}


@pytest.mark.parametrize("state", ["pending", "running"])
def test_a_run_that_never_ends_is_noticed(honest, plan, state):
    run = run_of(an_event(plan))
    log = tuple(row for row in honest.log if row.run != run)
    evidence = replace(with_run(honest, run, state=state, callback_state="none"), log=log)

    assert broken(evidence, plan) == {"nothing lost"}


def test_a_lost_order_is_noticed(honest, plan):
    orders = dict(honest.orders)
    del orders[next(iter(orders))]

    assert broken(replace(honest, orders=orders), plan) == {"nothing lost"}


def test_a_wrong_outcome_is_noticed(honest, plan):
    event = an_event(plan, mishap=Mishap.REFUSED)
    evidence = with_run(honest, run_of(event), state="succeeded")

    assert broken(evidence, plan) == {"every outcome as due", "delivered as reported", "callbacks exactly once"}


def test_a_missing_callback_is_noticed(honest, plan):
    assert broken(replace(honest, log=honest.log[1:]), plan) == {"callbacks exactly once"}


def test_a_second_callback_is_noticed(honest, plan):
    assert broken(replace(honest, log=(*honest.log, honest.log[0])), plan) == {"callbacks exactly once"}


def test_a_callback_told_another_outcome_is_noticed(honest, plan):
    run = run_of(an_event(plan, fate=Fate.CANCELED_BEFORE))
    log = tuple(replace(row, outcome="success") if row.run == run else row for row in honest.log)

    assert broken(replace(honest, log=log), plan) == {"callbacks exactly once"}


def test_a_callback_still_pending_is_noticed(honest, plan):
    evidence = with_run(honest, run_of(an_event(plan)), callback_state="pending")

    assert broken(evidence, plan) == {"callbacks exactly once"}


def test_a_failing_callback_that_was_given_up_is_noticed(honest, plan):
    assert broken(replace(honest, failing_callback_tries=2), plan) == {"failing callback committed"}


def test_an_action_run_again_for_its_callback_is_noticed(honest, plan):
    evidence = with_run(honest, run_of(an_event(plan, fate=Fate.CALLBACK_FAILS)), executions=2)

    assert broken(evidence, plan) == {"failing callback committed"}


def test_a_cancel_that_lied_is_noticed(honest, plan):
    event = an_event(plan, fate=Fate.CANCELED_BEFORE)
    evidence = with_run(honest, run_of(event), state="pending")

    assert "cancel told the truth" in broken(evidence, plan)


def test_a_delivery_of_what_was_canceled_before_is_noticed(honest, plan):
    event = an_event(plan, fate=Fate.CANCELED_BEFORE)
    late = Delivery(event, run_of(event), "200", effect=True, duplicate=False, intact=True, at=9.0)
    evidence = with_run(replace(honest, ledger=(*honest.ledger, late)), run_of(event), executions=1)

    assert broken(evidence, plan) == {"cancel told the truth"}


def test_a_run_canceled_by_nobody_is_noticed(honest, plan):
    cancels = honest.journal.cancels[1:]
    evidence = replace(honest, journal=replace(honest.journal, cancels=cancels))

    assert broken(evidence, plan) == {"cancel told the truth", "canceled before, during and after"}


def test_a_run_that_outlives_its_rolled_back_transaction_is_noticed(honest, plan):
    event = an_event(plan, fate=Fate.ROLLED_BACK)
    ghost = StoredRun(run_of(event), "canceled", 0, 0, "done")
    traces = {
        "run": replace(honest, runs=(*honest.runs, ghost)),
        "order": replace(honest, orders={**honest.orders, ORDER_OF[event]: 1}),
        "delivery": replace(
            honest,
            ledger=(*honest.ledger, Delivery(event, "who knows", "200", True, False, True, 1.0)),  # noqa: FBT003
        ),
        "callback": replace(honest, log=(*honest.log, LogRow(run_of(event), event, "success"))),
    }
    for trace, evidence in traces.items():
        assert "rolled back left no trace" in broken(evidence, plan), trace


def test_an_execution_too_many_is_noticed(honest, plan):
    evidence = with_run(honest, run_of(an_event(plan)), executions=MAX_FAILURES + 2)

    assert broken(evidence, plan) == {"retries within bounds"}


def test_giving_up_early_is_noticed(honest, plan):
    run = run_of(an_event(plan, mishap=Mishap.ERROR_ALWAYS))
    ledger = tuple(line for line in honest.ledger if line.key != run)

    assert broken(replace(with_run(honest, run, executions=3), ledger=ledger), plan) == {"retries within bounds"}


def test_a_request_without_an_execution_is_noticed(honest, plan):
    evidence = with_run(honest, run_of(an_event(plan)), executions=0)

    assert broken(evidence, plan) == {"retries within bounds"}


def test_coming_back_too_soon_after_a_429_is_noticed(honest, plan):
    event = an_event(plan, mishap=Mishap.BUSY)
    ledger = tuple(replace(line, at=line.at * 0.9) if line.event == event else line for line in honest.ledger)

    assert broken(replace(honest, ledger=ledger), plan) == {"Retry-After honoured"}


def test_a_kill_that_hit_nothing_is_noticed(honest, plan):
    runs = tuple(replace(run, lost=0) for run in honest.runs)

    assert broken(replace(honest, runs=runs), plan) == {"killed worker's runs found again"}


def test_a_shop_that_closed_early_is_noticed(honest, plan):
    journal = replace(honest.journal, started=honest.journal.started[:-1])

    assert "every event taken" in broken(replace(honest, journal=journal), plan)


def test_the_json_says_what_does_not_hold(honest, plan):
    shown = as_json(judge(replace(honest, log=honest.log[1:]), plan))

    assert shown["ok"] is False
    assert [len(check["problems"]) for check in shown["checks"] if not check["ok"]] == [1]
    assert shown["figures"]["failedForGood"] == 12


def test_a_problem_names_the_run_its_event_and_what_was_planned(honest, plan):
    event = an_event(plan, mishap=Mishap.BUSY)
    log = tuple(row for row in honest.log if row.event != event)
    (problem,) = [problem for check in judge(replace(honest, log=log), plan).checks for problem in check.problems]

    assert problem == f"run run of {event} ({event}, busy, none) is succeeded, and its callback committed 0 times"


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_has_exact_numbers_whatever_the_seed(seed):
    plan = make_plan(seed, EVENTS)

    assert Counter(plan.fates.values()) == FATES
    assert Counter(plan.mishaps.values()) == {**MISHAPS, Mishap.STALL_ALWAYS: FATES[Fate.CANCELED_DURING]}


def test_the_same_seed_makes_the_same_plan():
    assert make_plan(7, EVENTS) == make_plan(7, EVENTS)
    assert make_plan(7, EVENTS) != make_plan(8, EVENTS)


def test_the_events_are_several_hundred_and_varied():
    sizes = sorted(len(repr(event)) for event in EVENTS)

    assert len({event["id"] for event in EVENTS}) == len(EVENTS) >= 400
    assert len({event["type"] for event in EVENTS}) >= 8
    assert sizes[-1] > 5 * sizes[0]
    assert not all(repr(event).isascii() for event in EVENTS)


def test_the_journal_is_read_line_by_line():
    lines = [
        '{"start": "r1", "event": "e1", "order": "o1", "committed": true}\n',
        '{"cancel": "r1", "event": "e1", "state": "running", "answer": true}\n',
    ]

    assert read_journal(lines) == Journal(
        (Started("r1", "e1", "o1", committed=True),), (CancelCall("r1", "running", answer=True),)
    )
