"""Every handle that a user may hold, on every database and driver: how each is opened, written to and ended."""

import contextlib
import inspect
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import aiosqlite
import asyncpg
import django
import psycopg
import sqlalchemy
from django.conf import settings
from django.db import connections, transaction
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from action_retrier import ActionRetrier, App, SyncActionRetrier
from action_retrier.testing import ManualClock

from ..stores import SYSTEMS, System, pgbouncer_url, postgres_url

if not settings.configured:
    settings.configure(DATABASES={})
    django.setup()


class Held:
    """An open handle of a user's, with transaction control by its own means; `await` whatever you call."""

    begins_implicitly = True

    def __init__(self, kind: "Kind", system: System, call: Callable[..., Any], stack: AsyncExitStack) -> None:
        self.kind = kind
        self.system: Any = system
        self.stack = stack
        self._call = call
        self.handle: Any = None

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call where a program of this colour lives."""
        return await self._call(function, *args)

    async def open(self, **options: Any) -> None:
        self.handle = await self.call(lambda: self.kind.connect(self, **self.kind.options | options))
        self.stack.push_async_callback(self.close)

    async def close(self) -> None:
        await self.call(self.handle.close)

    @property
    def address(self) -> str:
        """Where this kind of handle connects to."""
        if self.kind.system == "sqlite":
            return str(self.system.path)
        return pgbouncer_url() if self.kind.system == "pgbouncer" else postgres_url()

    def note_sql(self, words: str) -> str:
        table = "notes" if self.kind.system == "sqlite" else f"{self.system.schema}_own.notes"
        return f"INSERT INTO {table} (text) VALUES ('{words}')"  # noqa: S608 - our own words

    async def begin(self) -> None:
        """Begin, if that is what users of this handle do."""

    async def execute(self, sql: str) -> None:
        await self.call(self.handle.execute, sql)

    async def note(self, words: str) -> None:
        """Write to the user's own table."""
        await self.execute(self.note_sql(words))

    async def commit(self) -> None:
        await self.call(self.handle.commit)

    async def rollback(self) -> None:
        await self.call(self.handle.rollback)

    async def savepoint(self) -> None:
        await self.execute("SAVEPOINT users")

    async def rollback_to_savepoint(self) -> None:
        await self.execute("ROLLBACK TO SAVEPOINT users")


class HeldAsyncpg(Held):
    begins_implicitly = False

    async def begin(self) -> None:
        self.transaction = self.handle.transaction()
        await self.transaction.start()

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()

    async def savepoint(self) -> None:
        self.nested = self.handle.transaction()
        await self.nested.start()

    async def rollback_to_savepoint(self) -> None:
        await self.nested.rollback()


class HeldPooled(HeldAsyncpg):
    async def open(self, **options: Any) -> None:
        self.pool = await asyncpg.create_pool(self.address, min_size=1, max_size=1, **self.kind.options | options)
        self.stack.push_async_callback(self.pool.close)
        self.handle = await self.pool.acquire()
        self.stack.push_async_callback(self.close)

    async def close(self) -> None:
        with contextlib.suppress(asyncpg.InterfaceError):  # it has been released
            await self.pool.release(self.handle)


class HeldSqlalchemy(Held):
    """A session or connection, of either colour; on SQLite by SQLAlchemy's recipe, so that savepoints work."""

    async def open(self, *, recipe: bool = True, **options: Any) -> None:
        url = f"{self.kind.driver}://" + self.address.partition("://")[2]
        if self.kind.system == "sqlite":
            url = f"{self.kind.driver}:///{self.address}"
        make = create_async_engine if self.kind.colour == "async" else sqlalchemy.create_engine
        self.engine: Any = make(url, poolclass=NullPool, connect_args=self.kind.options, **options)
        self.stack.push_async_callback(lambda: self.call(self.engine.dispose))
        if self.kind.system == "sqlite" and recipe:
            follow_the_recipe(getattr(self.engine, "sync_engine", self.engine))
        self.handle = await self.call(lambda: self.kind.connect(self))
        self.stack.push_async_callback(self.close)

    async def execute(self, sql: str) -> None:
        await self.call(self.handle.execute, text(sql))

    async def savepoint(self) -> None:
        self.nested = await self.call(self.handle.begin_nested)

    async def rollback_to_savepoint(self) -> None:
        await self.call(self.nested.rollback)


def follow_the_recipe(engine: sqlalchemy.Engine) -> None:
    """Have SQLAlchemy emit BEGIN, as its documentation says."""
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))


class HeldScoped(HeldSqlalchemy):
    async def close(self) -> None:
        await self.call(self.handle.remove)


class HeldDjango(Held):
    begins_implicitly = False

    async def open(self, **options: Any) -> None:
        self.alias = f"alias_{id(self)}"
        add_alias(self.alias, self.system, self.address, **options)
        self.stack.push_async_callback(lambda: self.call(connections.__delitem__, self.alias))
        await super().open()

    async def execute(self, sql: str) -> None:
        def execute() -> None:
            with self.handle.cursor() as cursor:
                cursor.execute(sql)

        await self.call(execute)

    async def begin(self) -> None:
        self.blocks = [transaction.atomic(using=self.alias)]
        await self.call(self.blocks[-1].__enter__)

    async def commit(self) -> None:
        await self.call(self.blocks.pop().__exit__, None, None, None)

    async def rollback(self) -> None:
        await self.call(self.blocks.pop().__exit__, ValueError, ValueError(), None)

    async def savepoint(self) -> None:
        self.blocks.append(transaction.atomic(using=self.alias))
        await self.call(self.blocks[-1].__enter__)

    rollback_to_savepoint = rollback


