"""What is let go of when its owner is forgotten: once, and never by whoever the garbage collector interrupts."""

import gc
import subprocess
import sys
import textwrap
import threading

from action_retrier._endings import Ending

LIMIT_S = 10


class Owner:
    """Somebody with something open."""


def test_it_is_done_once_when_asked_for() -> None:
    done: list[int] = []
    owner = Owner()
    ending = Ending(owner, lambda: done.append(threading.get_ident()))
    ending.now()
    ending.now()
    del owner
    gc.collect()

    assert done == [threading.get_ident()]


def test_whoever_collects_the_garbage_does_not_wait_for_it() -> None:
    """It may hold the very lock that the end waits for."""
    held, done = threading.Lock(), threading.Event()

    def end() -> None:
        with held:
            done.set()

    owner = Owner()
    Ending(owner, end)
    with held:
        del owner
        gc.collect()
        assert not done.is_set()
    assert done.wait(LIMIT_S)


def test_one_that_fails_does_not_keep_the_next_from_its_end() -> None:
    done = threading.Event()
    first, second = Owner(), Owner()
    Ending(first, lambda: 1 // 0)
    Ending(second, done.set)
    del first
    del second

    assert done.wait(LIMIT_S)


def test_what_is_left_is_done_when_the_interpreter_ends() -> None:
    program = """
        from action_retrier._endings import Ending

        class Owner: ...

        owner = Owner()
        Ending(owner, lambda: print("done", flush=True))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True, timeout=LIMIT_S
    )

    assert ended.stdout == "done\n"


def test_a_child_leaves_to_its_parent_what_is_its_parents() -> None:
    program = """
        import os
        from action_retrier._endings import Ending

        class Owner: ...

        owner = Owner()
        Ending(owner, lambda: print("done", flush=True))
        if os.fork() == 0:
            del owner
            raise SystemExit
        os.wait()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True, timeout=LIMIT_S
    )

    assert ended.stdout == "done\n"
