"""The examples in the docstrings of `action_retrier.testing` run."""

import doctest
import importlib

import pytest

MODULES = ("_clock", "_failpoints", "_faults", "_idle", "_isolated")


@pytest.mark.parametrize("name", MODULES)
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = doctest.testmod(importlib.import_module(f"action_retrier.testing.{name}"), optionflags=doctest.ELLIPSIS)

    assert (result.failed, result.attempted > 0) == (0, True)
