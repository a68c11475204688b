"""Two versions side by side: the workers of yesterday go on while the schema is already tomorrow's."""

from typing import Any

import pytest

from action_retrier import SchemaMismatch, Success

from ..stores import SqliteSystem

EXPANSIONS = [
    "ALTER TABLE {}runs ADD COLUMN tomorrow text",
    "ALTER TABLE {}workers ADD COLUMN tomorrow bigint NOT NULL DEFAULT 7",
    "ALTER TABLE {}attempts ADD COLUMN tomorrow text",
    "CREATE INDEX {1}runs_tomorrow ON {0}runs (tomorrow)",
    "CREATE TABLE {}tomorrow (id text PRIMARY KEY)",
]
"""What a migration may do: it only adds, and nothing that yesterday's statements would have to fill."""


def upgrade(system: Any, *, to: int) -> None:
    """Do what the next version's migration would."""
    prefix = "action_retrier_" if isinstance(system, SqliteSystem) else f"{system.schema}."
    connection = system.connect()
    for text in EXPANSIONS:
        connection.execute(text.format(prefix, "" if "." in prefix else prefix))
    connection.execute(f"UPDATE {prefix}meta SET value = '{to}' WHERE key = 'version'")  # noqa: S608
    connection.commit()


async def test_workers_of_the_previous_version_go_on_after_an_upgrade(api, system, note):
    """Those that are running, and those that are started afterwards: retries, callbacks, cancel and cleanup, as ever."""

    @api.app.mutation(name="done")
    def done(ctx: Any, run_id: str) -> None:
        note(ctx, run_id)

    flaky = api.scripted(ValueError("not yet"), "done", name="flaky")
    async with api.worker() as worker:
        before = await api.run(api.app, flaky.action, on_complete=done)
        await worker.until_idle()
        upgrade(system, to=2)

        assert await api.result(worker, before) == Success("done")
        canceled = await api.run_after(api.app, 60_000, flaky.action, on_complete=done)
        assert await api.cancel(api.app, canceled)
        await worker.until_idle()

    sibling = api.sibling()
    done = sibling.app.mutation(name="done")(done.function)
    again = sibling.scripted("done again", name="flaky")
    async with sibling, sibling.worker() as worker:
        after = await sibling.run(sibling.app, again.action, on_complete=done)
        assert await sibling.result(worker, after) == Success("done again")
        await sibling.cleanup(sibling.app, before)

    assert sorted(api.notes()) == sorted([before, canceled, after])
    assert {run.id for run in await api.all_runs()} == {canceled, after}


async def test_code_that_is_two_versions_behind_is_refused(api, system):
    await api.run(api.app, api.scripted("done").action)
    upgrade(system, to=3)

    sibling = api.sibling()
    with pytest.raises(SchemaMismatch, match="upgrade action-retrier here"):
        await sibling.list(sibling.app)
