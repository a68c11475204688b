"""`ActionRetrier`: what users call."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar, Unpack

from ._calls import Call, Calls
from ._functions import Action, Bound, Mutation
from ._ops.starts import may_wait
from ._policy import CallOptions, PolicyOptions
from ._statements import Op
from ._targets import asks_for_ctx
from .app import App
from .results import Page, Run, RunResult, RunStatus

T = TypeVar("T")
AnyAction = Action[..., ..., Any] | Bound | str
AnyMutation = Mutation[..., Any] | str
WRITE_PATIENCE_S: Final = 30.0


def make_calls(app: App, options: Mapping[str, Any]) -> Calls:
    """Check what a retrier is made of. Raises TypeError or ValueError."""
    if not isinstance(app, App):
        raise TypeError(f"app must be an App, not {app!r:.80}")
    return Calls(app, options)


@asks_for_ctx
class ActionRetrier:
    """
    Starts runs, and answers for them. Every method takes as *ctx* what holds its transaction.

    Args:
        app: The database and the functions.
        options: Defaults of this retrier's runs, see `RetryPolicy`.

    Raises:
        ValueError, TypeError: An option is out of range, of the wrong type or unknown.
    """

    def __init__(self, app: App, **options: Unpack[PolicyOptions]) -> None:
        self._calls = make_calls(app, options)

    async def run(
        self,
        ctx: object,
        action: AnyAction,
        args: Mapping[str, Any] | None = None,
        *,
        on_complete: AnyMutation | None = None,
        context: object = None,
        **options: Unpack[CallOptions],
    ) -> str:
        """
        Start a run: the action is executed, and retried on failure, until it succeeds or gives up.

        Args:
            ctx: What holds the transaction: the app, an ``ActionCtx``, a ``MutationCtx``, or an open
                handle on the same database. Nothing starts before that transaction commits.
            action: The decorated function, a bind, or a registered name.
            args: Its arguments by name, checked against its signature.
            on_complete: A mutation, or its name: its writes commit exactly once for this run.
            context: A value for *on_complete*, which JSON can carry.
            options: See `RetryPolicy`; and ``idempotency_key``: a second run with it returns the first one's id.

        Returns:
            The id of the run. The action's result is in its status, once it has one.

        Raises:
            InvalidArguments, PayloadTooLarge, UnknownFunction, IdempotencyConflict, InvalidContext
            ValueError, TypeError: A wrong option.
        """
        start = self._calls.start(Call(action, args, on_complete=on_complete, context=context, **options))
        (run_id,) = await self._write(ctx, lambda: self._calls.start_op([start]), apart=may_wait([start]))
        return run_id

    async def run_at(
        self,
        ctx: object,
        when: datetime | float,
        action: AnyAction,
        args: Mapping[str, Any] | None = None,
        *,
        on_complete: AnyMutation | None = None,
        context: object = None,
        **options: Unpack[CallOptions],
    ) -> str:
        """
        Start a run that is due at *when*; otherwise like `run`.

        Args:
            when: An aware datetime, or milliseconds since the epoch. The past means now.

        Raises:
            ValueError: *when* is naive, or a number so small that it looks like seconds.
        """
        call = Call(action, args, on_complete=on_complete, context=context, **options)
        start = self._calls.start_at(when, call)
        (run_id,) = await self._write(ctx, lambda: self._calls.start_op([start]), apart=may_wait([start]))
        return run_id

    async def run_after(
        self,
        ctx: object,
        delay_ms: float,
        action: AnyAction,
        args: Mapping[str, Any] | None = None,
        *,
        on_complete: AnyMutation | None = None,
        context: object = None,
        **options: Unpack[CallOptions],
    ) -> str:
        """Start a run that is due *delay_ms* milliseconds from now; otherwise like `run`."""
        call = Call(action, args, on_complete=on_complete, context=context, **options)
        start = self._calls.start_after(delay_ms, call)
        (run_id,) = await self._write(ctx, lambda: self._calls.start_op([start]), apart=may_wait([start]))
        return run_id

    async def run_many(self, ctx: object, calls: Iterable[Call]) -> list[str]:
        """Start many runs at once, all or none of them, and return their ids in order."""
        starts = self._calls.start_many(calls)
        return await self._write(ctx, lambda: self._calls.start_op(starts), apart=may_wait(starts))

    async def status(self, ctx: object, run_id: str) -> RunStatus:
        """
        Tell whether a run has ended, and how.

        Raises:
            RunNotFound: No run has this id.
        """
        return await self._read(ctx, lambda: self._calls.status(run_id))

    async def wait(self, ctx: object, run_id: str, *, timeout_ms: float | None = None) -> RunResult:
        """
        Wait until a run has ended, and return its result.

        Args:
            timeout_ms: Give up after this; None never does. The run goes on. It counts by the App's clock: under a
                `ManualClock` it is over when the test has moved that.

        Raises:
            RunNotFound: No run has this id.
            TimeoutError: It has not ended in time.
            InvalidContext: Inside a transaction: the run could not start before its commit.
        """
        self._calls.targets.refuse_to_wait(ctx, "async")
        database, event = self._calls.database, asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(event.set)

        with self._calls.waiting(wake, run_id, timeout_ms) as waiting:
            # Through a connection of ours: a handle of the user's would be left with a transaction open meanwhile.
            while (result := waiting.result_of(await database.read(lambda: self._calls.status(run_id)))) is None:
                timer = loop.call_later(waiting.pause_s(), event.set)
                await event.wait()
                timer.cancel()
                event.clear()
            return result

    async def get(self, ctx: object, run_id: str) -> Run:
        """
        Return everything known about a run.

        Raises:
            RunNotFound: No run has this id.
        """
        return self._calls.run_of(*await self._read(ctx, lambda: self._calls.get(run_id)))

    async def list(
        self,
        ctx: object,
        *,
        state: str | None = None,
        action: AnyAction | None = None,
        queue: str | None = None,
        callback: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """
        List runs, newest first.

        Args:
            state: ``pending``, ``running``, ``succeeded``, ``failed`` or ``canceled``; None means any.
            callback: ``none``, ``pending`` or ``done``; None means any.
            limit: At most so many, up to 1000.
            cursor: Of the page before; None starts with the newest run.
        """
        asked = self._calls.listing(
            state=state, action=action, queue=queue, callback=callback, limit=limit, cursor=cursor
        )
        return self._calls.page_of(limit, *await self._read(ctx, asked))

    async def cancel(self, ctx: object, run_id: str) -> bool:
        """
        Cancel a run.

        Returns:
            True: this call canceled it, and every later status says so, whatever a still
            executing attempt does. False: it had already completed, and is unchanged.

        Raises:
            RunNotFound: No run has this id.
        """
        return await self._write(ctx, lambda: self._calls.cancel(run_id))

    async def cancel_all(
        self,
        ctx: object,
        *,
        action: AnyAction | None = None,
        queue: str | None = None,
        everything: bool = False,
    ) -> int:
        """
        Cancel all runs in progress that the filter names, and return how many.

        Raises:
            ValueError: Neither a filter nor ``everything=True``.
        """
        which = self._calls.which("cancel_all", action=action, queue=queue, everything=everything)
        return await self._write(ctx, lambda: self._calls.cancel_all(which))

    async def cleanup(self, ctx: object, run_id: str, *, discard_callback: bool = False) -> None:
        """
        Remove a completed run and its history now.

        Args:
            discard_callback: Also where the callback has not committed: it never will.

        Raises:
            RunNotFound: No run has this id.
            RunInProgress: It has not completed, or its callback is pending.
        """
        discarded = await self._write(ctx, lambda: self._calls.cleanup(run_id, discard_callback=discard_callback))
        self._calls.tell_of_discarded(run_id, discarded=discarded)

    async def retry(self, ctx: object, run_id: str) -> str:
        """
        Start a failed or canceled run afresh, under the same id; make one that backs off due now.

        Raises:
            RunNotFound: No run has this id.
            RunSucceeded: It has succeeded.
            RunInProgress: It executes, or its callback is pending.
        """
        return await self._write(ctx, lambda: self._calls.retry(run_id))

    async def retry_all(
        self,
        ctx: object,
        *,
        action: AnyAction | None = None,
        queue: str | None = None,
        everything: bool = False,
    ) -> int:
        """
        Start all failed and canceled runs that the filter names afresh, and return how many.

        Raises:
            ValueError: Neither a filter nor ``everything=True``.
        """
        which = self._calls.which("retry_all", action=action, queue=queue, everything=everything)
        return await self._write(ctx, lambda: self._calls.retry_all(which))

    async def _write(self, ctx: object, make: Callable[[], Op[T]], *, apart: bool = True) -> T:
        target = self._calls.targets.find(ctx, "async", writes=True)
        if target is None:
            return await self._calls.database.write(make, patience_s=WRITE_PATIENCE_S, apart=apart)
        return await target.run(make())

    async def _read(self, ctx: object, make: Callable[[], Op[T]]) -> T:
        target = self._calls.targets.find(ctx, "async", writes=False)
        if target is None:
            return await self._calls.database.read(make)
        return await target.run(make())
