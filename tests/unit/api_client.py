"""The management API without a network: a factory with real registry and keys, and connections in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from coapgw.dtls.traffic import DtlsTraffic
from coapgw.http.access import AdminToken
from coapgw.http.api import ApiParts, make_table
from coapgw.http.jobs import KeyJobs
from coapgw.http.operations import OperationTable, Reply
from coapgw.http.protocol import ApiChannel, ApiFactory
from coapgw.interfaces import IDeviceKeys, IDeviceRegistry, ILastSeen, ITemplates
from coapgw.model import Device
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.savings import TranslationCounts
from coapgw.storage.sealing import open_seal
from coapgw.storage.templates import TemplateRegistry
from tests.unit.registries import START_MS, registry_in

TOKEN = "0123456789abcdef" * 4


@implementer(ILastSeen)
class KnownTimes:
    """Devices that were heard when the test says so."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {}

    def of(self, wanted: Sequence[Device]) -> dict[str, int]:
        return {device.iccid: self.times[device.iccid] for device in wanted if device.iccid in self.times}


@attrs.frozen
class Answer:
    """A response as it was on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def messages(self) -> list[str]:
        return [error["message"] for error in self.json["errors"]]


def answers_in(data: bytes, *, head: bool = False) -> list[Answer]:
    """Return every response in *data*."""
    answers = []
    while data:
        top, _, data = data.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = 0 if head else int(headers.get("content-length", "0"))
        answers.append(Answer(int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return answers


class Connection:
    """One client's connection, which ends in memory."""

    def __init__(self, factory: ApiFactory, clock: Clock) -> None:
        self._clock = clock
        self.transport = StringTransport()
        channel = factory.buildProtocol(None)
        assert isinstance(channel, ApiChannel)
        self.channel = channel
        channel.makeConnection(self.transport)

    def send(self, data: bytes) -> list[Answer]:
        """Deliver *data*, let a turn of the reactor pass, and return what is answered."""
        self.channel.dataReceived(data)
        self._clock.advance(0)
        return self.answers()

    def answers(self) -> list[Answer]:
        """Return what was answered since the last time."""
        sent = self.transport.value()
        self.transport.clear()
        return answers_in(sent)

    @property
    def is_closed(self) -> bool:
        return self.transport.disconnecting


@attrs.frozen
class Kept:
    """What is kept in a registry."""

    registry: IDeviceRegistry
    keys: IDeviceKeys
    templates: ITemplates
    savings: TranslationCounts


class Api:
    """Everything behind the API; on what is really kept unless a test brings something else."""

    def __init__(
        self,
        kept: Kept,
        *,
        call_in_thread: Callable[[Callable[[], Reply]], Deferred[Reply]] = maybeDeferred,
    ) -> None:
        self.clock = Clock()
        self.kept = kept
        registry, keys = self.registry, self.keys = kept.registry, kept.keys
        self.last_seen = KnownTimes()
        self.now_ms = START_MS
        ids = itertools.count(1)
        self.jobs = KeyJobs(keys, lambda: self.now_ms, lambda size: next(ids).to_bytes(size, "big"))
        self.obstacles: list[str] = []
        self.traffic = DtlsTraffic()
        self.table: OperationTable = make_table(
            ApiParts(
                *(registry, self.last_seen, self.traffic, keys, self.jobs, kept.templates, kept.savings),
                lambda: self.obstacles,
                lambda: b"metrics 1\n",
            )
        )
        self.factory = ApiFactory(self.table, AdminToken(TOKEN.encode()), self.clock, call_in_thread)

    def connect(self) -> Connection:
        return Connection(self.factory, self.clock)

    def ask(
        self, method: str, path: str, body: object = None, *, token: str | None = TOKEN, raw: bytes | None = None
    ) -> Answer:
        """Make one request on a connection of its own."""
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        (answer,) = self.connect().send(request(method, path, data, token=token))
        return answer


def request(method: str, path: str, body: bytes = b"", *fields: str, token: str | None = TOKEN) -> bytes:
    """Return a request as a client sends it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *fields, "", ""]).encode("latin-1") + body


@contextmanager
def api_in(data: Path) -> Iterator[Api]:
    """Open a registry in a directory, and an API on it."""
    with registry_in(data) as opened:
        clock = itertools.count(START_MS, 1000)
        keys = DeviceKeys(opened.database, open_seal(data, opened.database), lambda: next(clock))
        templates = TemplateRegistry(opened.database, lambda: next(clock))
        yield Api(Kept(opened.devices, keys, templates, TranslationCounts(opened.database, lambda: START_MS)))
