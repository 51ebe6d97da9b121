"""What every client can be asked, and how those are talked to that pass raw datagrams."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import Suite
from tests.unit.coap_wire import datagram

ROOT = Path(__file__).parents[3]
INSTALLED = ROOT / ".cache" / "interop"
"""Where `tests/interop/clients/install` puts what is no Debian package."""
PATIENCE = 15.0
SILENCE = "silence"  # in place of a code: no answer, however often the request was repeated
_COMPILING = threading.Lock()


class CoapsClient(Protocol):
    """A client of other people's making."""

    name: str
    suites: Sequence[Suite]  # each of these it can be made to offer alone
    lacks: str  # why it has not the others

    def version(self) -> str:
        """Return the version of what is installed; raises FileNotFoundError with what to install, or ClientAbsent."""

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST each payload to "/", if it can over one association; return the codes of the answers, such as "2.04".

        Offers *suite* alone, or with None what it offers by itself.
        """


class CidClient(CoapsClient, Protocol):
    """One that has Connection IDs (RFC 9146)."""

    def with_cid(self, size: int | None) -> CidClient:
        """Return one that asks for a Connection ID and wants one of *size* bytes; None: that asks for none."""

    def post_between(
        self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes], between: Callable[[], None]
    ) -> list[str]:
        """POST over one association, calling *between* between two; "silence" for a request without an answer.

        Raises ConnectionError with what the library said.
        """


class ClientAbsent(Exception):
    """A client that a machine may be without: what it needs."""


def program(name: str, package: str) -> str:
    """Return the path of a program; raises FileNotFoundError with the package that has it."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is missing: apt-get install {package}")
    return found


def first_number(text: str) -> str:
    """Return the first thing in *text* that looks like a version."""
    found = re.search(r"\d+(\.\d+)+", text)
    assert found is not None, text
    return found[0]


def compiled(source: str, package: str, *arguments: str) -> Path:
    """Compile a C file of this directory, if it changed since; raises FileNotFoundError with the package it needs."""
    built = INSTALLED / "built" / source.removesuffix(".c")
    text = Path(__file__).with_name(source)
    with _COMPILING:
        _compile_if_changed(built, text, package, arguments)
    return built


def _compile_if_changed(built: Path, text: Path, package: str, arguments: Sequence[str]) -> None:
    if built.exists() and built.stat().st_mtime >= text.stat().st_mtime:
        return
    built.parent.mkdir(parents=True, exist_ok=True)
    unfinished = built.with_suffix(f".{os.getpid()}")
    command = [program("cc", "gcc"), "-O1", "-Wall", "-Wextra", "-o", str(unfinished), str(text), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FileNotFoundError(f"{text.name} does not compile: apt-get install {package}\n{done.stderr}")
    unfinished.replace(built)


def post_by_lines(command: Sequence[str], payloads: Sequence[bytes], between: Callable[[], None]) -> list[str]:
    """Run a program that prints a code a line, and waits for a line between two payloads; return the codes.

    Calls *between* before each such line.  Raises ConnectionError with what the program said when it failed.
    """
    pipe = subprocess.PIPE
    full = [*command, *(payload.decode() for payload in payloads)]
    with subprocess.Popen(full, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            codes = [process.stdout.readline().strip()]
            for _ in payloads[1:]:
                if not codes[-1]:
                    break
                between()
                process.stdin.write("\n")
                process.stdin.flush()
                codes.append(process.stdout.readline().strip())
            _, complaint = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    if process.returncode != 0:
        raise ConnectionError(complaint)
    return codes


def nothing() -> None:
    """Do nothing between two payloads."""


def code_text(code: int) -> str:
    """Return a code as people write it (RFC 7252 section 3)."""
    return f"{code >> 5}.{code & 31:02}"


def converse(command: Sequence[str], payloads: Sequence[bytes]) -> list[str]:
    """Run a program that sends what it reads as one datagram and writes what it receives; return the codes.

    Writes the next request when the last was answered, so that each is a datagram of its own.
    """
    # Nothing in a request may be a line end or a command letter to such a program.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdin is not None
    assert process.stdout is not None
    codes: list[str] = []
    try:
        for number, payload in enumerate(payloads):
            message_id, token = 0x3141 + number, bytes([0x61 + number, 0x7A])
            process.stdin.write(datagram(message_id=message_id, token=token, payload=payload))
            process.stdin.flush()
            codes.append(_read_code(process.stdout.fileno(), message_id.to_bytes(2, "big") + token))
    finally:
        process.kill()
        process.communicate()
    return codes


def _read_code(output: int, end_of_header: bytes) -> str:
    seen, deadline = b"", time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not select.select([output], [], [], deadline - time.monotonic())[0]:
            break
        read = os.read(output, 65_536)
        if not read:
            raise ConnectionError(f"the client ended: {seen[-500:]!r}")
        seen += read
        before, found, _ = seen.partition(end_of_header)
        if found:
            return code_text(before[-1])
    raise TimeoutError(f"no answer; the client wrote {seen[-500:]!r}")
