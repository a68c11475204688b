"""Which database a URL names, and that no error tells a password."""

from pathlib import Path
from urllib.parse import urlencode

import pytest

from action_retrier.drivers import mask_password, open_database
from action_retrier.drivers.postgres.urls import Target, parse
from action_retrier.testing import ManualClock


def location(url: str) -> Path:
    database = open_database(url, clock=ManualClock(), auto_migrate=True)
    return Path(database.location)


def refused(url: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        open_database(url, clock=ManualClock(), auto_migrate=True)
    return str(caught.value)


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        ("app.db", "app.db"),
        ("sub/app.db", "sub/app.db"),
        ("./sub/../app.db", "app.db"),
        ("with%20space%3F.db", "with space?.db"),
        ("%C3%BC.db", "ü.db"),
        ("ü.db", "ü.db"),
        ("app.db?synchronous=normal", "app.db"),
        ("app.db?synchronous=FULL", "app.db"),
    ],
)
def test_a_relative_file_is_resolved_when_the_database_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str, name: str
) -> None:
    """Three slashes; a later chdir changes nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    database = open_database(f"sqlite:///{rest}", clock=ManualClock(), auto_migrate=True)
    monkeypatch.chdir("/")

    assert Path(database.location) == (tmp_path / name).resolve()


def test_an_absolute_file_has_four_slashes(tmp_path: Path) -> None:
    assert location(f"sqlite:///{tmp_path}/app.db") == tmp_path.resolve() / "app.db"


def test_links_are_followed_to_the_one_file(tmp_path: Path) -> None:
    """Lock files stand beside the file itself: two names for it must find the same ones."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "app.db").symlink_to("real/app.db")

    assert location(f"sqlite:///{tmp_path}/link/app.db") == tmp_path.resolve() / "real" / "app.db"
    assert location(f"sqlite:///{tmp_path}/app.db") == tmp_path.resolve() / "real" / "app.db"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "app.db",
        "sqlite:app.db",
        "sqlite:/app.db",
        "sqlite://app.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///sub/",
        "sqlite:///a%00b.db",
        "sqlite:///app.db?synchronous=off",
        "sqlite:///app.db?mode=ro",
        "sqlite:///app.db?synchronous",
        "sqlite:///app.db?synchronous=full&x=1",
        "mysql://localhost/app",
        "SQLITE:///app.db",
        "postgresql:/app",
    ],
)
def test_a_url_that_names_no_database_is_named_in_the_error(url: str) -> None:
    assert repr(url) in refused(url)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("shop.db", "did you mean sqlite:///shop.db?"),
        ("data/shop.db", "did you mean sqlite:///data/shop.db?"),
        ("/var/lib/shop.db", "did you mean sqlite:////var/lib/shop.db?"),
        ("django", "did you mean sqlite:///django?"),
        ("sqlite+aiosqlite:///shop.db", "App(engine), or a URL without +aiosqlite"),
        ("postgresql+psycopg://host/shop", "App(engine), or a URL without +psycopg"),
        ("postgres//host/shop", "did you mean postgresql://...?"),
        ("postgresql:/host/shop", "did you mean postgresql://...?"),
        ("Postgre://user:secret@host/shop", "did you mean postgresql://...?"),
        ("sqlite:shop.db", "did you mean sqlite:///relative.db or sqlite:////absolute.db?"),
        ("sqlite//shop.db", "did you mean sqlite:///relative.db or sqlite:////absolute.db?"),
        ("postgres/shop.db", "did you mean sqlite:///postgres/shop.db?"),
        ("", "use sqlite:///relative.db, sqlite:////absolute.db or postgresql://..."),
        ("data/", "use sqlite:///relative.db, sqlite:////absolute.db or postgresql://..."),
        ("user:secret@host", "use sqlite:///relative.db, sqlite:////absolute.db or postgresql://..."),
        ("mysql+pymysql://host/shop", "use sqlite:///relative.db, sqlite:////absolute.db or postgresql://..."),
        ("mysql://host/shop", "use sqlite:///relative.db, sqlite:////absolute.db or postgresql://..."),
    ],
)
def test_the_advice_is_a_url_that_this_version_takes(url: str, advice: str) -> None:
    assert advice in refused(url)


