"""Opening the registry: a fresh one, an older one, a newer one, and what is none."""

from __future__ import annotations

import logging
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from coapgw.errors import KeyNotFound, StorageError
from coapgw.model import Device, DeviceKey, DeviceStatus, KeyFormat
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import KeySeal
from coapgw.storage.tables import REVISION, REVISION_TABLE, metadata
from coapgw.storage.upgrade import migrations
from tests.unit.registries import START_MS, iccid, opened_in, registry_in

DUMPS = Path(__file__).parents[1] / "data"
PASSWORD = "hunter2-S3CRET"


def sqlite(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Run statements past the registry; return what the last one gives."""
    connection = sqlite3.connect(path)
    rows: list[tuple[object, ...]] = []
    with connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


def refusal(url: str, data: Path) -> str:
    """Open a registry that cannot be; return the sentence."""
    with pytest.raises(StorageError) as refused:
        open_registry(url, data)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert PASSWORD not in sentence
    return sentence


def test_fresh_registry_is_its_owners_alone_and_durable(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    with opened_in(data) as opened:
        opened.devices.add(Device(iccid(1)))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()}
        assert set(modes) == {"registry.db", "registry.db.lock", "registry.db-wal", "registry.db-shm"}
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        with opened.database.reading() as connection:
            settings = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            ]
    assert settings == ["wal", 2, 10_000, 1]
    assert sorted(path.name for path in data.iterdir()) == ["registry.db", "registry.db.lock"]


def test_registry_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with registry_in(tmp_path) as opened:
        added = opened.devices.add(Device(iccid(1)))
    with registry_in(tmp_path) as opened:
        assert opened.devices.get(iccid(1)) == added


def test_url_names_another_file(tmp_path: Path) -> None:
    database = open_registry(f"sqlite:///{tmp_path}/other.db", tmp_path / "data")
    database.close()
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "data").exists()


def test_migrations_lead_to_the_tables_that_are_used(tmp_path: Path) -> None:
    assert migrations().get_heads() == [REVISION]
    with opened_in(tmp_path) as opened, opened.database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_every_revision_has_its_dump() -> None:
    dumped = {path.stem.removeprefix("registry-") for path in DUMPS.glob("registry-*.sql")}
    assert dumped == {script.revision for script in migrations().walk_revisions()}


@pytest.mark.parametrize("dump", sorted(DUMPS.glob("registry-*.sql")), ids=lambda path: path.stem)
def test_registry_of_every_older_version_is_upgraded(tmp_path: Path, dump: Path) -> None:
    connection = sqlite3.connect(tmp_path / "registry.db")
    connection.executescript(dump.read_text(encoding="utf-8"))
    connection.close()
    with registry_in(tmp_path) as opened:
        first = Device(
            iccid(1), "901405100000001", "10.0.0.1", "boiler", DeviceStatus.ACTIVE, START_MS, START_MS + 3000
        )
        second = Device(
            iccid(2), None, "2001:db8::2", "Zähler", DeviceStatus.INACTIVE, START_MS + 1000, START_MS + 1000
        )
        assert opened.devices.list(10) == [first, second]
        changes = opened.devices.changes_since(2)
        assert changes is not None
        assert (changes.version, list(changes.changed), changes.removed) == (5, [first], (iccid(3),))
        opened.devices.add(Device(iccid(4)))
    assert sqlite(tmp_path / "registry.db", f"SELECT version_num FROM {REVISION_TABLE}") == [(REVISION,)]
    assert sqlite(tmp_path / "registry.db", "PRAGMA journal_mode") == [("wal",)]


def test_key_in_a_registry_of_an_older_version_can_be_read(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "registry.db")
    connection.executescript((DUMPS / "registry-0002.sql").read_text(encoding="utf-8"))
    connection.close()
    with registry_in(tmp_path) as opened:
        keys = DeviceKeys(opened.database, KeySeal(bytes(range(32)), "the file of that time"), lambda: START_MS)
        key = keys.get(iccid(1))
        times = (START_MS + 2000, START_MS + 3000)
        assert key == DeviceKey(iccid(1), b"q8Yt2LmZ0aXw4RbK", KeyFormat.STRING, False, 5, *times)
        assert keys.bootstrap(iccid(1), 300) == key
        with pytest.raises(KeyNotFound):
            keys.get(iccid(2))


def test_registry_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with registry_in(tmp_path):
        pass
    sqlite(tmp_path / "registry.db", f"UPDATE {REVISION_TABLE} SET version_num = '9999'")
    before = (tmp_path / "registry.db").read_bytes()
    assert "newer version of coapgw (revision 9999" in refusal("", tmp_path)
    assert (tmp_path / "registry.db").read_bytes() == before


def test_upgrade_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """The last statement of the migration cannot be: nothing of those before it stays."""
    sqlite(tmp_path / "registry.db", "CREATE TABLE x(n)", "CREATE INDEX devices_removed_by_version ON x(n)")
    assert "devices_removed_by_version" in refusal("", tmp_path)
    assert sqlite(tmp_path / "registry.db", "SELECT name FROM sqlite_master WHERE type = 'table'") == [("x",)]


def test_upgrade_neither_logs_nor_touches_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = [*logging.root.handlers], logging.root.level, logging.getLogger("alembic").disabled
    with opened_in(tmp_path):
        pass
    assert ([*logging.root.handlers], logging.root.level, logging.getLogger("alembic").disabled) == before
    assert caplog.records == []


def test_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    sqlite(tmp_path / "registry.db", "CREATE TABLE devices(serial)")
    before = (tmp_path / "registry.db").read_bytes()
    assert "no device registry" in refusal("", tmp_path)
    assert (tmp_path / "registry.db").read_bytes() == before


def test_tables_beside_ours_do_not_matter(tmp_path: Path) -> None:
    sqlite(tmp_path / "registry.db", "CREATE TABLE alembic_version(version_num)", "CREATE TABLE invoices(n)")
    with registry_in(tmp_path) as opened:
        opened.devices.add(Device(iccid(1)))


def no_database(data: Path) -> None:
    (data / "registry.db").write_bytes(b"iccid,ip\n" * 1000)


def damaged(data: Path) -> None:
    with registry_in(data) as opened:
        opened.devices.import_all([Device(iccid(number)) for number in range(1000)])
    content = bytearray((data / "registry.db").read_bytes())
    content[100:8192] = b"\xff" * 8092
    (data / "registry.db").write_bytes(content)


def cut_short(data: Path) -> None:
    with registry_in(data):
        pass
    (data / "registry.db").write_bytes((data / "registry.db").read_bytes()[:5000])


def directory(data: Path) -> None:
    (data / "registry.db").mkdir()


@pytest.mark.parametrize("spoil", [no_database, damaged, cut_short, directory])
def test_what_is_no_registry_is_told_in_a_sentence(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path)
    assert str(tmp_path / "registry.db") in refusal("", tmp_path)


def test_data_directory_that_cannot_be_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file" / "data") in refusal("", tmp_path / "file" / "data")
    assert "No such file or directory" in refusal(f"sqlite:///{tmp_path}/nowhere/x.db", tmp_path)


def test_database_that_turns_bad_later_is_told_in_a_sentence(tmp_path: Path) -> None:
    with registry_in(tmp_path) as opened:
        with opened.database.writing() as (connection, _):
            connection.exec_driver_sql("DROP TABLE devices")
        for ask in (lambda: opened.devices.get(iccid(1)), lambda: opened.devices.add(Device(iccid(1)))):
            with pytest.raises(StorageError, match="no such table: devices"):
                ask()


def test_database_that_is_read_only_refuses_to_write(tmp_path: Path) -> None:
    with registry_in(tmp_path) as opened:
        with opened.database.reading() as connection:
            connection.exec_driver_sql("PRAGMA query_only=ON")  # stays with the pooled connection
        with pytest.raises(StorageError, match="readonly"):
            opened.devices.add(Device(iccid(1)))


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite+aiosqlite:///x.db",
        f"nosuchdatabase://me:{PASSWORD}@host/name",
        f"postgresql+nosuchdriver://me:{PASSWORD}@host/name",
        f"oracle+oracledb://me:{PASSWORD}@host/name",
        f"postgresql://me:{PASSWORD}@host:port/name",
        f"no url, but with {PASSWORD}",
    ],
)
def test_url_that_leads_nowhere_is_told_without_its_password(tmp_path: Path, url: str) -> None:
    refusal(url, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_option_of_the_wrong_kind_is_told_in_a_sentence(tmp_path: Path) -> None:
    assert "soon" in refusal(f"sqlite:///{tmp_path}/x.db?timeout=soon", tmp_path)


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    """Versions are in the order of commits: the second writer does not even get one before the first is done."""
    with registry_in(tmp_path) as opened, registry_in(tmp_path) as other:
        with other.database.reading() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=1")  # stays with the pooled connection
        with opened.database.writing() as (_, version):
            with pytest.raises(StorageError, match="locked"):
                other.devices.add(Device(iccid(1)))
            assert other.devices.list(10) == []  # readers do not wait
        with other.database.writing() as (_, next_version):
            assert next_version == version + 1


def test_registry_takes_its_time_from_outside(tmp_path: Path) -> None:
    database = open_registry("", tmp_path)
    assert DeviceRegistry(database, lambda: 42).add(Device(iccid(1))).created_at == 42
    database.close()
