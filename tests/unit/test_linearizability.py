"""The checker of what callers were told: what is true passes, and each kind of lie is found."""

import pytest

from ..support.linearizability import GONE, IN_PROGRESS, UNKNOWN, Operation, Step, explain

CLAIMED = Step("work", IN_PROGRESS, busy=True)
BACKS_OFF = Step("work", IN_PROGRESS, due=50)
HASTENED = Step("hasten", IN_PROGRESS)
OWES = Step("complete", "failed:RuntimeError", busy=True)
CALLED_BACK = Step("work", "failed:RuntimeError")
DONE = Step("complete", "success:1")
FAILED = Step("complete", "failed:RuntimeError")
CANCELED = Step("cancel", "canceled")
AFRESH = Step("retry", IN_PROGRESS)
REMOVED = Step("remove", GONE)


def told(kind, answer, invoked, answered=float("inf")):
    return Operation(kind, answer, invoked, answered)


TRUE = {
    "nothing happened, nobody asked": ([], []),
    "a status before and after the end": (
        [DONE],
        [told("status", IN_PROGRESS, 0, 1), told("status", "success:1", 2, 3)],
    ),
    "statuses at once may be told apart": (
        [DONE],
        [told("status", "success:1", 0, 10), told("status", IN_PROGRESS, 1, 9)],
    ),
    "a cancel that did it": ([CANCELED], [told("cancel", "true", 0, 1), told("status", "canceled", 2, 3)]),
    "of two cancels one did it": ([CANCELED], [told("cancel", "true", 0, 9), told("cancel", "false", 1, 8)]),
    "a cancel that was too late": ([DONE], [told("cancel", "false", 0, 1)]),
    "a cancel without an answer that happened": ([CANCELED], [told("cancel", UNKNOWN, 0)]),
    "a cancel without an answer that did not": (
        [DONE],
        [told("cancel", UNKNOWN, 0), told("status", "success:1", 1, 2)],
    ),
    "a cancel without an answer may happen much later": (
        [CANCELED],
        [told("cancel", UNKNOWN, 0), told("status", IN_PROGRESS, 5, 6), told("status", "canceled", 7, 8)],
    ),
    "canceled and started afresh": (
        [CANCELED, AFRESH, DONE],
        [
            told("cancel", "true", 0, 1),
            told("retry", "ok", 2, 3),
            told("status", IN_PROGRESS, 4, 5),
            told("status", "success:1", 6, 7),
        ],
    ),
    "a retry of what backs off shows nowhere": ([DONE], [told("retry", "ok", 0, 1), told("status", "success:1", 2, 3)]),
    "of two retries one started it afresh": (
        [FAILED, AFRESH, DONE],
        [told("retry", "ok", 0, 1), told("retry", "ok", 2, 3), told("status", "success:1", 4, 5)],
    ),
    "a retry that came too late, or too early": (
        [CLAIMED, DONE],
        [told("retry", "RunInProgress", 0, 1), told("retry", "RunSucceeded", 2, 3)],
    ),
    "a retry while the callback is pending, and one after it": (
        [CLAIMED, OWES, CALLED_BACK, AFRESH],
        [told("status", "failed:RuntimeError", 0, 1), told("retry", "RunInProgress", 2, 3), told("retry", "ok", 4, 5)],
    ),
    "a retry that hastens a run, and one that need not": (
        [CLAIMED, BACKS_OFF, HASTENED, CLAIMED, DONE],
        [told("retry", "RunInProgress", 0, 1), told("retry", "ok", 2, 3), told("retry", "ok", 4, 5)],
    ),
    "a retry of a run that is due by itself": ([CLAIMED, BACKS_OFF, CLAIMED, DONE], [told("retry", "ok", 40, 60)]),
    "a retry without an answer that hastened a run": ([CLAIMED, BACKS_OFF, HASTENED], [told("retry", UNKNOWN, 0)]),
    "a run that was removed": ([DONE, REMOVED], [told("status", "success:1", 0, 1), told("cancel", GONE, 2, 3)]),
    "an old status while the step may still be to come": (
        [Step("complete", "success:1", earliest=5, latest=9)],
        [told("status", IN_PROGRESS, 6, 8), told("status", "success:1", 8, 9)],
    ),
}


@pytest.mark.parametrize("name", TRUE)
def test_what_can_be_true_passes(name):
    assert explain(*TRUE[name]) is None


