"""Leases on SQLite: the lock tells a death at once, the time stamp tells a process that was stopped."""

import asyncio
import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from action_retrier._ids import new_worker_id
from action_retrier.drivers.sqlite import leases as module
from action_retrier.drivers.sqlite.leases import LEASE_US, MARGIN_US, SqliteLeases
from action_retrier.drivers.sqlite.locks import held_here, lock_file, used_lock_file
from action_retrier.errors import DatabaseUnavailable

from .boot import HEARTBEAT_US, Boot


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Boot:
    boot = Boot()
    monkeypatch.setattr(module, "boot_time_us", boot)
    return boot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "app.db-workers"


@pytest.fixture
def leases(boot: Boot, folder: Path) -> SqliteLeases:
    return SqliteLeases(folder)


@pytest.fixture
def hold(leases: SqliteLeases) -> Iterator[Callable[[], str]]:
    """Take the lease of a fresh worker of this process; it ends with the test."""
    held = []

    def acquire() -> str:
        held.append(new_worker_id())
        leases.acquire(held[-1])
        return held[-1]

    yield acquire
    for worker in held:
        leases.release(worker)


class Elsewhere:
    """Another process that holds a worker's lease until it is killed or told to let go."""

    def __init__(self, folder: Path, boot: Boot) -> None:
        self.worker = new_worker_id()
        program = f"""
            from pathlib import Path
            from action_retrier.drivers.sqlite import leases
            leases.boot_time_us = lambda: {boot.now_us}
            held = leases.SqliteLeases(Path({str(folder)!r}))
            held.acquire({self.worker!r})
            print("held", flush=True)
            input()
            held.release({self.worker!r})
            print("released", flush=True)
            input()
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def release(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "released\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def elsewhere(folder: Path, boot: Boot) -> Iterator[Elsewhere]:
    elsewhere = Elsewhere(folder, boot)
    yield elsewhere
    elsewhere.close()


def dead(leases: SqliteLeases, workers: list[str]) -> list[str]:
    return asyncio.run(leases.dead(workers))


def silent(leases: SqliteLeases, workers: list[str]) -> list[str]:
    return asyncio.run(leases.silent(workers))


def beat(leases: SqliteLeases, boot: Boot, worker: str, times: int = 4) -> None:
    """Let time pass, with a heartbeat every three seconds."""
    for _ in range(times):
        boot.now_us += HEARTBEAT_US
        assert leases.renew(worker)


def test_a_worker_that_holds_its_lease_lives(leases: SqliteLeases, hold: Callable[[], str]) -> None:
    """I1: a living worker's runs are nobody else's business."""
    worker = hold()

    assert dead(leases, [worker]) == []
    assert dead(SqliteLeases(leases._directory), [worker]) == []


def test_the_files_are_the_owners_alone(leases: SqliteLeases, hold: Callable[[], str], folder: Path) -> None:
    hold()

    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


def test_another_process_that_holds_its_lease_lives(leases: SqliteLeases, elsewhere: Elsewhere) -> None:
    """Looking must not take the lock, nor drop it."""
    for _ in range(3):
        assert dead(leases, [elsewhere.worker]) == []


def test_a_killed_process_is_dead_at_once(leases: SqliteLeases, elsewhere: Elsewhere) -> None:
    """I1: its recovery is due; no lease has to run out first."""
    elsewhere.kill()

    assert dead(leases, [elsewhere.worker]) == [elsewhere.worker]
    assert dead(leases, [elsewhere.worker]) == [elsewhere.worker]


def test_a_worker_that_died_before_it_had_a_row_is_asked_after(
    leases: SqliteLeases, elsewhere: Elsewhere, hold: Callable[[], str], folder: Path
) -> None:
    """Nobody else would remove its file, ever."""
    hold()
    assert leases.left_behind() == []
    elsewhere.kill()
    left = folder / f"{elsewhere.worker}.lock"
    long_ago = time.time() - LEASE_US / 1e6 - 1
    os.utime(left, (long_ago, long_ago))

    assert leases.left_behind() == [elsewhere.worker]
    left.unlink()
    assert leases.left_behind() == []


def test_a_recovered_worker_leaves_no_file(leases: SqliteLeases, elsewhere: Elsewhere, folder: Path) -> None:
    elsewhere.kill()
    assert [file.name for file in folder.iterdir()] == [f"{elsewhere.worker}.lock"]

    leases.forget(elsewhere.worker)
    leases.forget(elsewhere.worker)

    assert list(folder.iterdir()) == []


def test_forgetting_does_not_touch_a_worker_of_this_process(
    leases: SqliteLeases, hold: Callable[[], str], folder: Path
) -> None:
    worker = hold()

    leases.forget(worker)

    assert [file.name for file in folder.iterdir()] == [f"{worker}.lock"]


def test_a_silent_process_is_dead_after_one_lease(
    leases: SqliteLeases, boot: Boot, elsewhere: Elsewhere, hold: Callable[[], str]
) -> None:
    """A stopped process keeps its lock: the stamp tells, to the microsecond."""
    own = hold()
    stamped = boot.now_us
    beat(leases, boot, own, 3)
    boot.now_us = stamped + LEASE_US
    assert leases.renew(own)
    assert dead(leases, [elsewhere.worker]) == []

    boot.now_us += 1

    assert dead(leases, [elsewhere.worker]) == [elsewhere.worker]


def test_who_has_no_lease_of_its_own_does_not_judge_silence(
    leases: SqliteLeases, boot: Boot, elsewhere: Elsewhere
) -> None:
    """After an outage everybody is silent: only a free lock is proof."""
    boot.now_us += 100 * LEASE_US
    assert dead(leases, [elsewhere.worker]) == []

    elsewhere.kill()
    assert dead(leases, [elsewhere.worker]) == [elsewhere.worker]


def test_silence_is_judged_only_after_one_lease_without_a_gap(
    leases: SqliteLeases, boot: Boot, elsewhere: Elsewhere, hold: Callable[[], str]
) -> None:
    """A machine that was suspended wakes up with everybody silent, the judge included."""
    own = hold()
    beat(leases, boot, own)
    boot.now_us += 10 * LEASE_US
    assert not leases.renew(own)
    assert dead(leases, [elsewhere.worker]) == []

    beat(leases, boot, own, 3)
    assert dead(leases, [elsewhere.worker]) == []
    beat(leases, boot, own, 1)
    assert dead(leases, [elsewhere.worker]) == [elsewhere.worker]


@pytest.mark.parametrize(("gap_us", "kept"), [(LEASE_US - MARGIN_US - 1, True), (LEASE_US - MARGIN_US, False)])
def test_a_worker_that_could_not_renew_fences_itself_before_others_do(
    leases: SqliteLeases, boot: Boot, hold: Callable[[], str], gap_us: int, *, kept: bool
) -> None:
    """I2: two seconds before its lease ends it considers it lost."""
    worker = hold()
    boot.now_us += gap_us

    assert leases.renew(worker) is kept
    assert leases.renew(worker)


def test_a_silent_worker_of_this_process_is_judged_by_its_heartbeat(
    leases: SqliteLeases, boot: Boot, hold: Callable[[], str]
) -> None:
    """Its lock says nothing, since the process holds it, and a probe would drop it."""
    quiet, own = hold(), hold()
    beat(leases, boot, own, 3)
    assert dead(leases, [quiet, own]) == []
    beat(leases, boot, own, 1)

    assert dead(leases, [quiet, own]) == [quiet]


def test_a_released_lease_leaves_no_file_and_no_lock(leases: SqliteLeases, elsewhere: Elsewhere, folder: Path) -> None:
    elsewhere.release()

    assert list(folder.iterdir()) == []


def test_a_lease_that_ended_without_a_sign_off_shows_at_once(
    leases: SqliteLeases, hold: Callable[[], str], folder: Path
) -> None:
    """Its row is still there, so its file stays until somebody has recovered what was its."""
    worker = hold()
    leases.release(worker, signed_off=False)

    assert dead(leases, [worker]) == [worker]
    assert [file.name for file in folder.iterdir()] == [f"{worker}.lock"]

    leases.forget(worker)
    assert list(folder.iterdir()) == []


def test_a_lease_is_released_once(leases: SqliteLeases, folder: Path) -> None:
    """A heartbeat that has ended by itself, and is stopped afterwards, ends nobody else's."""
    worker = new_worker_id()
    leases.acquire(worker)
    leases.release(worker, signed_off=False)

    leases.release(worker)

    assert [file.name for file in folder.iterdir()] == [f"{worker}.lock"]


