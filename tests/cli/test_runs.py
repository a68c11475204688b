"""`list`, `show`, `status`, `cancel`, `retry`, `cleanup`: as text and as JSON."""

import pytest

from action_retrier import Completed, Failed, Page, Run, Success, from_json

UNKNOWN = "00000000-0000-7000-8000-000000000000"
APP = ("--database", "sqlite:///job.db")


def test_list_tells_where_each_run_stands_newest_first(run, shop):
    failed = shop.start("job:fail")
    shop.start("job:double", {"x": 4})
    shop.work(passes_ms=1500)
    later = shop.retrier.run_after(shop.app, 60_000, "job:double", {"x": 1})
    unknown = shop.start("job:unknown", {}, queue="mail")

    said = run("list", *APP, "--limit", "10")

    lines = said.out.splitlines()
    assert said.code == 0
    assert lines[0].split() == ["ID", "STATE", "ACTION", "QUEUE", "NOTE"]
    assert [line.split()[0] for line in lines[1:]][::3] == [unknown, failed]
    assert "no live worker knows job:unknown" in lines[1]
    assert lines[1].split()[1:4] == ["pending", "job:unknown", "mail"]
    assert later in lines[2]
    assert "succeeded" in lines[3]
    assert lines[4].endswith("2 attempts: ConnectionError: refused")


def test_list_as_json_is_a_page(run, shop):
    ids = [shop.start("job:double", {"x": x}) for x in range(3)]

    first = run("list", *APP, "--limit", "2", "--json")
    page = from_json(first.out, Page)
    second = run("list", *APP, "--limit", "2", "--json", "--cursor", page.cursor)

    assert [one.id for one in page.runs] == ids[:0:-1]
    assert first.json["runs"][0]["createdAt"].startswith("2026-01-01T00:00:00")
    assert [one["id"] for one in second.json["runs"]] == ids[:1]
    assert second.json["cursor"] is None


def test_list_says_how_to_go_on(run, shop):
    ids = [shop.start("job:double", {"x": x}) for x in range(3)]

    said = run("list", *APP, "--limit", "2")

    assert said.err.splitlines() == [f"There are more: the same command with --cursor {ids[1]}"]
    assert ids[0] in run("list", *APP, "--cursor", ids[1]).out


def test_list_filters(run, shop):
    failed = shop.start("job:fail", {"message": "broken"}, max_failures=0)
    owes = shop.start("job:double", {"x": 1}, on_complete="job:note", context="no")
    shop.work()
    mail = shop.start("job:double", {"x": 1}, queue="mail")

    def ids(*filters):
        return [one["id"] for one in run("list", *APP, "--json", *filters).json["runs"]]

    assert ids("--state", "failed") == [failed]
    assert ids("--action", "job:fail") == [failed]
    assert ids("--queue", "mail") == [mail]
    assert ids("--callback", "pending") == [owes]
    assert ids("--callback", "pending", "--state", "failed") == []


def test_an_empty_list_says_so_beside_its_output(run, shop):
    said = run("list", *APP)

    assert (said.code, said.out, said.err) == (0, "", "No runs.\n")


@pytest.mark.parametrize("command", ["list", "cancel", "retry"])
@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("double", "; did you mean job:double?"),
        ("job:duoble", "; did you mean job:double?"),
        ("jobs:until_stoped", "; did you mean job:until_stopped or job:until_released?"),
        ("billing:refund", ""),
    ],
)
def test_a_name_that_the_app_does_not_know_and_finds_nothing_is_hinted_at(run, shop, command, name, question):
    """Only hinted at: the runs of other services are in the same database."""
    for options in ([], ["--json"]):
        said = run(command, "--app", "job:app", "--action", name, *options)
        assert said.code == 0
        assert said.err.splitlines()[-1] == f"Hint: no action {name!r} is registered with job:app{question}"


