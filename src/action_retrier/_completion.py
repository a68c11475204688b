"""
The end of a run and its callback: one transaction.

The done mark is written before the callback is called, in its transaction, under the attempt's
fence. What the callback writes commits with the mark or not at all.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Literal, NamedTuple

from ._codec import ERROR_LIMIT, clean_text, describe_exception, loads
from ._functions import Mutation
from ._lifecycle import Finish, Move, State, callback_delay_us
from ._mutations import Mutations
from ._ops.reports import (
    NO_CALLBACK,
    Applied,
    CallbackMark,
    Settled,
    apply_moves,
    finish_callback,
    postpone_callback,
)
from ._registry import Registry
from ._statements import Row
from .config import logger
from .drivers import Database, Transaction
from .results import Canceled, Failed, RunResult, Success

SHORT_S = 0.02
"""For how long callbacks that share a transaction are begun in it: what it has locked, others wait for."""
_AT_ONCE = 10  # callbacks that are called before it is asked whether that is over
_DONE = CallbackMark("done", tries=1)
_PAUSES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
Fate = Literal["written", "busy", "superseded"]
"""What became of a report; a busy run's is to be written again."""


class Report(NamedTuple):
    """
    An attempt that has ended, and what follows.

    Attributes:
        on_complete: Name of the callback that the run owes once it ends; empty without one.
        losses: Attempts in a row that died with their worker before this one. Any, and the outcome is committed
            before the callback is tried, which may have been what killed them.
    """

    run_id: str
    attempt: int
    worker: str
    move: Move
    on_complete: str = ""
    context: str | None = None
    progress: tuple[float, str] | None = None
    losses: int = 0

    @property
    def is_good_news(self) -> bool:
        """Whether the run has succeeded."""
        return isinstance(self.move, Finish) and self.move.failure is None

    @property
    def calls_back(self) -> bool:
        """Whether this end is one that the callback should share its transaction with."""
        return isinstance(self.move, Finish) and bool(self.on_complete) and not self.losses

    def settled(self, callback: CallbackMark | None = None) -> Settled:
        """Return what is written, with the callback as it turned out."""
        if callback is None:
            owes = self.on_complete and isinstance(self.move, Finish)
            callback = CallbackMark("pending", losses=self.losses) if owes else NO_CALLBACK
        return Settled(self.run_id, self.attempt, self.worker, self.move, callback, self.progress)


@dataclass(slots=True)
class _Call:
    """
    One callback of one run, however often it is called.

    Attributes:
        is_out: Whether the last call has begun and has not returned: what is raised then, the callback has raised.
    """

    is_out: bool = False

    @contextlib.contextmanager
    def out(self) -> Iterator[None]:
        """Make it in here; what it raises leaves it out."""
        self.is_out = True
        yield
        self.is_out = False