def test_a_path_is_no_url() -> None:
    with pytest.raises(ValueError, match=r'not \w*Path: did you mean f"sqlite:///\{path\}"\?'):
        open_database(Path("shop.db"), clock=ManualClock(), auto_migrate=True)  # type: ignore[arg-type]


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    assert "is not a file" in refused(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://user:secret@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:secret@host:5432/db?sslmode=require", "postgresql://user:***@host:5432/db?sslmode=require"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql:///db?password=secret&x=1", "postgresql:///db?password=***&x=1"),
        ("postgresql://u:secret@h/db?sslpassword=secret", "postgresql://u:***@h/db?sslpassword=***"),
        ("postgresql://user:sec@ret@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:@host/db", "postgresql://user:***@host/db"),
        ("postgresql://a:secret@h1:1,h2:2/db", "postgresql://a:***@h1:1,h2:2/db"),
        ("sqlite:///app.db", "sqlite:///app.db"),
    ],
)
def test_a_password_is_masked_and_the_rest_is_told(url: str, masked: str) -> None:
    assert mask_password(url) == masked


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:secret@host/db",
        "postgresql:user:secret@host/db",
        "user:secret@host",
        "postgresql://user:sec/secret@host/db",
        "postgresql://user:secret@word@host/db",
        "postgresql://user:secret?x@host/db",
        "postgresql://user:12/secret@host/db",
        "postgresql://host/db?schema=Hostile&password=secret",
        "postgresql://user:secret@host/db?notify=maybe",
        "mysql://host/db?password=secret",
        "mysql://host/db?PassWord=secret",
        "mysql://host/db#password=secret",
        "sqlite://user:secret@host/app.db",
        "sqlite:///app.db?password=secret",
        "sqlite:///app.db?synchronous=off&key=1&password=secret",
        "sqlite://host/app.db?password=secret",
    ],
)
def test_no_error_tells_a_password(url: str) -> None:
    """A bad URL is named in the error with its password masked, also where it is bad because of it."""
    text = refused(url)

    assert "secret" not in text


# PostgreSQL's.


def target(url: str) -> Target:
    return parse(url)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://user:secret@host/db", "postgresql://host:5432/db"),
        ("postgres://user:secret#x@host/db", "postgresql://host:5432/db"),
        ("postgresql://host:6432/db", "postgresql://host:6432/db"),
        ("postgresql://h1:1,h2:2/db", "postgresql://h1:1,h2:2/db"),
        ("postgresql://h1,h2/db", "postgresql://h1:5432,h2:5432/db"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///run/postgresql:5432/db"),
        ("postgresql://user@host", "postgresql://host:5432/user"),
        ("postgresql://", "postgresql://localhost:5432/"),
    ],
)
def test_a_server_is_told_by_host_port_and_database(url: str, where: str) -> None:
    """For people: `worker` and `doctor` print it."""
    assert target(url).location == where


def test_what_is_ours_in_a_url_is_not_libpqs() -> None:
    found = target("postgresql://host/db?schema=jobs&sslmode=require&notify=FALSE&direct=0")

    assert (found.schema, found.notify, found.direct) == ("jobs", False, False)
    assert found.conninfo == "postgresql://host/db?sslmode=require"


def test_defaults_of_a_server() -> None:
    found = target("postgresql://host/db")

    assert (found.schema, found.notify, found.direct) == ("action_retrier", True, True)


@pytest.mark.parametrize(
    "schema", ["", "Jobs", "1jobs", "jobs; DROP SCHEMA public", 'jo"bs', "pg_catalog", "a" * 64, "jöbs", "jobs\n"]
)
def test_a_schema_that_is_no_plain_name_is_refused(schema: str) -> None:
    """S2: it becomes part of statements."""
    with pytest.raises(ValueError, match="schema must be lower-case letters"):
        target(f"postgresql://host/db?{urlencode({'schema': schema})}")


@pytest.mark.parametrize("query", ["notify=maybe", "direct="])
def test_a_switch_is_true_or_false(query: str) -> None:
    with pytest.raises(ValueError, match="must be true or false"):
        target(f"postgresql://host/db?{query}")


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("shcema=jobs", "it has no parameter 'shcema'; did you mean schema?"),
        ("sslmode=require&sslmod=require", "it has no parameter 'sslmod'; did you mean sslmode?"),
        ("ssl=true&x=7", "it has no parameter 'x'"),
    ],
)
def test_a_parameter_that_nobody_knows_is_named_with_what_was_meant(query: str, told: str) -> None:
    """What libpq itself says would do, but shows the password."""
    text = refused(f"postgresql://user:secret@host/db?{query}")

    assert text.endswith(told)
    assert "secret" not in text


def test_what_libpq_does_not_understand_for_another_reason_is_not_explained() -> None:
    assert refused("postgresql://user:secret@[::1/db?sslmode=require").endswith("is not a URL that libpq understands")
