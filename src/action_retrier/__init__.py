"""Durable retries for calls to unreliable things, in your own database."""

from ._calls import Call
from ._contexts import ActionCtx, MutationCtx, SyncActionCtx
from ._functions import Action, Bound, Mutation
from ._policy import RetryPolicy
from ._sync_retrier import SyncActionRetrier
from .app import App
from .errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidArguments,
    InvalidContext,
    NonRetryableError,
    PayloadTooLarge,
    RetrierError,
    RetryAfter,
    RunInProgress,
    RunNotFound,
    RunSucceeded,
    SchemaMismatch,
    UnknownFunction,
)
from .results import (
    Attempt,
    Callback,
    Canceled,
    Completed,
    Failed,
    InProgress,
    Page,
    Progress,
    Run,
    RunId,
    RunResult,
    RunStatus,
    Success,
    from_json,
    to_json,
)
from .retrier import ActionRetrier

__all__ = [
    "Action",
    "ActionCtx",
    "ActionRetrier",
    "App",
    "Attempt",
    "Bound",
    "Call",
    "Callback",
    "Canceled",
    "Completed",
    "DatabaseUnavailable",
    "Failed",
    "IdempotencyConflict",
    "InProgress",
    "InvalidArguments",
    "InvalidContext",
    "Mutation",
    "MutationCtx",
    "NonRetryableError",
    "Page",
    "PayloadTooLarge",
    "Progress",
    "RetrierError",
    "RetryAfter",
    "RetryPolicy",
    "Run",
    "RunId",
    "RunInProgress",
    "RunNotFound",
    "RunResult",
    "RunStatus",
    "RunSucceeded",
    "SchemaMismatch",
    "Success",
    "SyncActionCtx",
    "SyncActionRetrier",
    "UnknownFunction",
    "from_json",
    "to_json",
]