class Completion:
    """Writes reports and calls back."""

    def __init__(self, database: Database, registry: Registry, mutations: Mutations, rng: Random) -> None:
        self._database = database
        self._registry = registry
        self._mutations = mutations
        self._rng = rng

    async def write(self, reports: Sequence[Report]) -> list[Report]:
        """
        Write reports whose callbacks, if any, are not called now. All in one transaction.

        Returns:
            Those that could not be written yet: somebody's open transaction holds the runs.
        """
        settled = [report.settled() for report in reports]
        applied = await self._database.write(lambda: apply_moves(settled))
        busy = []
        for report in reports:
            fate = _fate(report, applied)
            _tell(report, fate)
            if fate == "busy":
                busy.append(report)
        return busy

    async def complete(self, reports: Sequence[Report]) -> list[Report]:
        """
        End runs and call back, in the same transaction.

        Serializable callbacks have a transaction each. Those that opted into *read committed* share one, or several if
        they take long, each in its savepoint; if a shared one fails, each is done again by itself.

        Returns:
            As `write`.
        """
        shared: list[Report] = []
        alone: list[Report] = []
        busy: list[Report] = []
        for report in reports:
            (shared if self._callback(report).isolation == "read committed" else alone).append(report)
        while len(shared) > 1:
            try:
                async with self._database.transaction("read committed") as transaction:
                    became = await self._complete_in(transaction, shared)
            except BaseException as error:
                if _is_being_canceled():
                    raise
                logger.info("a shared transaction of callbacks failed; each is done alone (%s)", type(error).__name__)
                break
            for report, fate in zip(shared, became, strict=False):
                _tell(report, fate)
                if fate == "busy":
                    busy.append(report)
            shared = shared[len(became) :]
        busy += [report for report in [*shared, *alone] if await self._complete_alone(report) == "busy"]
        return busy

    async def _complete_in(self, transaction: Transaction, reports: Sequence[Report]) -> list[Fate]:
        """End runs and call back, each in its savepoint; only the first ones, if that takes long."""
        now_s = asyncio.get_running_loop().time
        until_s, became = now_s() + SHORT_S, list[Fate]()
        for report in reports:
            if len(became) % _AT_ONCE == 0 and became and now_s() >= until_s:
                break
            became.append(await self._finish_and_call_in(transaction, report))
        return became

    async def _finish_and_call_in(self, transaction: Transaction, report: Report) -> Fate:
        call = _Call()
        try:
            async with transaction.savepoint(op_first=True):
                return await self._finish_and_call(transaction, report, call)
        except BaseException as error:
            if not transaction.is_open or _is_being_canceled() or self._database.is_transient(error):
                raise
            applied = await transaction.run(apply_moves([report.settled(self._postponed(report, error, call))]))
            return _fate(report, applied)

    async def _complete_alone(self, report: Report) -> Fate:
        call = _Call()
        try:
            fate = await self._mutations.in_transaction(
                self._callback(report), lambda transaction: self._finish_and_call(transaction, report, call)
            )
        except BaseException as error:
            if _is_being_canceled():
                raise
            # The outcome stays, and the callback alone is tried again.
            fate = await self._write_alone(report, self._postponed(report, error, call))
        _tell(report, fate)
        return fate

    async def _write_alone(self, report: Report, callback: CallbackMark) -> Fate:
        """Write the end of a run whose callback has failed; its transaction, if cut off, may end a moment later."""
        settled = report.settled(callback)
        for pause_s in _PAUSES_S:
            fate = _fate(report, await self._database.write(lambda: apply_moves([settled])))
            if fate != "busy":
                return fate
            await asyncio.sleep(pause_s)
        return "busy"

    async def _finish_and_call(self, transaction: Transaction, report: Report, call: _Call) -> Fate:
        """Write the end and call back, unless the run is not this attempt's any more, or nobody's for now."""
        call.is_out = False
        fate = _fate(report, await transaction.run(apply_moves([report.settled(_DONE)])))
        if fate == "written":
            callback = self._callback(report)
            with call.out():
                arguments = callback.callback_arguments(
                    run_id=report.run_id, result=_result(report.move), context=report.context
                )
                await self._mutations.call(transaction, callback, arguments)
        return fate

    def _postponed(self, report: Report, error: BaseException, call: _Call) -> CallbackMark:
        delay = callback_delay_us(1, self._rng)
        text, traceback = _describe(report.run_id, report.on_complete, error, call)
        return CallbackMark("pending", tries=1, delay_us=delay, error=text, traceback=traceback)

    async def call_back(self, row: Row, worker: str) -> None:
        """Call a callback that has been claimed, alone in a transaction of its own."""
        run_id, tries = row["id"], row["callback_tries"]
        callback, call = self._registry.mutations[row["on_complete"]], _Call()

        async def finish_and_call(transaction: Transaction) -> None:
            call.is_out = False
            if await transaction.run(finish_callback(run_id, worker, tries)):
                with call.out():
                    result, context = _result_of(row), row["context"]
                    arguments = callback.callback_arguments(run_id=run_id, result=result, context=context)
                    await self._mutations.call(transaction, callback, arguments)

        try:
            await self._mutations.in_transaction(callback, finish_and_call)
        except BaseException as error:
            if _is_being_canceled():
                raise
            text, traceback = _describe(run_id, callback.name, error, call)
            delay = callback_delay_us(tries, self._rng)
            postpone = partial(postpone_callback, run_id, worker, tries, delay, text, traceback=traceback)
            await self._database.write(postpone)

    def _callback(self, report: Report) -> Mutation[Any, Any]:
        return self._registry.mutations[report.on_complete]


def _is_being_canceled() -> bool:
    """Tell a cancellation of this task from a CancelledError that a callback raised."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _result(move: Move) -> RunResult:
    assert isinstance(move, Finish)
    if move.state == State.SUCCEEDED:
        return Success(loads(move.result))
    assert move.failure is not None
    return Failed(move.failure.error, move.failure.error_type)


def _result_of(row: Row) -> RunResult:
    match row["state"]:
        case State.SUCCEEDED:
            return Success(loads(row["result"]))
        case State.CANCELED:
            return Canceled()
        case _:
            return Failed(row["error"], row["error_type"])


def _describe(run_id: str, name: str, error: BaseException, call: _Call) -> tuple[str, str]:
    """Log that a callback, or its transaction, failed; return what is stored of it: the error and its traceback."""
    error_type, message, traceback = describe_exception(error)
    # The text of the error, which may tell anything, stays in the database: `get` and `show` tell it.
    logger.warning(
        "callback %s of run %s raised %s; it is tried again"
        if call.is_out
        else "callback %s of run %s: its transaction failed with %s; unless it has committed, it is tried again",
        name,
        run_id,
        error_type,
        extra={"run_id": run_id},
    )
    return clean_text(f"{error_type}: {message}", ERROR_LIMIT), traceback


def _fate(report: Report, applied: Applied) -> Fate:
    key = report.run_id, report.attempt
    if key in applied.busy:
        return "busy"
    return "written" if key in applied.owned else "superseded"


def _tell(report: Report, fate: Fate) -> None:
    """One line for each end of an attempt: never a message, an argument or a result."""
    if fate == "written" and not logger.isEnabledFor(logging.INFO) and report.is_good_news:
        return  # most are, and nobody listens
    extra = {"run_id": report.run_id, "attempt": report.attempt}
    move = report.move
    if fate == "busy":
        logger.debug("run %s: somebody's open transaction holds its row", report.run_id, extra=extra)
    elif fate == "superseded":
        logger.warning("run %s: attempt %d is superseded; ignored", report.run_id, report.attempt, extra=extra)
    elif isinstance(move, Finish):
        if move.failure is None:
            logger.info("run %s succeeded in attempt %d", report.run_id, report.attempt, extra=extra)
        else:
            logger.error(
                "run %s failed for good in attempt %d: %s",
                report.run_id,
                report.attempt,
                move.failure.error_type,
                extra=extra,
            )
    elif move.failure is not None:
        logger.warning(
            "run %s failed in attempt %d: %s; next in %.3f s",
            report.run_id,
            report.attempt,
            move.failure.error_type,
            move.delay_us / 1e6,
            extra=extra,
        )
