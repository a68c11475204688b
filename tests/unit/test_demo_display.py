"""What the demo prints: what is alike is counted, and what is long stays beside its time."""

import io
import json
import stat

import pytest
from rich.console import Console

from action_retrier.demo.display import LiveTable, PlainLines, print_verdict
from action_retrier.demo.run import CONTENTS, OPENING
from action_retrier.demo.tables import create_tables
from action_retrier.demo.verify import Check, Figures, Verdict
from action_retrier.demo.watch import Doings

FIGURES = Figures(
    events=427,
    rolled_back=12,
    started=415,
    delivered=389,
    retried=118,
    failed_for_good=12,
    canceled=14,
    in_progress=0,
    requests=579,
    extra_deliveries=25,
    attempts_lost=6,
    callbacks=415,
    failed_callback_tries=2,
)
HAPPENING = "worker 1 is killed, with a great many of its requests unanswered, as one can read on two lines"


def verdict_of(*checks: Check) -> list[str]:
    out = io.StringIO()
    print_verdict(Console(file=out, width=80), Verdict(FIGURES, checks), seconds=10)
    return out.getvalue().splitlines()


def test_what_is_alike_is_told_once_and_counted():
    doings = Doings()
    lines = [
        json.dumps({"start": "1", "committed": False}),
        json.dumps({"start": "2", "committed": True}),
        json.dumps({"cancel": "3", "state": "pending", "answer": True}),
        json.dumps({"start": "4", "committed": False}),
    ]

    first, second = [*doings.news(lines)], [*doings.news(lines)]

    assert first == ["an order rolled back, and its webhook with it", "cancel of a pending run: True"]
    assert second == []
    assert doings.summary() == f"{first[0]} (4 times); {first[1]} (2 times)"


def test_on_a_terminal_a_long_happening_goes_on_beside_its_time():
    out = io.StringIO()
    display = LiveTable(Console(file=out, width=80, force_terminal=True, color_system=None))

    display.happened(HAPPENING)

    first, second = out.getvalue().splitlines()
    assert first.startswith("  0.0 s  worker 1 is killed, ")
    assert second.startswith(" " * 9 + HAPPENING.split()[-3])


def test_in_a_pipe_a_happening_is_one_line():
    out = io.StringIO()

    PlainLines(Console(file=out, width=80)).happened(HAPPENING)

    assert out.getvalue() == f"  0.0 s  {HAPPENING}\n"


def test_of_many_problems_the_first_are_printed_and_the_broken_checks_are_named_at_the_end():
    problems = tuple(f"run {number} is gone" for number in range(389))

    lines = verdict_of(
        Check("nothing lost", problems), Check("payloads intact", ()), Check("all left", ("one stayed",))
    )

    assert [line for line in lines if "is gone" in line] == [f"       run {number} is gone" for number in range(5)]
    assert "       … and 384 more" in lines
    assert lines[-1] == "does not hold: nothing lost; all left, after 10.0 s"


def test_figures_explain_themselves():
    lines = verdict_of(Check("nothing lost", ()))

    assert "579  requests; 25 came again, and the receiver recognised them by run_id" in lines
    assert lines[-1] == "everything holds, after 10.0 s"


def test_the_opening_is_two_lines_and_fits_as_does_what_is_in_the_folder():
    assert OPENING.count("\n") == 2
    assert max(map(len, [*OPENING.splitlines(), *(f"  {line}" for line in CONTENTS)])) <= 80


@pytest.mark.parametrize("before", [None, 0o640])
def test_a_database_of_the_demo_is_for_its_owner_only_and_one_that_exists_stays_as_it_is(tmp_path, before):
    path = tmp_path / "demo.db"
    if before is not None:
        path.touch()
        path.chmod(before)

    create_tables(f"sqlite:///{path}")

    assert stat.S_IMODE(path.stat().st_mode) == (before or 0o600)
