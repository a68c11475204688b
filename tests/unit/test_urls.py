"""Which database a URL names, and that no error tells a password."""

from pathlib import Path

import pytest

from action_retrier.drivers import mask_password, open_database
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
        ("postgresql://host/shop", "not supported by this version"),
        ("", "use sqlite:///relative.db or sqlite:////absolute.db"),
        ("data/", "use sqlite:///relative.db or sqlite:////absolute.db"),
        ("user:secret@host", "use sqlite:///relative.db or sqlite:////absolute.db"),
        ("mysql://host/shop", "use sqlite:///relative.db or sqlite:////absolute.db"),
    ],
)
def test_the_advice_is_a_url_that_this_version_takes(url: str, advice: str) -> None:
    text = refused(url)

    assert advice in text
    assert "or postgresql://" not in text


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
        "postgresql://user:secret#x@host/db",
        "postgresql://user:secret?x@host/db",
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