def add_alias(alias: str, system: Any, address: str | None = None, **options: Any) -> None:
    """Have Django know a database; *address* is its server's, if it is not the tests' own."""
    if hasattr(system, "path"):
        found = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(system.path)}
    else:
        server = psycopg.conninfo.conninfo_to_dict(address or postgres_url())
        keys = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
        found = {"ENGINE": "django.db.backends.postgresql"}
        found |= {keys[name]: value for name, value in server.items() if name in keys}
    configured = connections.configure_settings({"default": {}, alias: found | options})
    connections.settings[alias] = configured[alias]


def connect_sqlite(held: Held, **options: Any) -> Any:
    return __import__("sqlite3").connect(held.address, **options)


async def connect_aiosqlite(held: Held, **options: Any) -> Any:
    return await aiosqlite.connect(held.address, **options)


def connect_psycopg(held: Held, **options: Any) -> Any:
    return psycopg.connect(held.address, **options)


async def connect_psycopg_async(held: Held, **options: Any) -> Any:
    return await psycopg.AsyncConnection.connect(held.address, **options)


async def connect_asyncpg(held: Held, **options: Any) -> Any:
    return await asyncpg.connect(held.address, **options)


def open_session(held: Any) -> Any:
    return (AsyncSession if held.kind.colour == "async" else Session)(held.engine)


def open_connection(held: Any) -> Any:
    return held.engine.connect()


def open_scoped(held: Any) -> Any:
    return scoped_session(sessionmaker(held.engine))


@dataclass(frozen=True)
class Kind:
    """One line of the table."""

    name: str
    system: str
    colour: str
    held: type[Held]
    connect: Callable[..., Any]
    driver: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    """What its users have to tell its driver there."""

    def __str__(self) -> str:
        return f"{self.name} on {self.system}{' by ' if self.driver else ''}{self.driver.partition('+')[2]}"


KINDS = [
    Kind("sqlite3.Connection", "sqlite", "sync", Held, connect_sqlite),
    Kind("sqlite3.Connection in async code", "sqlite", "async", Held, connect_sqlite),
    Kind("aiosqlite.Connection", "sqlite", "async", Held, connect_aiosqlite),
    Kind("psycopg.Connection", "postgres", "sync", Held, connect_psycopg),
    Kind("psycopg.AsyncConnection", "postgres", "async", Held, connect_psycopg_async),
    Kind("asyncpg.Connection", "postgres", "async", HeldAsyncpg, connect_asyncpg),
    Kind("asyncpg pool's connection", "postgres", "async", HeldPooled, connect_asyncpg),
    *(
        Kind(name, system, colour, HeldSqlalchemy, connect, driver)
        for system, colour, driver in [
            ("sqlite", "sync", "sqlite+pysqlite"),
            ("sqlite", "async", "sqlite+aiosqlite"),
            ("postgres", "sync", "postgresql+psycopg"),
            ("postgres", "async", "postgresql+psycopg"),
            ("postgres", "async", "postgresql+asyncpg"),
        ]
        for name, connect in [
            ("AsyncSession" if colour == "async" else "Session", open_session),
            ("AsyncConnection" if colour == "async" else "Connection", open_connection),
        ]
    ),
    Kind("scoped_session", "sqlite", "sync", HeldScoped, open_scoped, "sqlite+pysqlite"),
    Kind("Django connection", "sqlite", "sync", HeldDjango, lambda held: connections[held.alias]),
    Kind("Django connection", "postgres", "sync", HeldDjango, lambda held: connections[held.alias]),
]

if "pgbouncer" in SYSTEMS:
    # The next transaction may be in another session, which does not know what the last one has prepared.
    FORGETFUL = {
        "psycopg": {"prepare_threshold": None},
        "asyncpg": {"statement_cache_size": 0},
        "postgresql+psycopg": {"prepare_threshold": None},
        "postgresql+asyncpg": {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"users_{uuid.uuid4()}",
        },
    }
    KINDS += [
        replace(
            kind, system="pgbouncer", options=FORGETFUL.get(kind.driver or kind.name.partition(".")[0].split()[0], {})
        )
        for kind in KINDS
        if kind.system == "postgres"
    ]


async def in_loop(function: Callable[..., Any], *args: Any) -> Any:
    """Call, and await what wants to be awaited; a transaction of SQLAlchemy's may be, and is what it is awaited for."""
    value = function(*args)
    return await value if inspect.isawaitable(value) else value


def make_app(system: Any, clock: ManualClock) -> App:
    """Return an App on the system."""
    return App(system.url, clock=clock)


def retrier_of(app: App, colour: str) -> Any:
    """Return a retrier of a colour."""
    return (ActionRetrier if colour == "async" else SyncActionRetrier)(app)
