"""Brings a registry database to the tables of this version; imported only when there is something to do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from coapgw.errors import StorageError
from coapgw.storage.tables import REVISION, metadata

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def migrations() -> ScriptDirectory:
    """Return the migrations that this version has."""
    return ScriptDirectory.from_config(_settings())


def upgrade(connection: Connection, revision: str | None, place: str) -> None:
    """Run what is missing after *revision* (None: everything) in the transaction that *connection* is in.

    Args:
        place: the name of the database, for a sentence.

    Raises:
        StorageError: the database is of a newer version, or holds somebody else's tables.
    """
    if revision is None:
        strangers = sorted(set(inspect(connection).get_table_names()) & set(metadata.tables))
        if strangers:
            raise StorageError(f"{place} is no device registry, but has a table {strangers[0]!r} already")
    elif revision not in {script.revision for script in migrations().walk_revisions()}:
        raise StorageError(
            f"{place} was written by a newer version of coapgw (revision {revision}, this one knows {REVISION}); "
            "use that version, or a backup from before"
        )
    settings = _settings()
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")


def _settings() -> Config:
    """Return Alembic's configuration, made here and not read from a file, with its output going nowhere."""
    settings = Config(stdout=io.StringIO(), output_buffer=io.StringIO())
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))  # it interpolates
    settings.set_main_option("path_separator", "os")
    return settings
