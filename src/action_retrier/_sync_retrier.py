"""`SyncActionRetrier`: what `ActionRetrier` does, for programs without an event loop."""

import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, ParamSpec, TypeVar, Unpack

from ._calls import Call
from ._ops.starts import may_wait
from ._policy import CallOptions, PolicyOptions
from ._statements import Op
from ._targets import asks_for_ctx
from .app import App
from .results import Page, Run, RunResult, RunStatus
from .retrier import WRITE_PATIENCE_S, ActionRetrier, AnyAction, AnyMutation, make_calls

T = TypeVar("T")
P = ParamSpec("P")


def _like(twin: Callable[..., Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Give a method the docstring of its twin: one text for both colours."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        method.__doc__ = twin.__doc__
        return method

    return decorate


@asks_for_ctx
class SyncActionRetrier:
    """
    `ActionRetrier` for programs without an event loop: the same names and promises, and its calls block.

    Args:
        app: The database and the functions.
        options: Defaults of this retrier's runs, see `RetryPolicy`.

    Raises:
        ValueError, TypeError: An option is out of range, of the wrong type or unknown.
    """

    def __init__(self, app: App, **options: Unpack[PolicyOptions]) -> None:
        self._calls = make_calls(app, options)

    @_like(ActionRetrier.run)
    def run(
        self,
        ctx: object,
        action: AnyAction,
        args: Mapping[str, Any] | None = None,
        *,
        on_complete: AnyMutation | None = None,
        context: object = None,
        **options: Unpack[CallOptions],
    ) -> str:
        start = self._calls.start(Call(action, args, on_complete=on_complete, context=context, **options))
        (run_id,) = self._write(ctx, lambda: self._calls.start_op([start]), apart=may_wait([start]))
        return run_id

    @_like(ActionRetrier.run_at)
    def run_at(
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
        call = Call(action, args, on_complete=on_complete, context=context, **options)
        start = self._calls.start_at(when, call)
        (run_id,) = self._write(ctx, lambda: self._calls.start_op([start]), apart=may_wait([start]))
        return run_id

    @_like(ActionRetrier.run_after)
    def run_after(
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
        call = Call(action, args, on_complete=on_complete, context=context, **options)
        start = self._calls.start_after(delay_ms, call)
        (run_id,) = self._write(ctx, lambda: self._calls.start_op([start]), apart=may_wait([start]))
        return run_id

    @_like(ActionRetrier.run_many)
    def run_many(self, ctx: object, calls: Iterable[Call]) -> list[str]:
        starts = self._calls.start_many(calls)
        return self._write(ctx, lambda: self._calls.start_op(starts), apart=may_wait(starts))

    @_like(ActionRetrier.status)
    def status(self, ctx: object, run_id: str) -> RunStatus:
        return self._read(ctx, lambda: self._calls.status(run_id))

    @_like(ActionRetrier.wait)
    def wait(self, ctx: object, run_id: str, *, timeout_ms: float | None = None) -> RunResult:
        self._calls.targets.refuse_to_wait(ctx, "sync")
        database, event = self._calls.database, threading.Event()
        with self._calls.waiting(event.set, run_id, timeout_ms) as waiting:
            # Through a connection of ours: a handle of the user's would be left with a transaction open meanwhile.
            while (result := waiting.result_of(database.read_sync(lambda: self._calls.status(run_id)))) is None:
                event.wait(waiting.pause_s())
                event.clear()
            return result

    @_like(ActionRetrier.get)
    def get(self, ctx: object, run_id: str) -> Run:
        return self._calls.run_of(*self._read(ctx, lambda: self._calls.get(run_id)))

    @_like(ActionRetrier.list)
    def list(
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
        asked = self._calls.listing(
            state=state, action=action, queue=queue, callback=callback, limit=limit, cursor=cursor
        )
        return self._calls.page_of(limit, *self._read(ctx, asked))

    @_like(ActionRetrier.cancel)
    def cancel(self, ctx: object, run_id: str) -> bool:
        return self._write(ctx, lambda: self._calls.cancel(run_id))

    @_like(ActionRetrier.cancel_all)
    def cancel_all(
        self,
        ctx: object,
        *,
        action: AnyAction | None = None,
        queue: str | None = None,
        everything: bool = False,
    ) -> int:
        which = self._calls.which("cancel_all", action=action, queue=queue, everything=everything)
        return self._write(ctx, lambda: self._calls.cancel_all(which))

    @_like(ActionRetrier.cleanup)
    def cleanup(self, ctx: object, run_id: str, *, discard_callback: bool = False) -> None:
        discarded = self._write(ctx, lambda: self._calls.cleanup(run_id, discard_callback=discard_callback))
        self._calls.tell_of_discarded(run_id, discarded=discarded)

    @_like(ActionRetrier.retry)
    def retry(self, ctx: object, run_id: str) -> str:
        return self._write(ctx, lambda: self._calls.retry(run_id))

    @_like(ActionRetrier.retry_all)
    def retry_all(
        self,
        ctx: object,
        *,
        action: AnyAction | None = None,
        queue: str | None = None,
        everything: bool = False,
    ) -> int:
        which = self._calls.which("retry_all", action=action, queue=queue, everything=everything)
        return self._write(ctx, lambda: self._calls.retry_all(which))

    def _write(self, ctx: object, make: Callable[[], Op[T]], *, apart: bool = True) -> T:
        target = self._calls.targets.find(ctx, "sync", writes=True)
        if target is None:
            return self._calls.database.write_sync(make, patience_s=WRITE_PATIENCE_S, apart=apart)
        return target.run_sync(make())

    def _read(self, ctx: object, make: Callable[[], Op[T]]) -> T:
        target = self._calls.targets.find(ctx, "sync", writes=False)
        if target is None:
            return self._calls.database.read_sync(make)
        return target.run_sync(make())