def test_a_lease_that_another_process_holds_is_nobodys_to_take(leases: SqliteLeases, elsewhere: Elsewhere) -> None:
    """An id that is not unique, or a file that somebody has put in the place of ours."""
    with pytest.raises(RuntimeError, match="is locked by another process"):
        leases.acquire(elsewhere.worker)
    assert not leases.renew(elsewhere.worker)

    leases.release(elsewhere.worker, signed_off=False)


def test_a_worker_without_a_file_is_given_the_time_to_notice(leases: SqliteLeases, boot: Boot, folder: Path) -> None:
    """Somebody removed the files of a living worker: it makes a new one at its next heartbeat."""
    worker = new_worker_id()
    folder.mkdir()
    assert dead(leases, [worker]) == []
    boot.now_us += LEASE_US
    assert dead(leases, [worker]) == []

    boot.now_us += 1

    assert dead(leases, [worker]) == [worker]


def test_a_removed_file_is_made_again_by_the_next_heartbeat(
    leases: SqliteLeases, boot: Boot, hold: Callable[[], str], folder: Path
) -> None:
    worker = hold()
    (folder / f"{worker}.lock").unlink()
    boot.now_us += HEARTBEAT_US

    assert leases.renew(worker)

    assert [file.name for file in folder.iterdir()] == [f"{worker}.lock"]
    assert dead(leases, [worker]) == []


