"""The benchmarks' own arithmetic, and the table of what is wanted."""

import pytest

from benchmarks.catalogue import catalogue
from benchmarks.figures import percentile, ratios, spread
from benchmarks.targets import FIGURES, TARGETS, Target


def entry(ours, theirs=(), **fields):
    """Make an entry whose samples have the rates given."""
    sides = {
        which: {"label": which, "samples": [{"rate": rate} for rate in rates]}
        for which, rates in (("ours", ours), ("theirs", theirs))
    }
    return {"figure": "rate", "complete": True, "failed": None, **sides, **fields}


def test_a_median_lies_within_its_interval_which_lies_within_the_values():
    found = spread([3.0, 1.0, 2.0, 10.0, 2.5])

    assert found.least == 1 <= found.low <= found.median == 2.5 <= found.high <= 10 == found.most


def test_the_same_values_have_the_same_interval():
    values = [float(value * 7 % 11) for value in range(20)]

    assert spread(values) == spread(values)


def test_an_interval_narrows_as_pairs_are_added():
    def width(count):
        found = spread([1.0, 2.0, 3.0] * count)
        return found.high - found.low

    assert width(30) < width(2)


def test_one_value_is_its_own_interval():
    found = spread([2.0])

    assert (found.low, found.median, found.high, found.count) == (2, 2, 2, 1)


def test_a_ratio_is_of_samples_that_were_taken_one_after_the_other():
    assert ratios([10, 30], [5, 10]) == [2, 3]


def test_a_pair_that_was_cut_off_is_no_pair():
    assert ratios([10, 30], [5]) == [2]


@pytest.mark.parametrize(("percent", "wanted"), [(0, 1), (50, 3), (75, 4), (99, 4.96), (100, 5)])
def test_a_percentile_is_interpolated(percent, wanted):
    assert percentile([5, 1, 4, 2, 3], percent) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([30, 31, 32], "met"),
        ([10, 21, 32], "met, within the noise"),
        ([10, 19, 32], "missed, within the noise"),
        ([10, 11, 12], "missed"),
    ],
)
def test_a_target_is_judged_by_the_median_and_says_when_the_noise_is_as_large(ours, verdict):
    target = Target("twice as fast", "drain", "ratio", at_least=2)

    assert target.judge({"drain": entry(ours, [10, 10, 10])})[0] == verdict


def test_a_target_of_at_most_is_met_by_what_is_less():
    target = Target("half the time", "latency", "ratio", at_most=0.5)

    assert target.judge({"latency": entry([4, 4], [10, 10])})[0] == "met"
    assert target.judge({"latency": entry([6, 6], [10, 10])})[0] == "missed"


@pytest.mark.parametrize("fields", [{"complete": False}, {"failed": "no redis-server"}])
def test_what_was_not_measured_to_its_end_is_neither_met_nor_missed(fields):
    target = Target("twice as fast", "drain", "ratio", at_least=2)

    assert target.judge({"drain": entry([30], [10], **fields)}) == ("not measured", None)
    assert target.judge({}) == ("not measured", None)


def test_a_transaction_held_open_is_judged_by_the_last_third_of_the_pairs():
    found = FIGURES["ratio at the end"](entry([10, 10, 10, 10, 5, 4], [10] * 6))

    assert (found.median, found.count) == (0.45, 2)


def test_each_target_is_of_a_measurement_that_exists_and_of_a_figure_that_is_known():
    names = {one.name for one in catalogue()}

    assert [target.text for target in TARGETS if target.measurement not in names or target.figure not in FIGURES] == []
    assert all((target.at_least is None) != (target.at_most is None) for target in TARGETS)
