"""What people may have meant."""

import difflib
from collections.abc import Iterable

from ..app import App
from .terminal import clean, complain

_MOST = 3


def hint_at_names(action: str | None, app: App, target: str | None) -> None:
    """
    Say so if nothing was found because *action* may be a slip.

    A hint and no error: the runs of other services are in the same database, and their names are
    not known here. Without a *target* that was named, or where it registers nothing, nothing is known at all.
    """
    names = app._engine.registry.actions  # noqa: SLF001 - one house
    if action is None or target is None or not names or action in names:
        return
    meant = similar(action, names)
    question = f"; did you mean {' or '.join(map(clean, meant))}?" if meant else ""
    complain(f"Hint: no action {clean(action)!r} is registered with {target}{question}")


def similar(given: str, names: Iterable[str]) -> list[str]:
    """
    Return which of *names*, of the form ``module:function``, were probably meant.

    Example:
        >>> similar("charge", ["shop.payments.jobs:charge", "shop.payments.jobs:refund"])
        ['shop.payments.jobs:charge']
        >>> similar("jobs:chrage", ["shop.payments.jobs:charge", "shop.payments.jobs:refund"])
        ['shop.payments.jobs:charge']
    """
    names = sorted(names)
    functions = difflib.get_close_matches(_function(given), {_function(name) for name in names}, n=_MOST)
    found = [name for function in functions for name in names if _function(name) == function]
    return (found or difflib.get_close_matches(given, names, n=_MOST))[:_MOST]


def _function(name: str) -> str:
    return name.rpartition(":")[2]
