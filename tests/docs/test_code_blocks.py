"""Run what the documentation shows.

A fenced block is run for what its language says, and one more word may change how:

* `python`: run as a program of its own.
* `python continues`: run as one program with the Python block before it.
* `python fragment`: compiled, not run; `await` may stand outside of functions.
* `console`: the commands, lines after `$ `, are run in order. What they print is not compared.
* `bash`, `sh`: the same, with every line a command.
* `console continues`: the commands of the console block before it are run first.
* `console fragment`: not run.

Each run has an empty directory, but for the earlier Python blocks of its document that begin with
`# file: NAME.py`: they lie there under that name. Only `action-retrier` and `python` are run; of
other commands the name is checked. A worker, or what ends in `&`, is stopped with SIGTERM when
the block ends, but not before its first line of output, and must exit with 0.
"""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
TIMEOUT_S = 60

PROMPTS = {"console": "$ ", "bash": "", "sh": ""}
RUN = {"action-retrier", "python"}
SHOWN = {"cd", "createdb", "docker", "export", "git", "make", "pip", "pre-commit", "psql", "pytest", "sqlite3"}
MODIFIERS = {"continues", "fragment"}

FENCE = re.compile(r"(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<info>[^`]*)")
FILE = re.compile(r"\s*# file: (?P<name>[\w./-]+\.py)\s*\n")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block; after `linked`, with what it needs of those before it."""

    document: str
    line: int
    language: str
    modifiers: frozenset[str]
    source: str
    files: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def fenced(document: str, text: str) -> Iterator[Block]:
    """Find the fenced blocks of a document that are in a language we run."""
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        if (opening := FENCE.fullmatch(line)) is None:
            continue
        body: list[str] = []
        for _, inner in lines:
            if inner.strip().startswith(opening["ticks"]) and not inner.strip(" `~"):
                break
            body.append(inner.removeprefix(opening["indent"]) + "\n")
        else:
            raise ValueError(f"{document}:{number}: this block is never closed")
        language, *modifiers = opening["info"].split() or [""]
        if language != "python" and language not in PROMPTS:
            continue
        if not MODIFIERS.issuperset(modifiers):
            raise ValueError(f"{document}:{number}: {modifiers} is none of {sorted(MODIFIERS)}")
        yield Block(
            document=document,
            line=number,
            language=language,
            modifiers=frozenset(modifiers),
            # Each line keeps its number in the document, so that tracebacks point there.
            source="\n" * number + "".join(body),
        )


def linked(document: str, text: str) -> Iterator[Block]:
    """Give each block what it continues, and the files saved before it."""
    latest: dict[str, Block] = {}
    files: dict[str, str] = {}
    for block in fenced(document, text):
        source = block.source
        if "continues" in block.modifiers:
            if block.language not in latest:
                raise ValueError(f"{block}: no block in {block.language} stands before it")
            before = latest[block.language].source
            source = before + source[before.count("\n") :]
        latest[block.language] = replace(block, source=source, files=tuple(files.items()))
        if block.language == "python" and (file := FILE.match(source)):
            files[file["name"]] = source
        yield latest[block.language]


def commands(block: Block) -> Iterator[tuple[int, str]]:
    """Find the commands of a block in a shell's language, each with its line."""
    prompt = PROMPTS[block.language]
    for command in re.finditer(r"(?:.*\\\n)*.*", block.source):
        text = re.sub(r"\\\n(> )?", "", command[0])
        shown = text.removeprefix(prompt).strip()
        if text.startswith(prompt) and shown and not shown.startswith("#"):
            yield block.source.count("\n", 0, command.start()) + 1, shown


