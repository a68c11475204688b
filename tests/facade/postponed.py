"""Functions of a user whose annotations are strings (`from __future__ import annotations`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from action_retrier import MutationCtx, RunResult, SyncActionCtx


@dataclass
class Order:
    id: int
    placed_at: datetime


told: list[str] = []


def ship(ctx: SyncActionCtx, order: Order) -> Order:
    assert isinstance(order, Order)
    return order


def shipped(ctx: MutationCtx, result: RunResult, context: Order) -> None:
    told.append(f"{result.type} {type(context).__name__}")
