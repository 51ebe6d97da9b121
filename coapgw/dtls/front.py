"""The server's front: who answers a datagram, by what it shows.

The verbs of a pump, as in ``coap/messaging.py``: ``receive_datagram``, ``datagrams_to_send``, ``next_timer``,
``handle_timer``; and towards the message layer: *deliver* gets what peers said, ``seal`` takes what they are told, and
*forgotten* hears of associations that ended.

Rules, in the order they are applied to a record:

* with a Connection ID (type 25): opened with the association that has it, wherever it comes from; the association's
  address follows what is authentic and newer than anything before (RFC 9146 section 6).
* protected (epoch 1), from an address with an association: opened; what is not authentic is dropped.
* a ClientHello: a cookie first, from nothing but the hello itself; with a valid one a handshake begins, beside the
  association that the address may have: that one goes when the new one is there (RFC 6347 section 4.2.8).
* anything else: for the handshake of that address, if there is one.

Nothing a peer sends raises, and nothing that is not authentic changes or ends an association.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Final, TypeAlias

from coapgw.dtls.admission import Admission, network_of
from coapgw.dtls.association import AeadAssociation, CipherCache, Refusal
from coapgw.dtls.cid import AMPLIFICATION, CID_AT, CidAssociation, ConnectionIds
from coapgw.dtls.connection import ConnectionAssociation
from coapgw.dtls.errors import DtlsError
from coapgw.dtls.handshake import Handshake, HandshakeEngine, Stage
from coapgw.dtls.hello import (
    ClientHello,
    Cookies,
    HelloMalformed,
    hello_verify_request,
    is_client_hello,
    parse_client_hello,
)
from coapgw.dtls.openssl import EngineFailed
from coapgw.dtls.records import ALERT, APPLICATION_DATA, HANDSHAKE, TLS12_CID, epoch_of, pack, sequence_of, split
from coapgw.dtls.suites import SUITES, derive_keys, suite_of
from coapgw.dtls.table import Association, AssociationTable

PATIENCE_SECONDS: Final = 2.0  # a half-open peer that was silent for longer makes room when there is none

_AEAD_NUMBERS: Final = frozenset(suite.number.to_bytes(2, "big") for suite in SUITES)
_CLOSE_NOTIFY: Final = b"\x01\x00"  # warning(1), close_notify(0): RFC 5246 section 7.2
_NO_RENEGOTIATION: Final = b"\x01\x64"  # warning(1), no_renegotiation(100)
_FATAL: Final = 2
_LENGTH_AT: Final = 11  # in a record without a Connection ID
_FINISHED: Final = 20

Deliver: TypeAlias = Callable[[bytes, Association, float], None]
MakeEngine: TypeAlias = Callable[[bool, "bytes | None"], HandshakeEngine]
"""Makes the engine of a handshake.

