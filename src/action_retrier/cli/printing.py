"""How tables and texts are printed, by rich: a worker, which prints none, does not import this."""

from rich.console import Console, RenderableType
from rich.text import Text

from .terminal import LEAST_WIDTH, is_wrapped, width


def put(*parts: RenderableType) -> None:
    """Print tables and texts, as wide as the terminal; what is piped is not wrapped and has no colours."""
    console = _console()
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as captured:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str | Text) and not is_wrapped())
    for line in captured.get().splitlines():
        print(line.rstrip())  # noqa: T201 - this is what prints


def hang(head: Text, body: Text) -> Text:
    """Return *body* beside *head*, wrapped where it has to be, and its further lines indented as its first."""
    if not is_wrapped():
        return head + body
    room = max(width() - head.cell_len, LEAST_WIDTH // 2)
    lines = body.wrap(_console(), room, overflow="fold") or [Text()]
    for line in lines:
        line.rstrip()
    indent = Text("\n" + " " * head.cell_len)
    return head + indent.join(lines)


def _console() -> Console:
    return Console(width=width(), highlight=False, markup=False, emoji=False)