def test_there_is_no_hint_where_the_name_is_right_or_nobody_can_know(run, shop, write):
    shop.start("others:refund", {})
    write("empty.py", "from action_retrier import App\napp = App('sqlite:///job.db')")

    assert "Hint" not in run("list", "--app", "job:app", "--action", "job:double").err
    assert "Hint" not in run("list", "--app", "job:app", "--action", "others:refund").err
    assert "Hint" not in run("list", "--app", "empty:app", "--action", "double").err
    assert "Hint" not in run("list", "--database", "sqlite:///job.db", "--action", "double").err
    assert "Hint" not in run("cancel", "--app", "job:app", "--queue", "nowhere").err


@pytest.mark.parametrize("columns", [40, 80, 100, 200, None])
def test_ids_and_states_are_whole_at_any_width_and_lines_fit(run, shop, columns):
    name = "a.rather.long.module.name:and_an_action_with_a_long_name"
    ids = [shop.start(name, {}), shop.start("job:double", {"x": 1}), shop.start("job:fail", {"message": "long " * 50})]
    shop.work()

    said = run("list", *APP, columns=columns)

    assert [line.split()[:2] for line in said.out.splitlines() if line[:1].isdigit()] == [
        [ids[2], "pending"],
        [ids[1], "succeeded"],
        [ids[0], "pending"],
    ]
    assert max(map(len, said.out.splitlines())) <= max(columns or 1000, 60)
    assert "\x1b" not in said.out
    if columns is None:
        assert name in said.out


def test_at_80_columns_where_a_run_stands_has_a_line_of_its_own_and_names_are_whole(run, shop):
    name = "shop.payments.reconciliation:charge_the_card"
    short, long = shop.start("job:fail", {"message": "sql " * 30}, queue="mail"), shop.start(name, {})
    longest = shop.start("module." * 15 + "x:f", {})
    shop.work(passes_ms=1500)

    lines = run("list", *APP, columns=80).out.splitlines()

    whole = "module." * 15 + "x:f"
    assert lines[1:4] == [f"{longest}  pending", f"  {whole[:78]}", f"  {whole[78:]}"]
    assert lines[4].startswith("  no live worker knows module.")
    assert lines[5:8] == [f"{long}  pending", f"  {name}", f"  no live worker knows {name}"]
    assert lines[8] == f"{short}  failed     job:fail (mail)"
    assert lines[9][:2] == "  "
    assert " ago, 2 attempts: ConnectionError: sql sql " in lines[9]
    assert (len(lines[9]), lines[9][-1]) == (80, "…")


def test_what_is_piped_is_not_cut(run, shop):
    message = "long " * 3000 + "end"
    run_id = shop.start("job:fail", {"message": message}, max_failures=0)
    shop.work()

    assert run("list", *APP).out.splitlines()[1].endswith(message)
    assert f'{{"message":"{message}"}}' in run("show", *APP, run_id).out
    assert f"failed: ConnectionError: {message}\n" in run("show", *APP, run_id).out


def test_what_does_not_fit_beside_its_name_in_show_goes_on_below_itself(run, shop):
    words, blob = "some words " * 20, "x" * 200
    run_id = shop.start("job:fail", {"message": words + blob}, max_failures=0)
    shop.work()

    lines = run("show", *APP, run_id, columns=80).out.splitlines()

    def below(beginning):
        first = next(number for number, line in enumerate(lines) if line.startswith(beginning))
        rest = lines[first + 1 : first + 5]
        return [line[: len(beginning)] for line in rest], [line[len(beginning)] for line in rest]

    for beginning in ("args     ", "attempt 1  ", "2026-01-01 00:00:00.000 UTC  "):
        indents, firsts = below(beginning)
        assert indents == [" " * len(beginning)] * 4
        assert " " not in firsts
    assert max(map(len, lines)) <= 80


