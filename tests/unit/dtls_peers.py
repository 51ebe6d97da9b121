"""DTLS clients in memory, and a front they talk to; time is a number the test sets."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable

from coapgw.dtls.admission import Admission, HandshakeLimits
from coapgw.dtls.association import CipherCache
from coapgw.dtls.cid import CidAssociation, CidTranslation, ConnectionIds
from coapgw.dtls.front import Front
from coapgw.dtls.hello import Cookies
from coapgw.dtls.openssl import ClientContext, EngineFailed, ServerContext
from coapgw.dtls.records import APPLICATION_DATA, HANDSHAKE, TLS12_CID, epoch_of, pack, split
from coapgw.dtls.suites import derive_keys, suite_of
from coapgw.dtls.table import Association, AssociationLimits, AssociationTable
from coapgw.model import Credential

MTU = 1280
ADDRESS = ("192.0.2.1", 40000)
ICCID = "8988280666000000017"
SECRET = b"q8Yt2LmZ0aXw4RbK"
AEAD = "PSK-AES128-CCM8"
CBC = "PSK-AES128-CBC-SHA256"


class Keys:
    """Devices and their keys, as ICredentials has them."""

    def __init__(self) -> None:
        self.known = {ICCID: Credential(ICCID, SECRET, 1)}

    def credential(self, identity: bytes) -> Credential | None:
        return self.known.get(identity.decode("latin-1"))

    def is_current(self, iccid: str, serial: int) -> bool:
        return iccid in self.known and self.known[iccid].serial == serial


class Server:
    """A front, what it delivered, and what it forgot; it answers with an echo."""

    def __init__(
        self,
        limits: AssociationLimits | None = None,
        handshakes: HandshakeLimits | None = None,
        echo: bool = True,
        cid_bytes: int = 0,
    ) -> None:
        self.now = 1000.0
        self.delivered: list[tuple[bytes, Association]] = []
        self.forgotten: list[Association] = []
        self.keys = Keys()
        self.table = AssociationTable(limits or AssociationLimits(), self.keys.is_current)
        self.counters = self.table.counters
        random_bytes = random.Random(11).randbytes
        self.front = Front(
            self.table,
            Admission(handshakes or HandshakeLimits(), self.counters),
            ServerContext(self.keys.credential, MTU).engine,
            Cookies(random_bytes),
            CipherCache(4),
            deliver=self._deliver,
            forgotten=self.forgotten.append,
            mtu=MTU,
            connection_ids=ConnectionIds(cid_bytes, 7, random_bytes) if cid_bytes else None,
        )
        self.echo = echo

    def _deliver(self, plaintext: bytes, association: Association, now: float) -> None:
        self.delivered.append((plaintext, association))
        if self.echo:
            self.front.seal([(b"echo " + plaintext, association)])

    def receive(self, data: bytes, address: Hashable = ADDRESS) -> list[tuple[bytes, Hashable]]:
        """Give it a datagram; return what it sends."""
        self.front.receive_datagram(data, address, self.now)
        return self.front.datagrams_to_send()

    @property
    def texts(self) -> list[bytes]:
        return [plaintext for plaintext, _ in self.delivered]


class Client:
    """An OpenSSL client at an address; what passes between it and the server may be looked at and changed."""

    def __init__(
        self,
        server: Server,
        address: Hashable = ADDRESS,
        *,
        identity: str = ICCID,
        secret: bytes = SECRET,
        suites: Iterable[str] = (AEAD,),
    ) -> None:
        self.server = server
        self.address = address
        self.identity = identity
        self.engine = ClientContext(identity.encode(), secret, tuple(suites)).engine()
        self.received: list[bytes] = []
        self.is_closed = False

    def is_connected(self) -> bool:
        """Return whether its handshake is complete."""
        return self.engine.is_complete

    def first_flight(self) -> list[bytes]:
        """Return the datagrams of the first flight."""
        self.engine.begin_as_client()
        return pack(self.engine.take_records(), MTU)

    def take(self, datagram: bytes) -> list[bytes]:
        """Take a datagram of the server; return the datagrams that are the answer."""
        for record in split(datagram):
            if not self.engine.is_complete:
                self.engine.receive(record)
                continue
            try:
                plaintext = self.engine.open(record)
            except EngineFailed:
                self.is_closed = True
                continue
            if plaintext is not None:
                self.received.append(plaintext)
        return pack(self.engine.take_records(), MTU)

    def exchange(
        self, datagrams: Iterable[bytes], pass_on: Callable[[bytes], Iterable[bytes]] = lambda datagram: (datagram,)
    ) -> None:
        """Send datagrams, and go on until both are silent; *pass_on* says what becomes of the server's."""
        waiting = list(datagrams)
        while waiting:
            for answer, address in self.server.receive(waiting.pop(0), self.address):
                assert address == self.address
                for datagram in pass_on(answer):
                    waiting += self.take(datagram)

    def connect(self) -> Client:
        """Make the handshake."""
        self.exchange(self.first_flight())
        return self

    def send(self, data: bytes) -> None:
        """Send application data, and take what comes back."""
        self.exchange([self.engine.seal(data)])


class CidClient(Client):
    """A client with Connection IDs: OpenSSL makes its handshake, the machine under test carries its records.

    Args:
        cid: what it wants in records to it; empty: none there.
    """

    def __init__(
        self,
        server: Server,
        address: Hashable = ADDRESS,
        *,
        cid: bytes = b"abc",
        identity: str = ICCID,
        secret: bytes = SECRET,
        suites: Iterable[str] = (AEAD,),
    ) -> None:
        super().__init__(server, address, identity=identity, secret=secret, suites=suites)
        self.cid = cid
        self.engine = ClientContext(identity.encode(), secret, tuple(suites)).engine(cid)
        self.translation: CidTranslation | None = None

    @property
    def association(self) -> CidAssociation:
        assert self.translation is not None
        return self.translation.association

    def take(self, datagram: bytes) -> list[bytes]:
        for record in split(datagram, len(self.cid)):
            if not epoch_of(record):
                self.engine.receive(record)
                continue
            content = self.association.open(record)
            if content is None:
                continue
            if self.association.content_type == APPLICATION_DATA:
                self.received.append(content)
            elif self.association.content_type == HANDSHAKE and not self.engine.is_complete:
                self.engine.receive(record if not self.cid else self.association_inward(record, content))
            else:
                self.is_closed = self.is_closed or content[1:] == b"\0"
        return pack([self._outward(record) for record in self.engine.take_records()], MTU)

    def association_inward(self, record: bytes, content: bytes) -> bytes:
        assert self.translation is not None
        return self.translation.inward(record, content)

    def _outward(self, record: bytes) -> bytes:
        if not epoch_of(record):
            return record
        if self.translation is None:
            self.translation = self._begin()
        return self.translation.outward(record)

    def _begin(self) -> CidTranslation:
        suite = suite_of(self.engine.suite)
        assert suite is not None
        assert self.engine.peer_cid is not None
        keys = derive_keys(suite, *self.engine.secrets())
        association = CidAssociation(
            *(None, "", 0, suite, keys, 0, CipherCache(1), True),
            newest=-1,
            cid=self.cid,
            peer_cid=self.engine.peer_cid,
        )
        return CidTranslation(association)

    def sealed(self, data: bytes) -> bytes:
        """Return the datagram with application data."""
        return self.association.seal(APPLICATION_DATA, data)

    def send(self, data: bytes) -> None:
        self.exchange([self.sealed(data)])


def is_with_cid(datagram: bytes) -> bool:
    """Return whether a datagram begins with a record that has a Connection ID."""
    return datagram[0] == TLS12_CID
