"""CoAP clients of other people's making, asked in one way: aiocoap, libcoap's command line, node's coap."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import aiocoap
import attrs

from tests.interop.clients.client import program
from tests.interop.clients.node import MODULES

SECONDS = 70  # a little less than the time after which nobody waits any more; repeats are the client's own
_NODE_NAMES = {1: "If-Match", 4: "ETag", 5: "If-None-Match", 12: "Content-Format", 17: "Accept"}
METHODS = {"GET": 1, "POST": 2, "PUT": 3, "DELETE": 4, "FETCH": 5}


@attrs.frozen
class Asked:
    """A request.

    Args:
        path: without a leading slash.
        options: numbers and values.
        block: preferred size in bytes, where a client can be told.
    """

    path: str
    method: str = "GET"
    payload: bytes = b""
    query: Sequence[str] = ()
    options: Sequence[tuple[int, bytes]] = ()
    non: bool = False
    block: int = 0


@attrs.frozen
class Answered:
    """What an application was given."""

    code: str
    payload: bytes


class PlainClient(Protocol):
    """A client."""

    name: str
    transport: str

    def version(self) -> str:
        """Return its version."""

    def ask(self, server: tuple[str, int], asked: Asked) -> Answered:
        """Send a request; return the answer."""

    def observe(self, server: tuple[str, int], path: str, told: Callable[[bytes], bool]) -> None:
        """Observe a resource; *told* hears every state and says whether it has heard enough."""


def _url(server: tuple[str, int], asked: Asked, scheme: str = "coap") -> str:
    query = "?" + "&".join(asked.query) if asked.query else ""
    return f"{scheme}://{server[0]}:{server[1]}/{asked.path}{query}"


class Aiocoap:
    """aiocoap, in a loop of its own for each request."""

    name = "aiocoap"
    transport = "UDP"

    def version(self) -> str:
        """Return its version."""
        return version("aiocoap")

    def ask(self, server: tuple[str, int], asked: Asked) -> Answered:
        """Send a request; return the answer."""
        return asyncio.run(asyncio.wait_for(self._ask(server, asked), SECONDS))

    async def _ask(self, server: tuple[str, int], asked: Asked) -> Answered:
        request = aiocoap.Message(
            code=METHODS[asked.method],
            uri=_url(server, asked),
            payload=asked.payload,
            transport_tuning=aiocoap.Unreliable if asked.non else aiocoap.Reliable,
        )
        for number, value in asked.options:
            option = aiocoap.OptionNumber(number).create_option(decode=value)
            request.opt.add_option(option)
        if asked.block:
            request.opt.block2 = (0, False, asked.block.bit_length() - 5)
        context = await aiocoap.Context.create_client_context()
        try:
            response = await context.request(request).response
            return Answered(response.code.dotted, response.payload)
        finally:
            await context.shutdown()

    def observe(self, server: tuple[str, int], path: str, told: Callable[[bytes], bool]) -> None:
        """Observe a resource; *told* hears every state and says whether it has heard enough."""
        asyncio.run(asyncio.wait_for(self._observe(server, path, told), SECONDS))

    async def _observe(self, server: tuple[str, int], path: str, told: Callable[[bytes], bool]) -> None:
        context = await aiocoap.Context.create_client_context()
        try:
            pending = context.request(aiocoap.Message(code=aiocoap.GET, uri=_url(server, Asked(path)), observe=0))
            if told((await pending.response).payload):
                return
            async for response in pending.observation:
                if told(response.payload):
                    return
        finally:
            await context.shutdown()


class Libcoap:
    """libcoap's coap-client, a process for each request."""

    def __init__(self, build: str, key: str = "") -> None:
        """Take a build: "notls" for UDP, "openssl" for DTLS."""
        self.name = f"coap-client-{build}"
        self.transport = "UDP" if build == "notls" else "DTLS"
        self.key = key
        self.identity = ""

    def version(self) -> str:
        """Return its version."""
        printed = subprocess.run(
            [program(self.name, "libcoap3-bin"), "-h"], capture_output=True, text=True, check=False
        ).stderr
        found = re.search(r"coap-client\S* v(\S+)", printed)
        return found[1] if found else "?"

    def _command(self, server: tuple[str, int], asked: Asked) -> list[str]:
        secure = ["-u", self.identity, "-k", self.key] if self.transport == "DTLS" else []
        command = [program(self.name, "libcoap3-bin"), *secure, "-m", asked.method.lower(), "-B", str(SECONDS)]
        command += ["-N"] if asked.non else []
        command += ["-b", str(asked.block)] if asked.block else []
        for number, value in asked.options:
            command += ["-O", f"{number},0x{value.hex()}" if value else f"{number},"]
        if asked.payload:
            command += ["-f", "-"]
        return [*command, _url(server, asked, "coaps" if secure else "coap")]

    def ask(self, server: tuple[str, int], asked: Asked) -> Answered:
        """Send a request; return the answer."""
        command = self._command(server, asked)
        command[-1:-1] = ["-v", "7", "-o", "/dev/stderr"]
        done = subprocess.run(command, input=asked.payload, capture_output=True, timeout=SECONDS + 10, check=False)
        printed = done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")
        codes = [code for code in re.findall(r"c:(\d\.\d\d)", printed) if code != "0.00"]
        assert codes, printed
        return Answered(codes[-1], done.stdout + done.stderr)

    def observe(self, server: tuple[str, int], path: str, told: Callable[[bytes], bool]) -> None:
        """Observe a resource; *told* hears every state and says whether it has heard enough."""
        command = self._command(server, Asked(path))
        command[-1:-1] = ["-s", str(SECONDS), "-w"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            watchdog = threading.Timer(SECONDS, process.kill)
            watchdog.start()
            assert process.stdout is not None
            for line in process.stdout:
                if told(line.rstrip(b"\n")):
                    break
            else:
                raise AssertionError("it ended before it was told everything")
            watchdog.cancel()
            process.terminate()


class NodeCoap:
    """The npm package coap, a process for each request."""

    name = "node coap"
    transport = "UDP"

    def version(self) -> str:
        """Return its version."""
        module = MODULES / "coap"
        if not module.exists():
            raise FileNotFoundError("coap is missing: tests/interop/clients/install")
        return str(json.loads((module / "package.json").read_text())["version"])

    def _run(self, server: tuple[str, int], asked: Asked, observe: int) -> list[Answered]:
        request = {
            "host": server[0],
            "port": server[1],
            "path": "/" + asked.path,
            "query": "&".join(asked.query),
            "method": asked.method,
            "non": asked.non,
            "payload": asked.payload.hex(),
            "options": [[_NODE_NAMES[number], value.hex()] for number, value in asked.options],
            "observe": observe,
        }
        script = str(Path(__file__).with_name("node") / "coap_ask.js")
        command = [program("node", "nodejs"), script, str(MODULES / "coap"), json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 10, check=False)
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        return [Answered(answer["code"], bytes.fromhex(answer["payload"])) for answer in answers]

    def ask(self, server: tuple[str, int], asked: Asked) -> Answered:
        """Send a request; return the answer."""
        return self._run(server, asked, 0)[-1]

    def observe(self, server: tuple[str, int], path: str, told: Callable[[bytes], bool]) -> None:
        """Observe a resource; *told* hears every state and says whether it has heard enough."""
        request = {"host": server[0], "port": server[1], "path": "/" + path, "query": "", "method": "GET"}
        request |= {"non": False, "payload": "", "options": [], "observe": 1_000_000}
        script = str(Path(__file__).with_name("node") / "coap_ask.js")
        command = [program("node", "nodejs"), script, str(MODULES / "coap"), json.dumps(request)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            watchdog = threading.Timer(SECONDS, process.kill)
            watchdog.start()
            assert process.stdout is not None
            for line in process.stdout:
                if told(bytes.fromhex(json.loads(line)["payload"])):
                    break
            else:
                raise AssertionError("it ended before it was told everything")
            watchdog.cancel()
            process.terminate()
