"""The demo as a whole: real processes, one of them killed, and a verdict that can say no."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from action_retrier.demo.run import Demo

pytestmark = [pytest.mark.crash, pytest.mark.slow]

DEMO = [sys.executable, "-m", "action_retrier", "demo"]


def test_the_demo_holds_and_keeps_what_it_is_asked_to(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    done = subprocess.run([*DEMO, "--json", "--keep"], capture_output=True, text=True, timeout=60, check=False)
    verdict = json.loads(done.stdout)

    assert [check for check in verdict["checks"] if not check["ok"]] == []
    assert (done.returncode, verdict["ok"]) == (0, True)
    figures = verdict["figures"]
    assert (figures["events"], figures["rolledBack"], figures["failedForGood"], figures["canceled"]) == (
        427,
        12,
        12,
        14,
    )
    assert figures["callbacks"] == figures["started"] == 415
    assert figures["attemptsLost"] > 0
    assert figures["extraDeliveries"] >= 24
    assert verdict["seconds"] <= 30
    (folder,) = tmp_path.iterdir()
    assert verdict["database"] == f"sqlite:///{folder / 'demo.db'}"
    assert (folder / "demo.db").exists()


def test_the_demo_holds_on_postgresql():
    """Its tables, and ours, are in a server that is there for as long as the demo."""
    beside = [sys.executable, str(Path(__file__).parents[2] / "tools" / "with_postgres.py")]

    done = subprocess.run(
        [*beside, *DEMO, "--json", "--database", "{url}"], capture_output=True, text=True, timeout=90, check=False
    )
    verdict = json.loads(done.stdout)

    assert [check for check in verdict["checks"] if not check["ok"]] == []
    assert (done.returncode, verdict["ok"]) == (0, True)
    assert verdict["database"].startswith("postgresql://")
    assert verdict["figures"]["callbacks"] == verdict["figures"]["started"] == 415


def test_what_it_prints_can_be_followed(tmp_path, monkeypatch):
    """No log lines, no long silence, nothing told again and again, and the kill where one sees it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("ACTION_RETRIER_LOG_LEVEL", raising=False)

    done = subprocess.run([*DEMO, "--keep"], capture_output=True, text=True, timeout=60, check=False)

    lines = done.stdout.splitlines()
    happenings = [line for line in lines if re.match(r" *[\d.]+ s  ", line)]
    told = [line.split(" s  ", 1)[1] for line in happenings]
    times = [float(line.split()[0]) for line in happenings]
    (folder,) = tmp_path.iterdir()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].startswith("427 webhooks go to a receiver")
    assert max(map(len, lines[:2])) < 80
    assert lines[2] == ""
    assert [line for line in told if "SIGKILL" in line] == [
        line for line in told if line.startswith("SIGKILL: worker ")
    ]
    assert sum("SIGKILL" in line for line in told) == 1
    assert told.count("an order rolled back, and its webhook with it") == 1
    assert any(
        "in all: " in line and "an order rolled back, and its webhook with it (12 times)" in line for line in told
    )
    assert max(later - earlier for earlier, later in pairwise(times)) < 3
    assert f"  action-retrier list --database sqlite:///{folder}/demo.db" in lines
    assert f"  ls {folder}" in lines
    assert (folder / "demo.db").stat().st_mode & 0o777 == 0o600
    for name in ("ledger.jsonl", "callback-tries", "shop.log", "receiver.log", "worker-1.log", "worker-3.log"):
        assert (folder / name).exists()


def test_a_line_torn_from_the_ledger_makes_it_say_no(tmp_path, monkeypatch, capsys):
    class Sabotaged(Demo):
        def collect(self, *witnesses):
            evidence = super().collect(*witnesses)
            effect = next(line for line in evidence.ledger if line.effect and line.answer == "200")
            return replace(evidence, ledger=tuple(line for line in evidence.ledger if line is not effect))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    code = Sabotaged(keep=False, seed=2, json=True, database=None).run()
    verdict = json.loads(capsys.readouterr().out)

    assert (code, verdict["ok"]) == (1, False)
    assert [check["name"] for check in verdict["checks"] if not check["ok"]] == ["delivered as reported"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_nothing_behind(tmp_path, monkeypatch, number):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        started = next(line for line in demo.stdout if "started" in line)
        children = psutil.Process(demo.pid).children(recursive=True)

        demo.send_signal(number)
        demo.communicate(timeout=20)

    assert "shop" in started
    assert len(children) >= 4
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert demo.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_database_with_orders_of_its_own_is_left_alone(tmp_path):
    database = tmp_path / "theirs.db"
    with closing(sqlite3.connect(database)) as theirs:
        theirs.execute("CREATE TABLE orders (id integer)")
    before = database.read_bytes()

    done = subprocess.run(
        [*DEMO, "--database", f"sqlite:///{database}"], capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 2
    assert "has a table 'orders' already" in done.stderr
    assert database.read_bytes() == before
