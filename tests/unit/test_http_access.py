"""The administrator's token: made once, durable, nobody else's."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from twisted.logger import LogEvent, capturedLogs, formatEvent

from coapgw.errors import StorageError
from coapgw.http.access import AdminToken, open_token
from coapgw.http.refusals import TokenRefused


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


def is_accepted(token: AdminToken, word: str) -> bool:
    try:
        token.expect(f"Bearer {word}".encode())
    except TokenRefused:
        return False
    return True


def test_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path, logged: Sequence[LogEvent]) -> None:
    first = open_token(tmp_path)
    path = tmp_path / "admin.token"
    word = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(word) == 64
    assert is_accepted(first, word)
    assert is_accepted(open_token(tmp_path), word)
    assert path.read_text().strip() == word
    assert [name.name for name in tmp_path.iterdir()] == ["admin.token"]
    assert logged == []
    assert word not in repr(first)


def test_two_directories_have_two_tokens(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    open_token(tmp_path)
    open_token(tmp_path / "other")
    assert (tmp_path / "admin.token").read_text() != (tmp_path / "other" / "admin.token").read_text()


def test_what_a_start_that_was_cut_short_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "admin.token.new").write_text("half")
    assert is_accepted(open_token(tmp_path, lambda size: b"\xab" * size), "ab" * 32)


def test_token_of_the_operators_own_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "admin.token"
    path.write_text("  correct-horse-battery-staple \n")
    path.chmod(0o600)
    assert is_accepted(open_token(tmp_path), "correct-horse-battery-staple")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o700 | 0o001])
def test_token_that_others_may_read_is_warned_of(tmp_path: Path, mode: int, logged: Sequence[LogEvent]) -> None:
    open_token(tmp_path)
    path = tmp_path / "admin.token"
    path.chmod(mode)
    open_token(tmp_path)
    assert [formatEvent(event) for event in logged] == [f"{path} can be read by others (mode {mode:04o}); chmod 600 it"]


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"\xff" * 64, b"two words of enough letters"])
def test_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "admin.token").write_bytes(content)
    with pytest.raises(StorageError, match="remove the file to have one made") as refused:
        open_token(tmp_path)
    assert "words" not in str(refused.value)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "admin.token").mkdir()
    with pytest.raises(StorageError, match="cannot be used"):
        open_token(tmp_path)


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"admin\.token cannot be used: No such file"):
        open_token(tmp_path / "absent")


@pytest.mark.parametrize(
    "field", [None, b"", b"Bearer", b"Bearer ", b"bearer x", b"Basic " + b"a" * 64, b"\xff\xfe", b"a" * 64]
)
def test_other_fields_are_refused(field: bytes | None) -> None:
    with pytest.raises(TokenRefused):
        AdminToken(b"a" * 64).expect(field)
