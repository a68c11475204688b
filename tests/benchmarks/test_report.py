"""The page that is made of results, and the file that they are kept in."""

import json

import pytest

from benchmarks.report import render
from benchmarks.results import Results, as_text, is_kept

ABOUT = {
    "library": "fast-queue",
    "version": "1.2",
    "brings": {"driver": "3"},
    "python": "3.11.7",
    "settings": {"worker": "concurrency=7"},
    "lacks": "a result",
}


def side(name, samples):
    return {
        "label": name,
        "side": name,
        "database": "postgres",
        "kind": "noop",
        "workers": 1,
        "size": 100,
        "about": ABOUT,
        "samples": samples,
    }


def entry(name, ours, theirs, **fields):
    family = name.split("/")[0]
    return {
        "name": name,
        "family": family,
        "unit": "runs/s",
        "figure": "rate",
        "more_is_better": True,
        "complete": True,
        "failed": None,
        "quick": False,
        "source": "abc",
        "commit": "123",
        "measured_at": "2026-12-01T10:00:00+00:00",
        "seconds": 12.0,
        "machine": {"cpu": "A CPU", "cores": 2, "fsync_us": 110, "redis": None},
        "ours": ours and side("ours", ours),
        "theirs": theirs and side("fast-queue", theirs),
        **fields,
    }


DRAIN = entry(
    "drain/postgres/pgqueuer",
    [{"rate": 20_000.0}, {"rate": 24_000.0}, {"rate": 22_000.0}],
    [{"rate": 10_000.0}, {"rate": 10_000.0}, {"rate": 10_000.0}],
)


def page(*entries, words=None, plots=None):
    return render({one["name"]: one for one in entries}, words or {}, plots or {})


def test_the_page_says_the_machine_the_figures_their_interval_and_what_was_compared():
    text = page(DRAIN)

    assert "| CPU | A CPU |" in text
    assert (
        "| ours | 22,000 (20,000 to 24,000) | fast-queue | 10,000 (10,000 to 10,000) | 2.20 (2.00 to 2.40) | 3 |"
        in text
    )
    assert "| fast-queue | fast-queue 1.2, driver 3 | 3.11.7 | worker: concurrency=7 | a result |" in text


def test_each_target_has_its_verdict_and_those_not_measured_say_so():
    text = page(DRAIN)

    assert "| PostgreSQL: drain against PgQueuer | >= 1.25 | 2.20 (2.00 to 2.40) | met |" in text
    assert "| SQLite: drain against the floor | >= 0.3 |  | not measured |" in text
    assert "1 are met, 0 are missed" in text


def test_a_missed_target_stands_out():
    slow = entry("drain/postgres/floor", [{"rate": 1.0}], [{"rate": 10.0}])

    assert "| >= 0.6 | 0.100 (0.100 to 0.100) | **missed** |" in page(slow)


def test_what_could_not_be_measured_is_said_with_its_reason():
    failed = entry("drain/redis/celery", None, None, failed="there is no redis-server on the PATH")

    assert "- `drain/redis/celery`: there is no redis-server on the PATH" in page(DRAIN, failed)


def test_the_words_of_people_are_where_they_belong():
    words = {"introduction": "Hello.", "missed": "The loop is slow.", "fairness": "They differ."}
    text = page(DRAIN, words=words)

    assert text.index("Hello.") < text.index("## The machine")
    assert "## What was missed, and why\n\nThe loop is slow." in text
    assert "They differ." in text
    assert "## What was missed, and why" not in page(DRAIN)


def test_a_plot_stands_with_its_figures():
    text = page(DRAIN, plots={"drain-postgres": "performance/drain-postgres.svg"})

    assert text.index("### PostgreSQL") < text.index("](performance/drain-postgres.svg)")


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"quick": True}, "Figures of a quick run"),
        ({"complete": False}, "Stopped before all pairs were taken: many/postgres/floor"),
        ({"source": "def", "commit": "456"}, "Not all of these were measured of the same code: commits 123, 456"),
    ],
)
def test_figures_that_mean_less_are_said_to(change, warning):
    other = entry("many/postgres/floor", [{"rate": 1.0}], [{"rate": 2.0}], **change)

    assert warning in page(DRAIN, other)
    assert warning not in page(DRAIN)


def test_latencies_are_pooled_over_the_pairs():
    samples = [{"ms": [1.0, 2.0, 3.0], "p50": 2.0}, {"ms": [3.0, 4.0, 5.0], "p50": 4.0}]
    latency = entry("latency/postgres/pgqueuer", samples, samples, figure="p50", unit="ms")

    assert "| fast-queue | 3.00 | 4.75 | 4.95 | 3.00 | 4.75 | 4.95 | 1.00 (1.00 to 1.00) | 2 |" in page(latency)


def test_of_an_import_the_difference_to_the_bare_interpreter_is_told():
    imported = entry("import/sqlite/ours", [{"cpu_ms": 130.0}], [{"cpu_ms": 10.0}], figure="cpu_ms", unit="ms of CPU")

    assert "| ours | 130 | 10.0 | 120 |" in page(imported)


def test_who_did_not_recover_is_said_not_to_have_within_the_time_that_was_waited():
    sample = {"seconds": None, "recovered": 3, "twice_before": 0, "limit_s": 120.0}
    fleet = entry("fleet/postgres/oban", [sample], None, figure="seconds", unit="s")

    assert "| ours | not within 120 s | 3 | 0 | 1 |" in page(fleet)


def test_a_measurement_taken_again_replaces_that_one_alone(tmp_path):
    results = Results(tmp_path / "results.json")
    results.save(DRAIN)
    results.save(entry("many/postgres/floor", [{"rate": 1.0}], [{"rate": 2.0}]))
    results.save({**DRAIN, "commit": "456"})

    read = Results(tmp_path / "results.json").entries

    assert {name: one["commit"] for name, one in read.items()} == {
        "drain/postgres/pgqueuer": "456",
        "many/postgres/floor": "123",
    }


def test_what_is_whole_and_of_the_same_code_is_kept():
    assert is_kept(DRAIN, "abc")
    assert not is_kept(DRAIN, "def")
    assert not is_kept({**DRAIN, "complete": False}, "abc")
    assert not is_kept({**DRAIN, "failed": "no Python 3.12"}, "abc")
    assert not is_kept(None, "abc")


def test_a_known_rate_is_the_median_of_a_side(tmp_path):
    results = Results(tmp_path / "results.json")
    results.save(DRAIN)

    assert results.rate("drain", "postgres", "ours") == 22_000
    assert results.rate("drain", "sqlite", "ours") is None


def test_results_of_another_schema_are_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"schema": 99}')

    with pytest.raises(ValueError, match="another schema: 99"):
        Results(path)


def test_a_sample_is_one_line_of_the_file_and_nothing_is_lost():
    text = as_text({"a": DRAIN, "ms": [1.5, 2.5]})

    assert json.loads(text) == {"a": DRAIN, "ms": [1.5, 2.5]}
    assert '"ms": [1.5, 2.5]' in text
