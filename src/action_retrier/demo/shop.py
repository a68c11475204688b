"""
The shop: writes its orders and starts their webhooks, both in one transaction.

    python -m action_retrier.demo.shop --seed 1 --endpoint http://127.0.0.1:8080/webhooks --folder .

What it did it says on standard output, one JSON line each: that is its journal, and the verdict
holds the database against it.
"""

import argparse
import json
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from action_retrier import RunId, SyncActionRetrier

from .app import app, deliver_webhook, webhook_done
from .plan import CALLBACK_FAILS_FIRST, CALLBACK_TRIES, Event, Fate, Plan, load_events, make_plan
from .tables import MARK_ORDER_CANCELED, UPSERT_ORDER, Connection, connect, sql_for

OPEN_FOR_S = 8.0
"""How long the shop takes for all its events."""

LATER_MS = 600_000
"""When the runs would be due that are canceled before."""

CANCEL_WITHIN_S = 15.0
"""How long the shop waits for the runs that it means to cancel to get where it wants them."""


class Shop:
    """The shop's own connection, and the runs that it means to cancel."""

    def __init__(self, db: Connection, plan: Plan, endpoint: str, folder: Path) -> None:
        self._db = db
        self._plan = plan
        self._endpoint = endpoint
        self._tries_file = folder / CALLBACK_TRIES
        self._retrier = SyncActionRetrier(app)
        self._to_cancel: deque[tuple[Fate, RunId, Event]] = deque()

    @property
    def has_to_cancel(self) -> bool:
        """Whether there are runs left to cancel."""
        return bool(self._to_cancel)

    def take(self, event: Event) -> None:
        """Write what happened to the order and start the webhook about it: both, or neither."""
        fate = self._plan.fate(event["id"])
        self._db.execute(sql_for(self._db, UPSERT_ORDER), order_row(event))
        run_id = self._start(event, fate)
        committed = fate is not Fate.ROLLED_BACK
        if committed:
            self._db.commit()
        else:
            self._db.rollback()
        say(start=run_id, event=event["id"], order=event["order_id"], committed=committed)
        if fate in (Fate.CANCELED_BEFORE, Fate.CANCELED_DURING, Fate.CANCELED_AFTER):
            self._to_cancel.append((fate, run_id, event))

    def _start(self, event: Event, fate: Fate) -> RunId:
        args = {"endpoint": self._endpoint, "event": event}
        context: dict[str, Any] = {"event_id": event["id"], "order_id": event["order_id"]}
        if fate is Fate.CALLBACK_FAILS:
            context |= {"fails_first": CALLBACK_FAILS_FIRST, "tries_file": str(self._tries_file)}
        if fate is Fate.CANCELED_BEFORE:
            return self._retrier.run_after(
                self._db, LATER_MS, deliver_webhook, args, on_complete=webhook_done, context=context
            )
        return self._retrier.run(self._db, deliver_webhook, args, on_complete=webhook_done, context=context)

    def cancel_one(self) -> None:
        """Look at the next run that is to be canceled, and cancel it if it is where it should be."""
        if not self._to_cancel:
            return
        fate, run_id, event = self._to_cancel.popleft()
        state = self._retrier.get(app, run_id).state
        if not is_time_to_cancel(fate, state):
            self._to_cancel.append((fate, run_id, event))
            return
        self._db.execute(sql_for(self._db, MARK_ORDER_CANCELED), (event["order_id"],))
        answer = self._retrier.cancel(self._db, run_id)
        self._db.commit()
        say(cancel=run_id, event=event["id"], state=state, answer=answer)


def is_time_to_cancel(fate: Fate, state: str) -> bool:
    """Whether a run that is meant to be canceled before, during or after its execution has got there."""
    match fate:
        case Fate.CANCELED_BEFORE:
            return True
        case Fate.CANCELED_DURING:
            return state == "running"
        case _:
            return state not in ("pending", "running")


def order_row(event: Event) -> tuple[str, str | None, str]:
    """The order's id, its number where the event has it, and its new status."""
    return event["order_id"], event["data"].get("order", {}).get("number"), event["type"]


def say(**entry: Any) -> None:
    """Write one line of the journal."""
    print(json.dumps(entry), flush=True)


def keep_shop(shop: Shop) -> None:
    """Take all events at an even pace, and cancel what is to be canceled."""
    events = load_events()
    opened_at = time.monotonic()
    for number, event in enumerate(events):
        pause = opened_at + OPEN_FOR_S * number / len(events) - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        shop.take(event)
        if number % 10 == 0:
            shop.cancel_one()
    closes_at = time.monotonic() + CANCEL_WITHIN_S
    while shop.has_to_cancel and time.monotonic() < closes_at:
        shop.cancel_one()
        time.sleep(0.02)


def main(environ: Mapping[str, str] = os.environ) -> None:
    """Open the shop, and close it when everything has happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    with app, closing(connect(environ["ACTION_RETRIER_DATABASE_URL"])) as db:
        keep_shop(Shop(db, make_plan(options.seed, load_events()), options.endpoint, options.folder))


if __name__ == "__main__":
    main()