class Workspace:
    """An empty directory in which one block runs, as on a machine of its own."""

    def __init__(self, block: Block, directory: Path) -> None:
        self.block = block
        self.directory = directory
        # Nothing of the developer's settings, and the commands of this installation.
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ACTION_RETRIER_")}
        self.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        for name, source in block.files:
            self.save(name, source)

    def save(self, name: str, source: str) -> None:
        """Write a file that the document shows."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")

    def run(self, line: int, command: list[str]) -> None:
        """Run *command* to its end, which must be a good one."""
        try:
            done = subprocess.run(
                command,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            what, output = f"still running after {TIMEOUT_S} s", (expired.output or b"").decode()
        else:
            what, output = f"exit code {done.returncode}", done.stdout
            if done.returncode == 0:
                return
        self.fail(line, command, what, output)

    @contextmanager
    def running(self, line: int, command: list[str]) -> Iterator[None]:
        """Have *command* running, from its first line of output to a clean stop."""
        with subprocess.Popen(
            command,
            cwd=self.directory,
            env=self.environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            watchdog = threading.Timer(TIMEOUT_S, process.kill)
            watchdog.start()
            try:
                output = process.stdout.readline()
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                output += process.stdout.read()
                watchdog.cancel()
        if process.returncode != 0:
            self.fail(line, command, f"no clean stop, but exit code {process.returncode}", output)

    def fail(self, line: int, command: list[str], what: str, output: str) -> NoReturn:
        """Fail with all that a reader needs to mend the document."""
        place = f"{self.block.document}:{line}"
        pytest.fail(f"{place}: {what}\n$ {shlex.join(command)}\n{output}", pytrace=False)


def run_python(block: Block, workspace: Workspace) -> None:
    """Run a Python block under its own name, if it has one; a warning is an error."""
    file = FILE.match(block.source)
    name = file["name"] if file else "block.py"
    workspace.save(name, block.source)
    workspace.run(block.line, [sys.executable, "-W", "error", name])


def run_console(block: Block, workspace: Workspace) -> None:
    """Run the commands of a block that are ours, and recognise the others."""
    with ExitStack() as background:
        for line, command in commands(block):
            lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True  # so that job:app is one word, and ; still another
            words = list(lexer)
            program = next((word for word in words if not re.match(r"\w+=", word)), "")
            if program not in RUN:
                if Path(program).name not in SHOWN:
                    workspace.fail(line, words, f"{program!r} is not a command that we know", "")
            elif words[-1] == "&" or "worker" in words:
                argv = ["env", *(word for word in words if word != "&")]  # env takes the NAME=value before a command
                background.enter_context(workspace.running(line, argv))
            else:
                workspace.run(line, ["sh", "-c", command])


BLOCKS = [
    block
    for path in DOCUMENTS
    if path.exists()
    for block in linked(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
]


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in BLOCKS])
def test_a_block_of_the_documentation_runs(block: Block, tmp_path: Path) -> None:
    if "fragment" in block.modifiers:
        if block.language == "python":
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            compile(block.source, block.document, "exec", flags, dont_inherit=True)
    elif block.language == "python":
        run_python(block, Workspace(block, tmp_path))
    else:
        run_console(block, Workspace(block, tmp_path))


def sole(text: str) -> Block:
    """Read a document of one last block that counts."""
    return list(linked("page.md", text))[-1]


def test_a_line_of_a_block_keeps_its_number() -> None:
    block = sole("# Title\n\n- item\n  ```python\n  1 / 0\n  ```\n")

    assert block.source.splitlines()[4] == "1 / 0"
    assert str(block) == "page.md:4"


def test_a_block_that_continues_begins_with_the_one_before_it() -> None:
    block = sole("```python\na = 1\n```\ntext\n```python continues\nb = a\n```\n")

    assert block.source == "\na = 1\n\n\n\nb = a\n"


def test_a_named_block_is_a_file_for_the_later_ones() -> None:
    block = sole("```python\n# file: job.py\n```\n```console\n$ python job.py\n```\n")

    assert dict(block.files) == {"job.py": "\n# file: job.py\n"}
    assert list(commands(block)) == [(5, "python job.py")]


def test_a_command_may_go_on_in_the_next_line() -> None:
    block = sole("```console\n$ python -c \\\n> pass\noutput\n$ make\n```\n")

    assert list(commands(block)) == [(2, "python -c pass"), (5, "make")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\n", "page.md:1: .* never closed"),
        ("\n```python sometimes\n```\n", "page.md:2: .*sometimes"),
        ("```python continues\n```\n", "page.md:1: no block"),
    ],
)
def test_a_block_that_cannot_be_read_is_an_error(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sole(text)


@pytest.mark.parametrize(
    "text",
    ["```python\nimport sys\nsys.exit('sorry')\n```\n", "```sh\n\npython -c 'exit(1)'\n```\n"],
)
def test_a_block_that_fails_says_where(text: str, tmp_path: Path) -> None:
    block = sole(text)
    run = run_python if block.language == "python" else run_console

    with pytest.raises(pytest.fail.Exception, match=r"page.md:\d: exit code 1"):
        run(block, Workspace(block, tmp_path))


def test_a_background_command_must_stop_cleanly(tmp_path: Path) -> None:
    program = "import signal; print('ready'); signal.sigwait([signal.SIGTERM])"
    blocked = f"import signal; signal.pthread_sigmask(0, [15]); {program}"
    good = sole(f'```sh\npython -c "{blocked}" &\n```\n')
    bad = sole(f'```sh\npython -c "{program}" &\n```\n')

    run_console(good, Workspace(good, tmp_path))
    with pytest.raises(pytest.fail.Exception, match="no clean stop"):
        run_console(bad, Workspace(bad, tmp_path))