@pytest.mark.parametrize("content", ["", "nonsense", "\0" * 20])
def test_an_unreadable_stamp_is_no_proof(
    leases: SqliteLeases, boot: Boot, elsewhere: Elsewhere, hold: Callable[[], str], folder: Path, content: str
) -> None:
    """Killing on a guess is worse than waiting: the lock is still held."""
    own = hold()
    path = folder / f"{elsewhere.worker}.lock"
    with path.open("r+b", buffering=0) as file:
        os.ftruncate(file.fileno(), 0)
        file.write(content.encode())
    beat(leases, boot, own, 5)

    assert dead(leases, [elsewhere.worker]) == []


def test_nobody_is_dead_where_nobody_is(leases: SqliteLeases) -> None:
    assert dead(leases, []) == []


def test_a_worker_that_gives_no_sign_is_told_to_people_even_by_one_that_may_not_judge(
    folder: Path, boot: Boot, elsewhere: Elsewhere
) -> None:
    """A doctor has no lease of its own, and so takes nobody for dead whose lock is held."""
    doctor = SqliteLeases(folder)
    boot.now_us += LEASE_US
    assert silent(doctor, [elsewhere.worker]) == []
    boot.now_us += 1
    assert silent(doctor, [elsewhere.worker]) == [elsewhere.worker]
    assert dead(doctor, [elsewhere.worker]) == []


def test_a_directory_for_leases_that_cannot_be_made_is_told_with_the_remedy(folder: Path) -> None:
    folder.touch()

    with pytest.raises(DatabaseUnavailable, match="app.db-workers cannot be made .*check what is there"):
        SqliteLeases(folder).acquire(new_worker_id())


def test_a_lease_that_cannot_be_written_leaves_no_file_and_no_descriptor(
    leases: SqliteLeases, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk it is tried again and again, each time under another id."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    worker = new_worker_id()

    with pytest.raises(DatabaseUnavailable, match=r"cannot be written \(No space left on device\).*disk is full"):
        leases.acquire(worker)

    assert list(folder.iterdir()) == []
    assert not held_here(folder / f"{worker}.lock")


def test_nobody_is_judged_by_one_who_has_just_been_woken_up(
    leases: SqliteLeases, boot: Boot, hold: Callable[[], str], elsewhere: Elsewhere
) -> None:
    """After the machine has slept everybody is silent, and who looks first must not take all others for dead."""
    beat(leases, boot, hold())
    assert dead(leases, [elsewhere.worker]) == [elsewhere.worker]  # it has not renewed since
    other = SqliteLeases(leases._directory)
    own = hold()
    beat(leases, boot, own)
    boot.now_us += 6 * LEASE_US

    assert dead(leases, [elsewhere.worker]) == []
    assert dead(other, [elsewhere.worker]) == []


def test_a_deadlock_that_the_kernel_only_suspects_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts by process: two databases, two processes and four unrelated threads look like a deadlock to it."""
    asked = []
    lockf = fcntl.lockf

    def suspicious(descriptor: int, how: int) -> None:
        asked.append(how)
        if len(asked) < 3:
            raise OSError(errno.EDEADLK, "Resource deadlock avoided")
        lockf(descriptor, how)

    with used_lock_file(tmp_path / "gate"):
        file = lock_file(tmp_path / "gate")
        monkeypatch.setattr(fcntl, "lockf", suspicious)
        file.acquire(file)
        monkeypatch.undo()
        file.release(file)
    assert asked == [fcntl.LOCK_EX] * 3


@pytest.mark.parametrize(
    ("error", "words", "told_as"),
    [
        (OSError(errno.ENOLCK, "No locks available"), "No locks available", DatabaseUnavailable),
        (SystemExit("told to end"), "told to end", SystemExit),
    ],
    ids=["no locks", "told to end"],
)
def test_a_lock_that_could_not_be_taken_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str, told_as: type[BaseException]
) -> None:
    """A file system without locks, say: its error is raised, and the next try may do better."""

    def fail(*_: Any) -> None:
        raise error

    with used_lock_file(tmp_path / "gate"):
        file = lock_file(tmp_path / "gate")
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "lockf", fail)
            with pytest.raises(told_as, match=words):
                file.acquire(file)
            with pytest.raises(type(error), match=words):
                file.acquire_now()
        file.acquire(file)
        file.release(file)


def test_whoever_is_alone_looks_for_deaths_less_often(leases: SqliteLeases) -> None:
    """Each look costs an idle worker CPU; whoever comes and dies in between is found in a second or so all the same."""
    assert leases.look_again_s(alone=False) == 0
    assert 0.5 < leases.look_again_s(alone=True) <= 1
