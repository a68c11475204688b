"""
What a user writes: one action, one callback.

The database comes from `ACTION_RETRIER_DATABASE_URL`; workers run it with
`action-retrier worker action_retrier.demo.app:app`.
"""

import json
import os
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from action_retrier import App, MutationCtx, NonRetryableError, RetryAfter, RunResult, SyncActionCtx

from .plan import CLIENT_TIMEOUT_MS, MAX_FAILURES
from .tables import INSERT_WEBHOOK_LOG, sql_for

app = App()


class DeliveryFailed(Exception):
    """The receiver answered, but not what one wants to hear."""


class CallbackFailed(Exception):
    """The callback's own trouble."""


@app.action(initial_backoff_ms=120, max_backoff_ms=700, max_failures=MAX_FAILURES)
def deliver_webhook(ctx: SyncActionCtx, endpoint: str, event: dict[str, Any]) -> dict[str, int]:
    """Post one event. The run's id is the key by which the receiver knows a repetition."""
    ctx.raise_if_canceled()
    target = urlsplit(endpoint)
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Idempotency-Key": ctx.run_id,
        "User-Agent": f"action-retrier-demo (pid {os.getpid()})",
    }
    connection = HTTPConnection(target.netloc, timeout=CLIENT_TIMEOUT_MS / 1000)
    try:
        connection.request("POST", target.path, json.dumps(event, ensure_ascii=False).encode(), headers)
        reply = connection.getresponse()
        text = reply.read().decode()
    finally:
        connection.close()
    if reply.status == 429:
        raise RetryAfter(1000 * int(reply.headers.get("Retry-After", "1")), "HTTP 429: too many requests")
    if reply.status == 400:
        raise NonRetryableError(f"HTTP 400: {text}")
    if reply.status != 200:
        raise DeliveryFailed(f"HTTP {reply.status}: {text}")
    return {"status": reply.status, "attempt": ctx.attempt}


@app.mutation
def webhook_done(ctx: MutationCtx, run_id: str, result: RunResult, context: dict[str, Any]) -> None:
    """Enter the end of one delivery in the shop's own log. Nothing in that table stops a second entry."""
    entry = (run_id, context["event_id"], context["order_id"], result.type)
    ctx.db.execute(sql_for(ctx.db, INSERT_WEBHOOK_LOG), entry)
    if "fails_first" in context:
        _fail_first(context["fails_first"], Path(context["tries_file"]))


def _fail_first(times: int, tries_file: Path) -> None:
    """Raise on the first tries. They are counted in a file: what a callback writes to the database is rolled back."""
    with tries_file.open("ab") as file:
        file.write(b".")
    tries = tries_file.stat().st_size
    if tries <= times:
        raise CallbackFailed(f"try {tries} is meant to fail")