LIES = {
    "in progress, says a retry, and it has failed for good": (
        [CLAIMED, FAILED],
        [told("status", "failed:RuntimeError", 0, 1), told("retry", "RunInProgress", 2, 3)],
    ),
    "in progress, says a retry, and nobody has claimed it": ([], [told("retry", "RunInProgress", 0, 1)]),
    "started afresh, says a retry, and it executes": (
        [Step("work", IN_PROGRESS, latest=1, busy=True), Step("complete", "success:1", earliest=9)],
        [told("retry", "ok", 2, 3)],
    ),
    "started afresh, says a retry, and the callback is pending": (
        [Step("complete", "failed:E", latest=1, busy=True), Step("work", "failed:E", earliest=9)],
        [told("retry", "ok", 2, 3)],
    ),
    "succeeded, says a retry, and the callback is pending": (
        [Step("complete", "success:1", busy=True)],
        [told("retry", "RunSucceeded", 2, 3)],
    ),
    "a retry that did not hasten a run": (
        [Step("work", IN_PROGRESS, latest=1, due=50), Step("work", IN_PROGRESS, earliest=50, busy=True)],
        [told("retry", "ok", 2, 3)],
    ),
    "a run that was hastened, and nobody called": ([CLAIMED, BACKS_OFF, HASTENED], [told("status", IN_PROGRESS, 0, 1)]),
    "a status that goes back": ([DONE], [told("status", "success:1", 0, 1), told("status", IN_PROGRESS, 2, 3)]),
    "a result that the run never had": ([DONE], [told("status", "success:2", 0, 1)]),
    "a result of a run that goes on": ([], [told("status", "success:1", 0, 1)]),
    "canceled, and nobody called": ([CANCELED], []),
    "canceled by a call that was told it did not": ([CANCELED], [told("cancel", "false", 0, 1)]),
    "a cancel that did nothing and says it did": ([DONE], [told("cancel", "true", 0, 1)]),
    "two cancels that both did it": ([CANCELED], [told("cancel", "true", 0, 1), told("cancel", "true", 2, 3)]),
    "a cancel of what had ended before": ([DONE], [told("status", "success:1", 0, 1), told("cancel", "true", 2, 3)]),
    "a cancel that says too late while it goes on": (
        [DONE],
        [told("cancel", "false", 0, 1), told("status", IN_PROGRESS, 2, 3), told("status", "success:1", 4, 5)],
    ),
    "canceled, and then something else": (
        [CANCELED],
        [told("cancel", "true", 0, 1), told("status", "success:1", 2, 3)],
    ),
    "canceled, and in progress again without a retry": (
        [CANCELED, DONE],
        [told("cancel", "true", 0, 1), told("status", IN_PROGRESS, 2, 3)],
    ),
    "started afresh, and nobody called": ([FAILED, AFRESH, DONE], [told("status", "success:1", 0, 1)]),
    "started afresh before anybody called": (
        [FAILED, AFRESH, DONE],
        [told("status", "success:1", 0, 1), told("retry", "ok", 2, 3)],
    ),
    "one retry that started it afresh twice": (
        [FAILED, AFRESH, FAILED, AFRESH, DONE],
        [told("retry", "ok", 0, 9)],
    ),
    "a retry that says it succeeded, and it failed": ([FAILED], [told("retry", "RunSucceeded", 0, 1)]),
    "a run that is gone, and was never removed": ([DONE], [told("status", GONE, 0, 1)]),
    "a run that was removed, and is there": (
        [DONE, REMOVED],
        [told("status", GONE, 0, 1), told("status", "success:1", 2, 3)],
    ),
    "an old status after everybody could know": (
        [Step("complete", "success:1", earliest=0, latest=2)],
        [told("status", IN_PROGRESS, 3, 4)],
    ),
    "an end that is told before it could be": (
        [Step("complete", "success:1", earliest=5)],
        [told("status", "success:1", 0, 1)],
    ),
    "a cancel that is answered before it could be": (
        [Step("cancel", "canceled", earliest=5)],
        [told("cancel", "true", 0, 1)],
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_what_cannot_be_true_is_found(name):
    assert "no order makes this true" in explain(*LIES[name])


def test_many_calls_at_once_are_judged_quickly():
    """Each step has one cause: the search must not try all orders of what merely looks."""
    calls = [told("cancel", "false", number, 1000) for number in range(40)]
    calls += [told("status", "canceled", number, 1000) for number in range(40)]
    unknown = [told("cancel", UNKNOWN, number) for number in range(10)]

    assert explain([CANCELED], [*calls, *unknown]) is None
    assert explain([CANCELED, AFRESH, CANCELED], [*calls, *unknown]) is not None