def test_show_tells_the_story_attempt_by_attempt(run, shop):
    run_id = shop.start("job:fail", {"message": "refused"}, on_complete="job:note", context="")
    shop.work(passes_ms=1500)

    said = run("show", *APP, run_id)
    text = said.out

    assert said.code == 0
    assert text.startswith(f"run {run_id}  failed\n")
    assert 'args     {"message":"refused"}' in text
    assert "options  initial_backoff_ms=1500, max_failures=1, jitter=0" in text
    first = text.index("attempt 1  2026-01-01 00:00:00.000 UTC, took 0 ms  ConnectionError: refused")
    delay = text.index("then 1.5 s until the next was due")
    second = text.index("attempt 2  2026-01-01 00:00:01.500 UTC, took 0 ms  ConnectionError: refused")
    trace = text.index("traceback of attempt 2 (those of earlier ones are in --json)\nTraceback (most recent call")
    end = text.index("2026-01-01 00:00:01.500 UTC  failed: ConnectionError: refused")
    callback = text.index("callback job:note committed at the first try\n")
    assert first < delay < second < trace < end < callback


def test_show_counts_the_tries_of_a_callback(run, shop):
    failing = []

    @shop.app.mutation(name="job:twice")
    def twice() -> None:
        failing.append(1)
        if len(failing) < 3:
            raise ValueError("locked")

    run_id = shop.start("job:double", {"x": 4}, on_complete="job:twice")
    told = []
    with shop.app.worker() as worker:
        for _ in range(3):
            worker.until_idle()
            told.append(run("show", *APP, run_id).out)
            shop.clock.advance(60_000)

    assert "callback job:twice has not committed at the first try, and is tried until it has\n" in told[0]
    assert "callback job:twice has not committed in 2 tries, and is tried until it has\n" in told[1]
    assert "callback job:twice committed at try 3\n" in told[2]


def test_show_names_earlier_tracebacks_only_where_there_are_any(run, shop):
    run_id = shop.start("job:fail", max_failures=0)
    shop.work()

    assert "traceback of attempt 1\nTraceback" in run("show", *APP, run_id).out


def test_show_tells_what_a_run_waits_for(run, shop):
    unknown = shop.start("job:unknown", {})
    owes = shop.start("job:double", {"x": 4}, on_complete="job:note", context="the ledger is closed")
    shop.work()

    waits = run("show", *APP, unknown).out
    said = run("show", *APP, owes).out

    assert "blocked by  job:unknown: no live worker knows it; start one that does" in waits
    assert "no attempt yet" in waits
    assert "succeeded: 8" in said
    assert "callback job:note has not committed at the first try, and is tried until it has" in said
    assert "its last error: ValueError: the ledger is closed" in said


def test_show_as_json_is_the_run(run, shop):
    run_id = shop.start("job:fail", idempotency_key="one")
    shop.work(passes_ms=1500)

    said = run("show", *APP, run_id, "--json")
    told = from_json(said.out, Run)

    assert (told.id, told.failures, told.result) == (run_id, 2, Failed("refused", "ConnectionError"))
    assert said.json["attempts"][0]["delayMs"] == 1500
    assert said.json["idempotencyKey"] == "one"


def test_what_others_have_written_cannot_steer_the_terminal(run, shop):
    """Error texts come from anywhere: control characters are shown, not obeyed; nor is rich's markup."""
    run_id = shop.start("job:fail", {"message": "\x1b[31mred\x1b]0;title\x07\r\n[bold]not bold[/bold] :smile:"})
    shop.work(passes_ms=1500)

    for command in (("list",), ("show", run_id), ("status", run_id)):
        said = run(*command, *APP)
        assert r"\x1b[31mred\x1b]0;title\x07\r\n[bold]not bold[/bold] :smile:" in said.out
        assert not set(said.out) & {"\x1b", "\x07", "\r"}


def test_status_in_words_and_as_json(run, shop):
    succeeds, fails = shop.start("job:double", {"x": 4}), shop.start("job:fail", max_failures=0)

    assert (run("status", *APP, succeeds).out, run("status", *APP, succeeds).code) == ("in progress\n", 0)
    assert run("status", *APP, succeeds, "--json").json == {"type": "inProgress"}
    shop.work()
    assert run("status", *APP, succeeds).out == "succeeded: 8\n"
    assert from_json(run("status", *APP, succeeds, "--json").out) == Completed(Success(8))
    assert run("status", *APP, fails).out == "failed: ConnectionError: refused\n"