True: the client offers an AEAD suite, and is to get one.  And the Connection ID it gets if it asks for one.
"""


class Front:
    """The DTLS side of one socket.

    Args:
        table: the associations of all sockets.
        admission: the half-open peers of all sockets.
        make_engine: of a new handshake.
        cookies: of all sockets or this one.
        ciphers: where AEAD objects are kept.
        deliver: given (plaintext, association, now).
        forgotten: given an association that is no more.
        mtu: largest UDP payload of a handshake's datagram, in bytes.
        connection_ids: makes those of new associations; None: they have none.
        wake: called when there is something to send that no datagram or timer caused.
    """

    def __init__(
        self,
        table: AssociationTable,
        admission: Admission,
        make_engine: MakeEngine,
        cookies: Cookies,
        ciphers: CipherCache,
        *,
        deliver: Deliver,
        forgotten: Callable[[Association], None],
        mtu: int,
        connection_ids: ConnectionIds | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with nobody."""
        self._connection_ids = connection_ids
        self._cid_bytes = connection_ids.size if connection_ids is not None else 0
        self._cid_end = CID_AT + self._cid_bytes
        self._table = table
        self._heard = table.heard
        self._admission = admission
        self._make_engine = make_engine
        self._cookies = cookies
        self._ciphers = ciphers
        self._deliver = deliver
        self._forgotten = forgotten
        self._mtu = mtu
        self._wake = wake
        self.counters = table.counters
        self._traffic = table.traffic
        self._took = table.traffic.received
        self._gave = table.traffic.sent
        self._by_address: dict[Hashable, Association] = {}
        self._handshakes: OrderedDict[Hashable, Handshake] = OrderedDict()  # the longest silent first
        self._outbox: list[tuple[bytes, Hashable]] = []
        self._alarm = math.inf  # no handshake is due earlier

    # ------------------------------------------------------------------ datagrams in

    def receive_datagram(self, data: bytes, address: Hashable, now: float) -> None:
        """Take a datagram; raises nothing that the peer could cause."""
        association = self._by_address.get(address)
        if association is not None and data and data[0] == APPLICATION_DATA:
            plaintext = association.open(data)
            if plaintext is not None:
                self.counters.received += 1
                self._took[association.iccid] = self._took.get(association.iccid, 0) + len(data)
                association.last_heard = now
                self._heard(association)
                self._deliver(plaintext, association, now)
                return
            if isinstance(association, AeadAssociation) and _is_one_record(data, _LENGTH_AT):
                self._refuse_protected(data, association, address, now)  # as opening it once more would do
                return
        elif self._cid_bytes and data and data[0] == TLS12_CID:
            with_cid = self._table.by_cid.get(data[CID_AT : self._cid_end])
            if with_cid is not None:
                content = with_cid.open(data)
                if content is not None:
                    self._receive_content(content, with_cid, data, address, now)
                    return
                if _is_one_record(data, self._cid_end):
                    self._refuse(data, with_cid)
                    return
        self._receive(data, address, now)

    def _receive_content(
        self, content: bytes, association: CidAssociation, record: bytes, address: Hashable, now: float
    ) -> None:
        """Take what was in an authentic record with a Connection ID."""
        if address != association.address:
            if association.is_newest(record):
                association.move(address, len(record))
                self._table.moved(association, self)
                self.counters.moved += 1
        elif association.credit is not None:
            association.credit += AMPLIFICATION * len(record)
        self.counters.with_cid += 1
        self._took[association.iccid] = self._took.get(association.iccid, 0) + len(record)
        self._take(association.content_type, content, association, now)

    def _receive(self, data: bytes, address: Hashable, now: float) -> None:
        """Take a datagram record by record."""
        records = split(data, self._cid_bytes)
        if not records:
            self.counters.malformed += 1
        for record in records:
            if record[0] == TLS12_CID:
                self._receive_with_cid(record, address, now)
            elif epoch_of(record):
                self._receive_protected(record, address, now)
            elif is_client_hello(record):
                self._receive_hello(record, address, now)
            else:
                self._continue_handshake(record, address, now)

    def _receive_with_cid(self, record: bytes, address: Hashable, now: float) -> None:
        """Open a record with the association that has its Connection ID, or give it to the handshake of its address."""
        association = self._table.by_cid.get(record[CID_AT : self._cid_end])
        if association is None:
            if not self._continue_handshake(record, address, now):
                self.counters.unknown_cid += 1
            return
        content = association.open(record)
        if content is not None:
            self._receive_content(content, association, record, address, now)
            return
        self._refuse(record, association)

    def _refuse(self, record: bytes, association: Association) -> None:
        """Count a record that *association* could not open."""
        self.counters.refused += 1
        if isinstance(association, AeadAssociation):
            reason = association.refusal(record)
            if reason is Refusal.FORGED:
                self.counters.forged += 1
            elif reason is Refusal.REPLAYED:
                self.counters.replayed += 1
        if association.is_worn():
            self._wear_out(association)

    def _receive_protected(self, record: bytes, address: Hashable, now: float) -> None:
        """Open a record with the association of its address; what that cannot read may belong to a handshake."""
        association = self._by_address.get(address)
        if association is None:
            self._continue_handshake(record, address, now)
            return
        plaintext = association.open(record)
        if isinstance(association, ConnectionAssociation):
            self._send_records(association.repeat_flight() or [], association.address)
            if association.ended:
                self.counters.closed += 1
                self._table.close(association, notify=False)
                return
        if plaintext is None:
            self._refuse_protected(record, association, address, now)
            return
        self._traffic.took(association.iccid, len(record))
        self._take(record[0], plaintext, association, now)

    def _refuse_protected(self, record: bytes, association: Association, address: Hashable, now: float) -> None:
        """Give what the association of its address could not open to the handshake there, or count it."""
        if not self._continue_handshake(record, address, now):
            self._refuse(record, association)
        elif association.is_worn():
            self._wear_out(association)

    def _take(self, content_type: int, plaintext: bytes, association: Association, now: float) -> None:
        """Take what was in an authentic record."""
        association.last_heard = now
        self._heard(association)
        if content_type == APPLICATION_DATA:
            self.counters.received += 1
            self._deliver(plaintext, association, now)
        elif content_type == ALERT:
            self._receive_alert(plaintext, association)
        elif content_type == HANDSHAKE and plaintext:
            self._receive_late_handshake(plaintext[0], association)

    def _receive_alert(self, alert: bytes, association: Association) -> None:
        """Let an association go that the peer closes; a close_notify is answered (RFC 5246 section 7.2.1)."""
        if alert == _CLOSE_NOTIFY:
            self.counters.closed += 1
            self._table.close(association, notify=True)
        elif alert[:1] == bytes((_FATAL,)):
            self.counters.closed += 1
            self._table.close(association, notify=False)

    def _receive_late_handshake(self, message: int, association: Association) -> None:
        """Repeat our last flight to a client that repeats its own; there is no renegotiation."""
        if message == _FINISHED:
            flight = association.repeat_flight()
            if flight is not None:
                self.counters.repeated_flights += 1
                self._traffic.gave(association.iccid, sum(map(len, flight)))
                self._send_records(flight, association.address)
        else:
            self._send_sealed(ALERT, _NO_RENEGOTIATION, association)

    # ------------------------------------------------------------------ handshakes

    def _receive_hello(self, record: bytes, address: Hashable, now: float) -> None:
        """Ask for a cookie, or begin a handshake."""
        self.counters.hellos += 1
        try:
            hello = parse_client_hello(record)
        except HelloMalformed:
            self.counters.malformed += 1
            return
        if not self._cookies.is_valid(hello, address, now):
            self.counters.cookies += 1
            self._outbox.append((hello_verify_request(hello, self._cookies.cookie(hello, address, now)), address))
            return
        earlier = self._handshakes.get(address)
        if earlier is not None:
            if earlier.random == hello.random:
                if earlier.repeat_flight(now):
                    self.counters.repeated_flights += 1
                    self._after_step(earlier, now)
                return
            self._end(earlier)
            self.counters.displaced += 1
        self._begin_handshake(hello, address, now)

    def _begin_handshake(self, hello: ClientHello, address: Hashable, now: float) -> None:
        if self._admission.is_full():
            self._displace_silent(now)
        network = network_of(address)
        if not self._admission.admit(network, now):
            return
        self.counters.handshakes += 1
        cid = self._connection_ids.make(self._table.by_cid) if self._connection_ids is not None else None
        engine = self._make_engine(hello.offers_any(_AEAD_NUMBERS), cid)
        handshake = Handshake(engine, hello, address, network=network, mtu=self._mtu, now=now)
        self._handshakes[address] = handshake
        self._after_step(handshake, now)

    def _displace_silent(self, now: float) -> None:
        """End the handshake that was silent for longest, if that was long."""
        longest = next(iter(self._handshakes.values()), None)
        if longest is not None and now - longest.last_heard >= PATIENCE_SECONDS:
            self._end(longest)
            self.counters.displaced += 1

    def _continue_handshake(self, record: bytes, address: Hashable, now: float) -> bool:
        """Give a record to the handshake of its address; return whether there is one."""
        handshake = self._handshakes.get(address)
        if handshake is None:
            return False
        handshake.receive(record, now)
        self._handshakes.move_to_end(address)
        self._after_step(handshake, now)
        return True

    def _after_step(self, handshake: Handshake, now: float) -> None:
        """Send what a handshake has to send, and see what became of it."""
        for datagram in handshake.take_datagrams():
            self._outbox.append((datagram, handshake.address))
        if handshake.stage is Stage.UNDER_WAY:
            self._alarm = min(self._alarm, handshake.due)
            return
        self._end(handshake)
        if handshake.stage is Stage.COMPLETE:
            self._establish(handshake, now)
        elif handshake.stage is Stage.TIMED_OUT:
            self.counters.timeouts += 1
        else:
            self.counters.failed += 1
            self.counters.unproven += handshake.stage is Stage.UNPROVEN

    def _end(self, handshake: Handshake) -> None:
        del self._handshakes[handshake.address]
        self._admission.leave(handshake.network)
        if self._connection_ids is not None and handshake.engine.cid is not None:
            self._connection_ids.settle(handshake.engine.cid)
        if not self._handshakes:
            self._alarm = math.inf

    def _establish(self, handshake: Handshake, now: float) -> None:
        """Make the association of a complete handshake, in place of what its address had."""
        association = _association_of(handshake, self._ciphers)
        if association is None:
            self.counters.failed += 1
            return
        if not self._table.is_current(association):  # its key has changed since OpenSSL asked for it
            self.counters.revoked += 1
            self._send_sealed(ALERT, _CLOSE_NOTIFY, association)
            return
        association.last_heard = now
        self._traffic.took(association.iccid, handshake.received)
        self._traffic.gave(association.iccid, handshake.sent)
        self._make_way(association)
        self.counters.established += 1
        if not association.cid:
            self._by_address[association.address] = association
        self._table.add(association, self)
        for record in handshake.early:
            self._receive_protected(record, handshake.address, now)
        for content in handshake.early_content:
            self._take(APPLICATION_DATA, content, association, now)

    def _make_way(self, association: Association) -> None:
        """End what a new association replaces: that of its address, and those its device had there."""
        before = self._by_address.get(association.address)
        siblings = [one for one in self._table.of_device(association.iccid) if one.address == association.address]
        for replaced in dict.fromkeys([before, *siblings]):
            if replaced is not None:
                self._table.close(replaced, notify=False)

    # ------------------------------------------------------------------ associations

    def forget(self, association: Association, notify: bool) -> None:
        """Let go of an association that the table has removed."""
        if self._by_address.get(association.address) is association:
            del self._by_address[association.address]
        if notify:
            self._send_sealed(ALERT, _CLOSE_NOTIFY, association)
            self._wake()
        self._forgotten(association)

    def _wear_out(self, association: Association) -> None:
        """End an association whose keys were used, or tried on, often enough: the device makes new ones."""
        self.counters.worn += 1
        self._table.close(association, notify=True)

    def restore(self, association: Association) -> None:
        """Take in an association that went on from before a restart."""
        if len(association.cid) not in (0, self._cid_bytes):
            return  # coaps.cid_length has changed: it would not be found
        if not association.cid:
            self._by_address[association.address] = association
        self._table.add(association, self)
        self.counters.restored += 1

    def release(self) -> list[AeadAssociation]:
        """Let go of everybody, for a planned stop; return those that can go on later, the longest idle first.

        The peers of the others are told that it is over.
        """
        for handshake in list(self._handshakes.values()):
            self._end(handshake)
        released: list[AeadAssociation] = []
        ours = [association for association in self._table.all() if self._table.is_of(association, self)]
        for association in sorted(ours, key=lambda one: one.last_heard):
            can_go_on = isinstance(association, AeadAssociation) and not association.is_worn()
            self._table.close(association, notify=not can_go_on)
            if can_go_on and isinstance(association, AeadAssociation):
                released.append(association)
        return released

    def seal(self, datagrams: Iterable[tuple[bytes, Hashable]]) -> None:
        """Take what the message layer has to send: (bytes, association); what ended meanwhile is dropped."""
        is_open, append, gave = self._table.is_open, self._outbox.append, self._gave
        for data, association in datagrams:
            if not is_open(association):
                continue
            try:
                record = association.seal(APPLICATION_DATA, data)  # type: ignore[attr-defined]  # any address, there
            except (DtlsError, EngineFailed):
                self.counters.unsealed += 1
                if association.is_worn():  # type: ignore[attr-defined]
                    self._wear_out(association)  # type: ignore[arg-type]
                continue
            if association.cid and not association.may_send(len(record)):  # type: ignore[attr-defined]
                self.counters.withheld += 1
                continue
            gave[association.iccid] = gave.get(association.iccid, 0) + len(record)  # type: ignore[attr-defined]
            append((record, association.address))  # type: ignore[attr-defined]

    def _send_sealed(self, content_type: int, plaintext: bytes, association: Association) -> None:
        try:
            record = association.seal(content_type, plaintext)
        except (DtlsError, EngineFailed):
            self.counters.unsealed += 1
        else:
            self._traffic.gave(association.iccid, len(record))
            self._send_records([record] if record else [], association.address)

    def _send_records(self, records: list[bytes], address: Hashable) -> None:
        for datagram in pack(records, self._mtu):
            self._outbox.append((datagram, address))

    # ------------------------------------------------------------------ datagrams out, timers

    def datagrams_to_send(self) -> list[tuple[bytes, Hashable]]:
        """Return what is to be sent, as (datagram, address)."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` is to be called, None if nothing can become due."""
        idle = self._table.next_idle()
        due = self._alarm if idle is None else min(self._alarm, idle)
        return None if due == math.inf else due

    def handle_timer(self, now: float) -> None:
        """Repeat flights, give up handshakes, close idle associations."""
        if now >= self._alarm:
            for handshake in [one for one in self._handshakes.values() if one.due <= now]:
                handshake.handle_timer(now)
                self._after_step(handshake, now)
            self._alarm = min((one.due for one in self._handshakes.values()), default=math.inf)
        self._table.close_idle(now)

    @property
    def half_open(self) -> int:
        """How many handshakes are under way here."""
        return len(self._handshakes)


