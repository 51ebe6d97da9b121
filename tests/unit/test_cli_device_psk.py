"""``coapgw device psk``, in this process: what it shows, what it sets, what it refuses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import FILE_NAME, open_seal
from tests.unit.registries import START_MS, iccid, registry_in
from tests.unit.test_cli_device import TIME, Said, Tool, tool  # noqa: F401 - tool is a fixture

ONE, TWO = iccid(1), iccid(2)


@pytest.fixture
def psk(tool: Tool) -> Callable[..., Said]:  # noqa: F811 - the fixture
    """The verb, for a device that is there."""
    assert tool("device", "add", ONE).status == 0
    return lambda *words: tool("device", "psk", *words)


@contextmanager
def stdin_of(data: bytes, tmp_path: Path) -> Iterator[None]:
    """Put a file in the place of standard input."""
    (tmp_path / "stdin").write_bytes(data)
    kept, opened = os.dup(0), os.open(tmp_path / "stdin", os.O_RDONLY)
    try:
        os.dup2(opened, 0)
        yield
    finally:
        os.dup2(kept, 0)
        os.close(opened)
        os.close(kept)


def test_key_is_set_shown_and_rotated(psk: Callable[..., Said]) -> None:
    assert psk(ONE) == Said(1, "", f"coapgw: device {ONE} has no key yet\n")
    assert psk(ONE, "--set", "Tr0ub4dor&3") == Said(0, f"set the key of {ONE}\n", "")
    lines = psk(ONE).out.splitlines()
    assert lines[:3] == ["psk        Tr0ub4dor&3", "format     STRING", "chosen by  a user"]
    assert [line.split()[0] for line in lines[3:]] == ["createdAt", "updatedAt"]
    rotated = psk(ONE, "--rotate")
    assert re.match(r"psk {8}[A-Za-z0-9]{16}\nformat     STRING\nchosen by  the gateway\n", rotated.out)
    assert psk(ONE) == rotated


def test_answers_as_json(psk: Callable[..., Said]) -> None:
    value = psk(ONE, "--set", "00C0FFEE", "--format", "HEX", "--json").value
    assert TIME.fullmatch(value.pop("createdAt"))
    assert TIME.fullmatch(value.pop("updatedAt"))
    expected = {"deviceId": ONE, "identity": ONE, "secretKey": "00c0ffee", "protocol": "COAP", "format": "HEX"}
    assert value == expected | {"byUser": True}
    assert psk(ONE, "--json").value["secretKey"] == "00c0ffee"
    rotated = psk("--json", ONE, "--rotate").value
    assert (rotated["format"], rotated["byUser"], len(rotated["secretKey"])) == ("STRING", False, 16)
    refused = psk(TWO, "--json")
    assert (refused.status, refused.value) == (1, {"error": f"no device '{TWO}'"})


@pytest.mark.parametrize("data", [b"Tr0ub4dor&3", b"Tr0ub4dor&3\n", b"Tr0ub4dor&3\r\n"])
def test_key_comes_from_stdin(psk: Callable[..., Said], tmp_path: Path, data: bytes) -> None:
    with stdin_of(data, tmp_path):
        assert psk(ONE, "--set", "-").status == 0
    assert psk(ONE, "--json").value["secretKey"] == "Tr0ub4dor&3"


@pytest.mark.parametrize("data", [b"", b"short\n", b"Tr0ub4dor&3\n\n", b"Tr0ub4dor\xff\xfe"])
def test_what_is_no_key_on_stdin_is_refused(psk: Callable[..., Said], tmp_path: Path, data: bytes) -> None:
    with stdin_of(data, tmp_path):
        said = psk(ONE, "--set", "-")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("coapgw: the key: ")
    assert "Tr0ub4" not in said.err


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ((ONE, "--set", "short"), 1),
        ((ONE, "--set", "1234567", "--format", "HEX"), 1),
        ((ONE, "--set", "12345678\udc80"), 1),
        ((TWO, "--set", "12345678"), 1),
        ((TWO, "--rotate"), 1),
        (("12",), 1),
        ((ONE, "--format", "HEX"), 2),
        ((ONE, "--rotate", "--format", "HEX"), 2),
        ((ONE, "--rotate", "--set", "12345678"), 2),
        ((ONE, "--set", "12345678", "--format", "BASE64"), 2),
        ((), 2),
    ],
)
def test_wrong_calls_change_nothing(psk: Callable[..., Said], words: tuple[str, ...], status: int) -> None:
    said = psk(*words)
    assert (said.status, said.out) == (status, "")
    assert said.err
    assert psk(ONE).err == f"coapgw: device {ONE} has no key yet\n"


def test_lost_key_file_is_a_sentence(psk: Callable[..., Said], tmp_path: Path) -> None:
    psk(ONE, "--rotate")
    (tmp_path / "data" / FILE_NAME).unlink()
    for words in ((ONE,), (ONE, "--rotate"), (ONE, "--set", "12345678")):
        said = psk(*words)
        assert (said.status, said.out) == (1, "")
        assert f"{FILE_NAME}, which unseals the keys of devices, is missing" in said.err


def test_key_that_a_running_gateway_made_is_shown(psk: Callable[..., Said], tmp_path: Path) -> None:
    with registry_in(tmp_path / "data") as opened:
        keys = DeviceKeys(opened.database, open_seal(tmp_path / "data", opened.database), lambda: START_MS)
        made = keys.bootstrap(ONE, 300)
        assert psk(ONE, "--json").value["secretKey"] == made.written
        assert keys.bootstrap(ONE, 300) == made
