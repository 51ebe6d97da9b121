"""A plain HTTP client, other than what the gateway is built on."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, NamedTuple

from tests.integration.gateway_process import GatewayProcess


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection to the management API that stays open."""

    def __init__(self, gateway: GatewayProcess, token: str | None = None) -> None:
        self._token = gateway.token if token is None else token
        self._connection = http.client.HTTPConnection(*gateway.http, timeout=20)

    def ask(self, method: str, path: str, body: object = None, raw: bytes | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, data, headers)
        response = self._connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connected(gateway: GatewayProcess, timeout: float = 10.0) -> socket.socket:
    """Return a socket that is connected to the management API."""
    return socket.create_connection(gateway.http, timeout)


def received(client: socket.socket) -> bytes:
    """Return everything until the other end closes, or cuts."""
    data = b""
    try:
        while some := client.recv(65536):
            data += some
    except ConnectionResetError:
        pass
    return data