def _is_one_record(datagram: bytes, length_at: int) -> bool:
    """Return whether a datagram is as long as its first record; *length_at*: where that says how long it is."""
    body = length_at + 2
    return len(datagram) > body and datagram[length_at] << 8 | datagram[length_at + 1] == len(datagram) - body


def _association_of(handshake: Handshake, ciphers: CipherCache) -> Association | None:
    """Return the association that a complete handshake leads to, None if nobody proved anything."""
    engine, credential = handshake.engine, handshake.engine.credential
    if credential is None:
        return None
    engine.credential = None  # a connection outlives its handshake: the key need not
    suite = suite_of(engine.suite)
    association: AeadAssociation | None = handshake.cid_association
    if association is not None:
        association.iccid, association.serial = credential.iccid, credential.serial
        association.share(ciphers)
        association.keep_sent_flight(handshake.flight)
        return association
    if suite is None:
        return ConnectionAssociation(engine, handshake.address, credential.iccid, credential.serial)
    keys = derive_keys(suite, *engine.secrets())
    sealed = [sequence_of(record) for record in handshake.flight if epoch_of(record)]
    association = AeadAssociation(
        *(handshake.address, credential.iccid, credential.serial, suite, keys),
        write_sequence=1 + max(sealed, default=0),
        ciphers=ciphers,
        newest=0 if handshake.finished is None else sequence_of(handshake.finished),
    )
    association.keep_sent_flight(handshake.flight)
    return association
