"""The file that seals keys: made once, durably, for its owner alone, and never replaced in silence."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from coapgw.errors import StorageError
from coapgw.model import Device, KeyFormat
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import FILE_NAME, KEY_BYTES, KeySeal, open_seal
from tests.unit.registries import OpenRegistry, iccid, registry_in

SEAL = KeySeal(bytes(range(KEY_BYTES)), "keys.key")
SECRET = b"q8Yt2LmZ0aXw4RbK"


def keys_of(opened: OpenRegistry, data: Path) -> DeviceKeys:
    return DeviceKeys(opened.database, open_seal(data, opened.database), lambda: 0)


def refusal(data: Path, opened: OpenRegistry) -> str:
    with pytest.raises(StorageError) as refused:
        open_seal(data, opened.database)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_sealed_secret_is_unsealed_by_the_same_key_only() -> None:
    sealed = SEAL.seal(SECRET, iccid(1), KeyFormat.STRING, 7)
    assert SECRET not in sealed
    assert SEAL.unseal(sealed, iccid(1), KeyFormat.STRING, 7) == SECRET
    assert sealed != SEAL.seal(SECRET, iccid(1), KeyFormat.STRING, 7)
    with pytest.raises(StorageError, match=iccid(1)):
        KeySeal(bytes(KEY_BYTES), "other").unseal(sealed, iccid(1), KeyFormat.STRING, 7)


@pytest.mark.parametrize(
    ("owner", "key_format", "serial"),
    [(iccid(2), KeyFormat.STRING, 7), (iccid(1), KeyFormat.HEX, 7), (iccid(1), KeyFormat.STRING, 8)],
)
def test_sealed_secret_cannot_be_moved(owner: str, key_format: KeyFormat, serial: int) -> None:
    sealed = SEAL.seal(SECRET, iccid(1), KeyFormat.STRING, 7)
    with pytest.raises(StorageError):
        SEAL.unseal(sealed, owner, key_format, serial)


def test_damaged_or_short_sealed_secret_is_an_error_of_ours() -> None:
    sealed = SEAL.seal(SECRET, iccid(1), KeyFormat.STRING, 7)
    spoiled = [sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :] for place in range(len(sealed))]
    spoiled += [sealed[:length] for length in range(len(sealed))]
    for wrong in spoiled:
        with pytest.raises(StorageError):
            SEAL.unseal(wrong, iccid(1), KeyFormat.STRING, 7)


def test_seal_shows_no_key() -> None:
    key = bytes(range(65, 65 + KEY_BYTES))
    shown = repr(KeySeal(key, "keys.key")) + KeySeal(key, "keys.key").fingerprint
    assert key.decode() not in shown
    assert key.hex() not in shown


def test_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with registry_in(tmp_path) as opened:
            first = open_seal(tmp_path, opened.database)
            assert open_seal(tmp_path, opened.database).fingerprint == first.fingerprint
    finally:
        os.umask(old)
    assert (tmp_path / FILE_NAME).stat().st_size == KEY_BYTES
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob("*.new")] == []


def test_many_that_make_the_file_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)
    with registry_in(tmp_path) as opened:

        def make() -> None:
            barrier.wait()
            found.append(open_seal(tmp_path, opened.database).fingerprint)

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_missing_file_is_made_anew_only_while_no_key_is_sealed(tmp_path: Path) -> None:
    with registry_in(tmp_path) as opened:
        opened.devices.add(Device(iccid(1)))
        open_seal(tmp_path, opened.database)
        (tmp_path / FILE_NAME).unlink()
        keys_of(opened, tmp_path).rotate(iccid(1))
        (tmp_path / FILE_NAME).rename(tmp_path / "copy")
        assert "is missing" in refusal(tmp_path, opened)
        assert not (tmp_path / FILE_NAME).exists()
        (tmp_path / "copy").rename(tmp_path / FILE_NAME)
        assert keys_of(opened, tmp_path).get(iccid(1)).by_user is False


def test_another_file_is_refused(tmp_path: Path) -> None:
    with registry_in(tmp_path) as opened:
        opened.devices.add(Device(iccid(1)))
        keys_of(opened, tmp_path).rotate(iccid(1))
        (tmp_path / FILE_NAME).write_bytes(bytes(KEY_BYTES))
        assert "is not the file that seals" in refusal(tmp_path, opened)
        assert "is missing" in refusal(tmp_path / "another gateway", opened)


def test_two_directories_with_one_registry_cannot_both_seal(tmp_path: Path) -> None:
    """Both made a file while there was no key; the second one's is the registry's, and the first may not write."""
    with registry_in(tmp_path) as opened:
        opened.devices.add(Device(iccid(1)))
        first = keys_of(opened, tmp_path)
        second = keys_of(opened, tmp_path / "elsewhere")
        with pytest.raises(StorageError, match="is not the file that seals"):
            first.bootstrap(iccid(1), 300)
        second.bootstrap(iccid(1), 300)
        assert "is not the file that seals" in refusal(tmp_path, opened)


def too_short(path: Path) -> None:
    path.write_bytes(bytes(KEY_BYTES - 1))


def too_long(path: Path) -> None:
    path.write_bytes(bytes(KEY_BYTES + 1))


def readable_by_others(path: Path) -> None:
    path.write_bytes(bytes(KEY_BYTES))
    path.chmod(0o640)


def directory(path: Path) -> None:
    path.mkdir(mode=0o600)


def pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("spoil", [too_short, too_long, readable_by_others, directory, pipe])
def test_what_is_no_key_file_is_told_in_a_sentence(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    with registry_in(tmp_path) as opened:
        old = os.umask(0o077)
        try:
            spoil(tmp_path / FILE_NAME)
        finally:
            os.umask(old)
        assert str(tmp_path / FILE_NAME) in refusal(tmp_path, opened)


def test_place_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with registry_in(tmp_path) as opened:
        assert "cannot be" in refusal(tmp_path / "file", opened)


def test_rows_without_a_fingerprint_are_refused(tmp_path: Path) -> None:
    with registry_in(tmp_path) as opened:
        opened.devices.add(Device(iccid(1)))
        keys_of(opened, tmp_path).rotate(iccid(1))
        with opened.database.writing() as (connection, _):
            connection.execute(text("DELETE FROM key_seal"))
        assert "is not the file that seals" in refusal(tmp_path, opened)
