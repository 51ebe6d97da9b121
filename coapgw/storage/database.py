"""The registry's database: SQLite in the data directory, or whatever else SQLAlchemy reaches.

``open_registry`` gives a ``RegistryDatabase``; its two context managers, ``reading`` and ``writing``, are the only ways
to a connection, and the place where the database's failures become ``StorageError``: one sentence for an operator that
names the database and never its password.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from coapgw.errors import StorageError
from coapgw.storage.tables import REVISION, REVISION_TABLE, registry_version

FILE_NAME: Final = "registry.db"
BUSY_SECONDS: Final = 10  # an import of 100,000 devices holds the write lock for two
_UPGRADE_LOCK: Final = 0x636F6170  # "coap": any number nobody else locks in a PostgreSQL database
_HIDDEN: Final = "***"


class Writing(NamedTuple):
    """A transaction that writes; every row it writes is stamped with *version*."""

    connection: Connection
    version: int


class RegistryDatabase:
    """An open registry, its tables those of this version.  Every call may block; any thread may call.

    Args:
        engine: reaches the database.
        place: how to name it in a sentence.
    """

    def __init__(self, engine: Engine, place: str) -> None:
        """Use *engine*, which ``open_registry`` has prepared."""
        self._engine = engine
        self.place = place

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Read in one transaction.  Raises StorageError."""
        with _told(self._engine.url, self.place), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """Write in one transaction, after every other writer; an exception undoes all of it.  Raises StorageError."""
        with _told(self._engine.url, self.place), self._engine.begin() as connection:
            # First, so that what is read afterwards cannot change any more before the commit.
            connection.execute(update(registry_version).values(n=registry_version.c.n + 1))
            yield Writing(connection, connection.execute(select(registry_version.c.n)).scalar_one())

    def close(self) -> None:
        """Close what connections are idle; the others close when they are done."""
        self._engine.dispose()


def open_registry(url: str, data: Path) -> RegistryDatabase:
    """Open the registry, make it if there is none, and bring its tables to this version.

    Several processes may do so at once.

    Args:
        url: ``registry.url`` of the configuration; empty means ``registry.db`` in *data*.
        data: the data directory, made (mode 0700) if it is needed.

    Raises:
        StorageError: it cannot be opened, is damaged, is no registry, or is of a newer version.
    """
    if not url:
        make_directory(data)
    parsed = URL.create("sqlite", database=str(data / FILE_NAME)) if not url else _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed)
    place = f"the device registry {parsed.get_backend_name()}://{parsed.host or ''}/{parsed.database or ''}"
    database = RegistryDatabase(_engine(parsed, place), place)
    _prepare(database, parsed)
    return database


def _open_sqlite(url: URL) -> RegistryDatabase:
    """Open an SQLite file, with the lock beside it held while it is made or changed."""
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StorageError('registry.url: a device registry in SQLite needs a file, "sqlite:////directory/registry.db"')
    path = Path(url.database)
    place = f"the device registry {path}"
    database = RegistryDatabase(_engine(url, place), place)
    _listen_sqlite(database._engine)
    if not _can_be_seen(path, place):
        with _file_lock(path, place):
            _make_file(path, place)
    elif not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
        raise StorageError(f"{place} cannot be opened: {_why_not(path)}")
    _prepare(database, url)
    return database


def _can_be_seen(path: Path, place: str) -> bool:
    """Return whether there is anything at *path*; raises StorageError if that is not for us to know."""
    try:
        return path.exists()
    except OSError as error:
        raise StorageError(f"{place} cannot be opened: {error.strerror}") from None


def _why_not(path: Path) -> str:
    if not path.is_file():
        return "it is not a file"
    return "this user may not write it" if os.access(path, os.R_OK) else "this user may not read it"


