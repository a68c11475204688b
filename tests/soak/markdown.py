"""Tables, as a soak prints them and the documentation shows them."""

from collections.abc import Iterable


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return its lines and an empty one: what a row is about, and its numbers."""
    return [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * len(head[1:])}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
