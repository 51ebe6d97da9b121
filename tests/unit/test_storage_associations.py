"""The files of saved associations: used once, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coapgw.dtls.association import AeadAssociation, CipherCache
from coapgw.dtls.saved import Located
from coapgw.dtls.suites import SUITES, KeyBlock
from coapgw.errors import StorageError
from coapgw.storage.associations import FILE_NAME, KEY_NAME, take_associations, write_associations

CIPHERS = CipherCache(4)
NOW_MS = 1_700_000_000_000
CALLS = ("open", "rename", "unlink", "fsync")  # of os: what changes the disk
CALLS_BEYOND_ALL = 40


class Died(BaseException):
    """The process is gone; no code of ours catches it."""


def some(count: int) -> list[Located]:
    suite = SUITES[0]
    keys = KeyBlock(bytes(suite.block_bytes))
    return [Located("a", AeadAssociation(("h", n), "1" * 19, n, suite, keys, n, CIPHERS)) for n in range(count)]


def write(directory: Path, count: int, now_ms: int = NOW_MS) -> None:
    write_associations(directory, some(count), 0.0, now_ms)


def take(directory: Path, now_ms: int = NOW_MS, max_age_seconds: float = 3600) -> list[int]:
    return [one.association.serial for one in take_associations(directory, 0.0, now_ms, CIPHERS, max_age_seconds)]


def fail_at(monkeypatch: pytest.MonkeyPatch, call: int, failure: BaseException) -> Callable[[], int]:
    """Let the *call*-th change of the disk fail, counted from 0; return what tells how many there were."""
    count = 0

    def replacement(real: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == call + 1 or (count > call and isinstance(failure, Died)):
                raise failure
            return real(*arguments, **options)

        return called

    for name in CALLS:
        monkeypatch.setattr(os, name, replacement(getattr(os, name)))
    return lambda: count


def test_what_was_written_can_be_taken_once(tmp_path: Path) -> None:
    write(tmp_path, 3)
    assert take(tmp_path) == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []
    assert take(tmp_path) == []


def test_nothing_saved_is_nothing(tmp_path: Path) -> None:
    assert take(tmp_path) == []
    write(tmp_path, 0)
    assert take(tmp_path) == []


def test_second_save_replaces_the_first_under_another_key(tmp_path: Path) -> None:
    write(tmp_path, 3)
    first = (tmp_path / KEY_NAME).read_bytes()
    write(tmp_path, 2)
    assert (tmp_path / KEY_NAME).read_bytes() != first
    assert take(tmp_path) == [0, 1]


def test_only_the_owner_may_read_them(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        write(tmp_path, 1)
    finally:
        os.umask(old_mask)
    for name in (FILE_NAME, KEY_NAME):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "spoil",
    [
        lambda directory: (directory / FILE_NAME).unlink(),
        lambda directory: (directory / FILE_NAME).write_bytes(b""),
        lambda directory: (directory / FILE_NAME).write_bytes(b"rubbish" * 100),
        lambda directory: os.truncate(directory / FILE_NAME, 60),
        lambda directory: (directory / KEY_NAME).write_bytes(b""),
        lambda directory: (directory / KEY_NAME).write_bytes(bytes(32)),
        lambda directory: (directory / KEY_NAME).write_bytes(bytes(33)),
    ],
)
def test_spoiled_files_are_told_and_gone(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    write(tmp_path, 3)
    spoil(tmp_path)
    with pytest.raises(StorageError, match=r"saved associations in .* are not used: "):
        take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_associations_without_their_key_are_deleted_silently(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / KEY_NAME).unlink()
    assert take(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_too_old_ones_are_given_up(tmp_path: Path) -> None:
    write(tmp_path, 3)
    with pytest.raises(StorageError, match=r"saved 61 seconds ago"):
        take(tmp_path, NOW_MS + 61_000, max_age_seconds=60)
    assert take(tmp_path) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, 3)
    data = tmp_path / "data"
    data.mkdir()
    for name in (FILE_NAME, KEY_NAME):
        (data / name).symlink_to(elsewhere / name)
    with pytest.raises(StorageError):
        take(data)
    (data / (KEY_NAME + ".new")).symlink_to(tmp_path / "made")
    write(data, 1)
    assert not (tmp_path / "made").exists()
    assert take(data) == [0]


def test_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"were not saved"):
        write(tmp_path / "none", 1)
    assert take(tmp_path / "none") == []


def test_dying_while_writing_leaves_them_to_one_run_or_none(tmp_path: Path) -> None:
    outcomes = []
    for call in range(CALLS_BEYOND_ALL):
        write(tmp_path, 2)
        with pytest.MonkeyPatch.context() as monkeypatch:
            fail_at(monkeypatch, call, Died())
            try:
                write(tmp_path, 3)
            except Died:
                pass
            else:
                break
        outcomes.append(take(tmp_path))
        assert take(tmp_path) == []
        assert list(tmp_path.iterdir()) == []
    assert len(outcomes) > 10
    before, between, after = outcomes.count([0, 1]), outcomes.count([]), outcomes.count([0, 1, 2])
    assert outcomes == [[0, 1]] * before + [[]] * between + [[0, 1, 2]] * after
    assert before
    assert between
    assert after


def test_dying_while_taking_gives_them_to_one_run_or_none(tmp_path: Path) -> None:
    outcomes = []
    for call in range(CALLS_BEYOND_ALL):
        write(tmp_path, 3)
        with pytest.MonkeyPatch.context() as monkeypatch:
            fail_at(monkeypatch, call, Died())
            try:
                taken = take(tmp_path)
            except Died:
                pass
            else:
                break
        outcomes.append(take(tmp_path))
        assert take(tmp_path) == []
    assert len(outcomes) > 5
    assert taken == [0, 1, 2]
    assert take(tmp_path) == []
    before = outcomes.count([0, 1, 2])
    assert outcomes == [[0, 1, 2]] * before + [[]] * (len(outcomes) - before)
    assert before


def test_failing_disk_never_gives_them_twice(tmp_path: Path) -> None:
    refused: list[str] = []
    for call in range(CALLS_BEYOND_ALL):
        write(tmp_path, 3)
        taken = []
        with pytest.MonkeyPatch.context() as monkeypatch:
            changes = fail_at(monkeypatch, call, OSError(5, "Input/output error"))
            try:
                taken = take(tmp_path)
            except StorageError as error:
                refused.append(str(error))
            if changes() <= call:
                break
        again = take(tmp_path)
        assert not (taken and again)
        assert take(tmp_path) == []
    assert len(refused) > 5
    assert all("Input/output error" in sentence for sentence in refused)


def test_failing_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    refused: list[str] = []
    for call in range(CALLS_BEYOND_ALL):
        with pytest.MonkeyPatch.context() as monkeypatch:
            changes = fail_at(monkeypatch, call, OSError(28, "No space left on device"))
            try:
                write(tmp_path, 3)
            except StorageError as error:
                refused.append(str(error))
            if changes() <= call:
                break
        assert list(tmp_path.iterdir()) == []
    assert len(refused) > 5
    assert all("No space left on device" in sentence for sentence in refused)
    assert take(tmp_path) == [0, 1, 2]


def test_disk_is_told_in_the_right_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may undo whatever was not followed by fsync."""
    told: list[tuple[str, str]] = []
    fsync, rename, unlink = os.fsync, os.rename, os.unlink

    def fsync_told(descriptor: int) -> None:
        told.append(("fsync", _name(descriptor, tmp_path)))
        fsync(descriptor)

    def rename_told(source: Path, target: Path) -> None:
        rename(source, target)
        told.append(("rename", target.name))

    def unlink_told(path: Path) -> None:
        unlink(path)
        told.append(("unlink", path.name))

    monkeypatch.setattr(os, "fsync", fsync_told)
    monkeypatch.setattr(os, "rename", rename_told)
    monkeypatch.setattr(os, "unlink", unlink_told)
    write(tmp_path, 1)
    assert told == [
        ("fsync", "associations.new"),
        ("rename", "associations"),
        ("fsync", "."),
        ("fsync", "associations.key.new"),
        ("rename", "associations.key"),
        ("fsync", "."),
    ]
    told.clear()
    assert take(tmp_path) == [0]
    assert told == [("unlink", "associations.key"), ("fsync", "."), ("unlink", "associations"), ("fsync", ".")]


def _name(descriptor: int, directory: Path) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(directory))