def test_cancel_says_no_to_a_run_that_has_completed(run, shop):
    run_id = shop.start("job:double", {"x": 4})

    assert (run("cancel", *APP, run_id).code, run("status", *APP, run_id).out) == (0, "canceled\n")
    again = run("cancel", *APP, run_id)
    assert (again.code, again.out) == (1, "")
    assert again.err == f"run {run_id} had already completed, and is unchanged: canceled\n"
    as_json = run("cancel", *APP, run_id, "--json")
    assert (as_json.code, as_json.json) == (1, {"canceled": False})


def test_bulk_cancel_and_retry_by_filter(run, shop):
    mail = shop.start("job:double", {"x": 1}, queue="mail")
    others = [shop.start("job:double", {"x": 1}), shop.start("job:fail")]

    assert run("cancel", *APP, "--queue", "mail").out == "canceled 1 run\n"
    assert run("cancel", *APP, "--action", "job:double", "--json").json == {"canceled": 1}
    assert run("cancel", *APP, "--all").out == "canceled 1 run\n"
    assert run("cancel", *APP, "--all").code == 0
    assert run("retry", *APP, "--action", "job:double", "--queue", "mail", "--json").json == {"retried": 1}
    assert run("status", *APP, mail).out == "in progress\n"
    assert run("retry", *APP, "--all").out == "started 2 runs afresh\n"
    assert [run("status", *APP, one).out for one in others] == ["in progress\n"] * 2


def test_retry_starts_a_failed_run_afresh_and_says_no_to_a_success(run, shop):
    fails, succeeds = shop.start("job:fail", max_failures=0), shop.start("job:double", {"x": 4})
    shop.work()

    done = run("retry", *APP, fails, "--json")
    refused = run("retry", *APP, succeeds)

    assert (done.code, done.json) == (0, {"runId": fails})
    assert run("status", *APP, fails).out == "in progress\n"
    assert refused.code == 1
    assert refused.err.startswith(f"Error: run {succeeds} has succeeded")


def test_cleanup_removes_what_has_completed_only(run, shop):
    waits, done = shop.start("job:unknown", {}), shop.start("job:double", {"x": 4})
    shop.work()

    refused = run("cleanup", *APP, waits)

    assert (refused.code, refused.out) == (1, "")
    assert refused.err == f"Error: run {waits} has not completed (it is pending): wait for it, or cancel it first\n"
    assert (run("cleanup", *APP, done).code, run("status", *APP, done).code) == (0, 1)


def test_cleanup_gives_up_a_callback_only_if_told(run, shop):
    owes = shop.start("job:double", {"x": 4}, on_complete="job:note", context="no")
    shop.work()

    refused = [run(command, *APP, owes) for command in ("cleanup", "retry")]
    assert [(said.code, said.out, said.err) for said in refused] == 2 * [
        (
            1,
            "",
            f"Error: run {owes} has completed, but its callback 'job:note' is still pending: wait until it has "
            f"committed, or give it up with `action-retrier cleanup {owes} --discard-callback`\n",
        )
    ]
    assert run("cleanup", *APP, owes, "--discard-callback", "--json").json == {"removed": owes}
    assert run("show", *APP, owes).code == 1


@pytest.mark.parametrize("command", ["show", "status", "cancel", "retry", "cleanup"])
@pytest.mark.parametrize("run_id", [UNKNOWN, "nonsense", "7'; DROP TABLE action_retrier_runs; --"])
def test_an_unknown_run_is_a_no_on_one_line(run, shop, command, run_id):
    shop.start("job:double", {"x": 4})

    said = run(command, *APP, run_id)

    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("Error: no run has the id ")
    assert said.err.count("\n") == 1
    assert len(run("list", *APP, "--json").json["runs"]) == 1
