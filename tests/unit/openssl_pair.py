"""A DTLS client and server of OpenSSL that talk over memory BIOs, to test against."""

from __future__ import annotations

from typing import Any

import attrs
from OpenSSL import SSL

from coapgw.dtls.association import AeadAssociation, CipherCache
from coapgw.dtls.records import split
from coapgw.dtls.suites import AeadSuite, KeyBlock, derive_keys

ffi: Any = SSL._ffi  # type: ignore[attr-defined]  # pyOpenSSL has no call for pre-shared keys
lib: Any = SSL._lib  # type: ignore[attr-defined]
SECRET, IDENTITY = b"secretPSKsecretP", b"8988228066602306770"


@ffi.callback("unsigned int(SSL*, const char*, unsigned char*, unsigned int)")  # type: ignore[untyped-decorator]
def _server_psk(_ssl: object, _identity: object, psk: object, limit: int) -> int:
    ffi.buffer(psk, limit)[: len(SECRET)] = SECRET
    return len(SECRET)


@ffi.callback(  # type: ignore[untyped-decorator]
    "unsigned int(SSL*, const char*, char*, unsigned int, unsigned char*, unsigned int)"
)
def _client_psk(_ssl: object, _hint: object, identity: object, room: int, psk: object, limit: int) -> int:
    ffi.buffer(identity, room)[: len(IDENTITY) + 1] = IDENTITY + b"\0"
    ffi.buffer(psk, limit)[: len(SECRET)] = SECRET
    return len(SECRET)


def _connection(method: int, suite: str) -> SSL.Connection:
    context = SSL.Context(method)
    context.set_cipher_list(f"{suite}:@SECLEVEL=0".encode())
    context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET)
    if method == SSL.DTLS_SERVER_METHOD:
        lib.SSL_CTX_set_psk_server_callback(context._context, _server_psk)
    else:
        lib.SSL_CTX_set_psk_client_callback(context._context, _client_psk)
    connection = SSL.Connection(context, None)
    connection.set_ciphertext_mtu(1152)
    return connection


def flight_of(connection: SSL.Connection) -> list[bytes]:
    """What it wants to send now, as records."""
    try:
        return split(connection.bio_read(65535))
    except SSL.WantReadError:
        return []


def _step(connection: SSL.Connection) -> bool:
    """Go on with the handshake; return whether it is complete."""
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        return False
    return True


@attrs.frozen
class Pair:
    """A handshake that is complete on the server's side.

    Args:
        client_hello: the client's first record.
        last_flight: the server's, as records.
    """

    server: SSL.Connection
    client: SSL.Connection
    client_hello: bytes
    last_flight: list[bytes]

    def secrets(self) -> tuple[bytes, bytes, bytes]:
        """Master secret, client random, server random."""
        server = self.server
        found = server.master_key(), server.client_random(), server.server_random()
        master, of_client, of_server = found
        assert master is not None
        assert of_client is not None
        assert of_server is not None
        return master, of_client, of_server

    def keys(self, suite: AeadSuite) -> KeyBlock:
        return derive_keys(suite, *self.secrets())

    def association(self, suite: AeadSuite, client: bool = False) -> AeadAssociation:
        """Take the place of the server, or of the client."""
        keys = self.keys(suite)
        return AeadAssociation(("192.0.2.1", 5), IDENTITY.decode(), 1, suite, keys, 1, CipherCache(4), client)


def handshake(suite: str, client_sees_last_flight: bool = True) -> Pair:
    """Let two of OpenSSL's agree on *suite*."""
    server, client = _connection(SSL.DTLS_SERVER_METHOD, suite), _connection(SSL.DTLS_CLIENT_METHOD, suite)
    server.set_accept_state()
    client.set_connect_state()
    _step(client)
    records = flight_of(client)
    client_hello = records[0]
    while True:
        complete = [_feed(server, record) for record in records][-1]
        records = flight_of(server)
        if complete:
            if client_sees_last_flight:
                assert [_feed(client, record) for record in records][-1]
            return Pair(server, client, client_hello, records)
        for record in records:
            _feed(client, record)
        records = flight_of(client)


def _feed(connection: SSL.Connection, record: bytes) -> bool:
    connection.bio_write(record)
    return _step(connection)