def _prepare(database: RegistryDatabase, url: URL) -> None:
    """Bring the tables to this version; most often they are, and that costs one SELECT."""
    try:
        with database.reading() as connection:
            if _revision(connection) == REVISION and _lets_readers_be(connection):
                return
        is_file = url.get_backend_name() == "sqlite"
        lock = _file_lock(Path(url.database or ""), database.place) if is_file else nullcontext()
        with lock, _told(url, database.place), database._engine.connect() as connection:
            _upgrade(connection, database.place)
            if is_file and connection.connection.dbapi_connection is not None:  # which it never is while connected
                connection.connection.dbapi_connection.cursor().execute(
                    "PRAGMA journal_mode=WAL"
                )  # stays with the file
    except (TypeError, ValueError) as error:  # options in the URL that the driver does not know
        database.close()
        raise StorageError(f"{database.place} cannot be opened: {_sentence(error, url)}") from None
    except BaseException:
        database.close()
        raise


def _upgrade(connection: Connection, place: str) -> None:
    """Run the missing migrations in one transaction that waits for others that do the same."""
    from coapgw.storage.upgrade import upgrade  # Alembic takes half a second to import and is seldom needed

    connection.execution_options(begin="BEGIN IMMEDIATE")  # on SQLite
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
        revision = _revision(connection)
        if revision != REVISION:
            upgrade(connection, revision, place)


def _revision(connection: Connection) -> str | None:
    """Return the migration that the database is at, None for one without registry."""
    if not inspect(connection).has_table(REVISION_TABLE):
        return None
    revision: str | None = connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalar()
    return revision


def _lets_readers_be(connection: Connection) -> bool:
    """Return whether a writer and readers go together; SQLite does so in WAL mode only."""
    return connection.dialect.name != "sqlite" or connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (SQLAlchemyError, ValueError):  # their texts quote the URL
        raise StorageError(
            'registry.url is not the URL of a database, "dialect+driver://user:password@host/name"'
        ) from None


def _engine(url: URL, place: str) -> Engine:
    """Return an engine for *url*; no connection is made yet."""
    try:
        engine = create_engine(
            url, hide_parameters=True, poolclass=QueuePool, pool_pre_ping=url.get_backend_name() != "sqlite"
        )
    except ModuleNotFoundError as missing:
        raise StorageError(f"{place} needs the Python package {missing.name!r}") from None
    except (SQLAlchemyError, ImportError, TypeError, ValueError) as error:
        raise StorageError(f"{place} cannot be opened: {_sentence(error, url)}") from None
    if engine.dialect.is_async:
        raise StorageError(f"{place} needs another driver: {engine.dialect.driver!r} is for asyncio only")
    return engine


def _listen_sqlite(engine: Engine) -> None:
    """Make every connection durable and patient, and leave it to SQLAlchemy when a transaction begins."""

    @event.listens_for(engine, "connect")
    def connected(connection: object, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # sqlite3's own BEGIN comes too late
        cursor = connection.cursor()  # type: ignore[attr-defined]
        for setting in (f"busy_timeout={BUSY_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def make_directory(data: Path) -> None:
    """Make the data directory, its owner's alone, if it is not there.  Raises StorageError."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the data directory {data} cannot be made: {error.strerror}") from None


def _make_file(path: Path, place: str) -> None:
    """Make an empty database that only its owner reads; the files SQLite puts beside it get the same mode.

    Never opens a file that exists: closing it would drop this process's locks on it (POSIX).
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StorageError(f"{place} cannot be made: {error.strerror}") from None


@contextmanager
def _file_lock(path: Path, place: str) -> Iterator[None]:
    """Hold the lock beside the database file *path*, against other processes and threads that make or change it."""
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{place} cannot be made: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _told(url: URL, place: str) -> Iterator[None]:
    """Turn what SQLAlchemy raises into StorageError."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise StorageError(f"{place} failed: {_sentence(error, url)}") from error


def _sentence(error: Exception, url: URL) -> str:
    """Return what the database said, on one line, without SQL and without the password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    said = " ".join(str(cause).split()) or type(cause).__name__
    for secret in (url.password, url.query.get("password")):
        if isinstance(secret, str) and secret:
            said = said.replace(secret, _HIDDEN)
    return said
