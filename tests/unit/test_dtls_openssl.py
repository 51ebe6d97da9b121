"""The engines against each other: pre-shared keys, suites, and what a wrong key looks like."""

from __future__ import annotations

import pytest

from coapgw.dtls.hello import hello_verify_request, parse_client_hello
from coapgw.dtls.openssl import AEAD_SUITES, CBC_SUITES, SUITES, ClientContext, Engine, EngineFailed, ServerContext
from coapgw.model import Credential

ICCID = "8988280666000000017"
SECRET = b"secretPSKsecretP"
MTU = 1280


def credential_of(identity: bytes) -> Credential | None:
    return Credential(ICCID, SECRET, 1) if identity == ICCID.encode() else None


def begun(client: Engine, server: Engine) -> None:
    """Bring both to the point where the server has a ClientHello with a cookie."""
    client.begin_as_client()
    (record,) = client.take_records()
    client.receive(hello_verify_request(parse_client_hello(record), b"c" * 16))
    (record,) = client.take_records()
    assert parse_client_hello(record).cookie == b"c" * 16
    server.begin_as_server(record)


def talk(client: Engine, server: Engine) -> None:
    """Move records between the two until both are silent."""
    moved = True
    while moved:
        moved = False
        for source, target in ((server, client), (client, server)):
            for record in source.take_records():
                moved = True
                if not target.is_complete:
                    target.receive(record)


def handshake(identity: str = ICCID, secret: bytes = SECRET, suites: tuple[str, ...] = SUITES) -> tuple[Engine, Engine]:
    server_context, client_context = ServerContext(credential_of, MTU), ClientContext(identity.encode(), secret, suites)
    client, server = client_context.engine(), server_context.engine(aead=any(s in AEAD_SUITES for s in suites))
    begun(client, server)
    talk(client, server)
    return client, server


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_makes_a_handshake(suite: str) -> None:
    client, server = handshake(suites=(suite,))
    assert client.is_complete
    assert server.is_complete
    assert client.suite == server.suite == suite
    assert client.secrets() == server.secrets()
    assert server.credential == Credential(ICCID, SECRET, 1)
    assert server.open(client.seal(b"up")) == b"up"
    assert client.open(server.seal(b"down")) == b"down"
    with pytest.raises(EngineFailed, match="close notify"):
        server.open(client.close())


def test_an_aead_suite_comes_before_any_other() -> None:
    client, _ = handshake(suites=("ECDHE-PSK-AES128-CBC-SHA256", "PSK-AES128-CBC-SHA256", "PSK-AES128-CCM"))
    assert client.suite == "PSK-AES128-CCM"


def test_the_clients_order_of_aead_suites_counts() -> None:
    client, _ = handshake(suites=("PSK-AES256-CCM", "PSK-AES128-CCM8"))
    assert client.suite == "PSK-AES256-CCM"


@pytest.mark.parametrize("suite", ["PSK-AES128-CCM8", "PSK-AES128-CBC-SHA256"])
def test_a_wrong_key_and_an_unknown_identity_are_one_to_the_client(suite: str) -> None:
    seen = []
    for identity, secret in ((ICCID, b"another secret.."), ("8988280666000000018", SECRET)):
        client, server = handshake(identity, secret, (suite,))
        seen.append((client.is_complete, server.is_complete, client.take_records(), server.take_records()))
    assert seen[0] == seen[1] == (False, False, [], [])


@pytest.mark.parametrize("suite", CBC_SUITES)
def test_a_forged_record_ends_nothing(suite: str) -> None:
    client, server = handshake(suites=(suite,))
    good = client.seal(b"good")
    for at in range(len(good)):
        assert server.open(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :]) is None
    assert server.take_records() == []
    assert server.open(good) == b"good"
    assert server.open(good) is None


def test_a_secret_in_nobodys_representation() -> None:
    assert SECRET.decode() not in repr(Credential(ICCID, SECRET, 1))
    assert SECRET.decode() not in repr(ServerContext(credential_of, MTU))


def test_an_unknown_suite_is_refused_by_name() -> None:
    with pytest.raises(EngineFailed):
        ClientContext(b"x", b"y", ("PSK-ROT13",))


def connection_ids(
    client_cid: bytes | None, server_cid: bytes | None, suites: tuple[str, ...] = AEAD_SUITES
) -> tuple[tuple[bytes | None, bytes | None], tuple[bytes | None, bytes | None]]:
    """Return what client and server know of theirs and the other's after the hellos."""
    client = ClientContext(ICCID.encode(), SECRET, suites).engine(client_cid)
    server = ServerContext(credential_of, MTU).engine(any(suite in AEAD_SUITES for suite in suites), server_cid)
    begun(client, server)
    for record in server.take_records():
        client.receive(record)
    return (client.cid, client.peer_cid), (server.cid, server.peer_cid)


def test_connection_ids_are_negotiated_by_the_hellos() -> None:
    assert connection_ids(b"abc", b"server") == ((b"abc", b"server"), (b"server", b"abc"))
    assert connection_ids(b"", b"server") == ((b"", b"server"), (b"server", b""))


def test_no_connection_ids_unless_both_want_them() -> None:
    assert connection_ids(None, b"server") == ((None, None), (b"server", None))
    assert connection_ids(b"abc", None) == ((b"abc", None), (None, b"abc"))
    assert connection_ids(b"abc", b"server", CBC_SUITES) == ((b"abc", None), (b"server", None))


def test_no_common_suite_is_an_alert() -> None:
    client = ClientContext(ICCID.encode(), SECRET, ("PSK-AES256-CCM",)).engine()
    server = ServerContext(credential_of, MTU, suites=("PSK-AES128-CCM8",)).engine(aead=True)
    with pytest.raises(EngineFailed, match="no shared cipher"):
        begun(client, server)
    assert [record[0] for record in server.take_records()] == [21]


def test_a_callback_that_fails_is_remembered_and_the_handshake_fails() -> None:
    def broken(identity: bytes) -> Credential | None:
        raise KeyError(identity)

    context = ServerContext(broken, MTU)
    client, server = ClientContext(ICCID.encode(), SECRET).engine(), context.engine(aead=True)
    begun(client, server)
    with pytest.raises(EngineFailed):
        talk(client, server)
    assert isinstance(context.take_problem(), KeyError)
    assert context.take_problem() is None
