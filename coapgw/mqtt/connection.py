"""The broker's end of one client's connection: bytes and ``now`` in, bytes out (MQTT 3.1.1 and 5, chapters 3 and 4)."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from coapgw.mqtt.incoming_5 import ALIAS_MAXIMUM, RECEIVE_MAXIMUM, Incoming5
from coapgw.mqtt.outbox import FULL_BYTES, WINDOW, Outbox
from coapgw.mqtt.packets import (
    ACCEPTED,
    LEVEL_5,
    REFUSED_CLIENT_ID,
    REFUSED_NOT_AUTHORISED,
    REFUSED_PASSWORD,
    REFUSED_VERSION,
    SUBSCRIBE_FAILED,
    ConnAck,
    Connect,
    Disconnect,
    MqttFormatError,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    UnsupportedConnect,
    encode,
    encode_puback,
)
from coapgw.mqtt.parser import Parser
from coapgw.mqtt.properties import NO_PROPERTIES, Properties
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.reasons import (
    BAD_AUTHENTICATION_METHOD,
    BAD_PASSWORD,
    CLIENT_ID_INVALID,
    DISCONNECT_WITH_WILL,
    FAILURE,
    KEEPALIVE_TIMEOUT,
    NO_SUBSCRIBERS,
    NOT_AUTHORISED,
    PACKET_ID_UNKNOWN,
    PROTOCOL_ERROR,
    QUOTA_EXCEEDED,
    RECEIVE_MAXIMUM_EXCEEDED,
)
from coapgw.mqtt.session import RECEIVED_LIMIT, Session
from coapgw.mqtt.subscriptions import SHARED, Options, read_options
from coapgw.mqtt.version_5 import encode_5
from coapgw.mqtt.writer_5 import Writer5

if TYPE_CHECKING:
    from coapgw.mqtt.access import Permissions
    from coapgw.mqtt.broker import Broker

CONNECT_BYTES: Final = 32_768  # largest first packet: 10,000 strangers who send all but the last byte hold 320 MB
REPLIES_BYTES: Final = FULL_BYTES + 262_144  # with acknowledgements for a peer that does not read: 65,536 PUBACKs
KEEPALIVE_GRACE: Final = 1.5  # section 3.1.2.10
FLUSH_SECONDS: Final = 10.0  # for a peer to read our last bytes before the connection is cut
HELD_LIMIT: Final = 2000  # answers that wait for the disk before nothing more is read

_PINGRESP: Final = encode(PingResp())
_CONNACK_5: Final = {
    REFUSED_CLIENT_ID: CLIENT_ID_INVALID,
    REFUSED_PASSWORD: BAD_PASSWORD,
    REFUSED_NOT_AUTHORISED: NOT_AUTHORISED,
}


class Closing(enum.Enum):
    """What the glue has to do with the transport once it has written ``data_to_send``."""

    NO = "stay"
    FLUSH = "close when everything is written"
    ABORT = "close at once"


class Connection:
    """One client, from its first byte to its last.

    Attributes:
        peer: where it came from, for the log.
        closing: see Closing; once it is not NO, received bytes are ignored.
    """

    __slots__ = (
        "_broker",
        "_granted",
        "_incoming_5",
        "_keepalive",
        "_last_heard",
        "_lost",
        "_outbox",
        "_parser",
        "_permissions",
        "_second",
        "_will",
        "closing",
        "loopback",
        "peer",
        "session",
    )

    def __init__(self, broker: Broker, peer: str, loopback: bool, now: float) -> None:
        """Made by ``Broker.open_connection``; *loopback* says whether its listener is bound to a loopback address."""
        self._broker = broker
        self.peer = peer
        self.loopback = loopback
        self.closing = Closing.NO
        self.session: Session | None = None
        self._outbox = Outbox(self._wake)
        self._parser = Parser(min(CONNECT_BYTES, broker.limits.max_packet), broker.valid_topics, takes_5=True)
        self._incoming_5: Incoming5 | None = None  # of MQTT 5
        self._permissions: Permissions | None = None
        self._will: Publication | None = None
        self._keepalive = 0.0
        self._last_heard = now
        self._lost = False
        self._granted: dict[bytes, Options] | None = None  # of this read: their retained messages are still to be sent
        self._second = broker.deadlines.add(self, now + broker.limits.connect_timeout)

    # ------------------------------------------------------------------ the glue's side

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes from the peer; whatever is wrong with them ends in ``closing``, not in an exception."""
        if self.closing is not Closing.NO:
            return
        self._last_heard = self._broker.shared.now = now
        session = self.session
        counters = self._broker.counters
        counters.bytes_in += len(data)
        packets = 0
        try:
            for packet in self._parser.packets(data):
                packets += 1
                if session is None:
                    self._first_packet(packet, now)
                    session = self.session
                    if session is None:
                        return
                elif isinstance(packet, Publish):
                    self._published(session, packet)
                elif isinstance(packet, PubAck):
                    session.acknowledge(packet.packet_id, now)
                else:
                    self._control_packet(session, packet, now)
                    if self.session is not session:  # it has left
                        return
            if self._granted is not None and session is not None:
                granted, self._granted = self._granted, None
                self._broker.subscribed(session, granted)
        except MqttFormatError as wrong:
            self._broker.counters.protocol_errors += 1
            self.fail(wrong.code)
            return
        finally:
            counters.packets_in += packets
        if self._outbox.paused and self._outbox.size > REPLIES_BYTES:
            self._broker.counters.protocol_errors += 1
            self.abort()

    def data_to_send(self) -> bytes:
        """Return what to write now; more may follow in the next batch."""
        was_full = self._outbox.full
        counters = self._broker.counters
        counters.packets_out += len(self._outbox)
        data = self._outbox.take()
        counters.bytes_out += len(data)
        if was_full and self.session is not None:
            self.session.pump()
        return data

    @property
    def is_congested(self) -> bool:
        """Whether the peer should not be read from until what it was not answered yet is on disk."""
        return self._outbox.held > HELD_LIMIT

    def pause(self) -> None:
        """The transport's buffer is full: gather, and when that is full too, drop QoS 0 and queue QoS 1 and 2."""
        self._outbox.pause()

    def resume(self) -> None:
        """The transport takes bytes again."""
        self._outbox.resume()
        if self.session is not None:
            self.session.pump()

    def connection_lost(self, now: float) -> None:
        """The transport is gone; without a DISCONNECT before, the will is published."""
        if self._lost:
            return
        self._lost = True
        self._broker.shared.now = now
        if self.closing is Closing.NO:
            self.closing = Closing.ABORT
        self._broker.deadlines.discard(self, self._second)
        self._broker.forget_connection(self)
        self._leave()
        self._outbox.discard()

    # ------------------------------------------------------------------ the broker's side

    def abort(self) -> None:
        """Close at once: the session goes on without this connection, and the will is published."""
        if self.closing is Closing.ABORT:
            return
        self.closing = Closing.ABORT
        self._outbox.discard()
        self._wake()
        self._leave()

    def fail(self, reason: int) -> None:
        """Close, and tell a client of MQTT 5 the *reason*; otherwise as ``abort``."""
        if self.closing is not Closing.NO:
            return
        if self._incoming_5 is None or self.session is None:
            self.abort()
            return
        self._outbox.discard()
        self._outbox.paused = False
        self._outbox.append(encode_5(Disconnect(reason)))
        self._finish(self._broker.shared.now)
        self._leave()

    def waits_with(self, outboxes: Collection[Outbox]) -> bool:
        """Return whether what this client is to be sent is among *outboxes*."""
        return self._outbox in outboxes

    def handle_deadline(self, now: float) -> None:
        """Look whether the peer was silent for too long; called when it may have been."""
        if self.closing is not Closing.NO:
            self.abort()
            return
        if self.is_congested:  # it is we who do not listen
            self._last_heard = now
        deadline = self._last_heard + self._keepalive
        if self.session is None or deadline <= now:
            self._broker.counters.timeouts += 1
            self.fail(KEEPALIVE_TIMEOUT)
        else:
            self._second = self._broker.deadlines.add(self, deadline)

    def publish_will(self) -> None:
        """Publish the will, if there still is one."""
        will, self._will = self._will, None
        if will is not None:
            self._describe(will, will.properties)
            self._publish(will, None)

    @property
    def is_5(self) -> bool:
        """Whether the client speaks MQTT 5 and was accepted."""
        return self._incoming_5 is not None

    def _wake(self) -> None:
        self._broker.wake(self)

    def _finish(self, now: float) -> None:
        """Close when what is written is written; cut it if the peer does not read."""
        self.closing = Closing.FLUSH
        self._broker.deadlines.discard(self, self._second)
        self._second = self._broker.deadlines.add(self, now + FLUSH_SECONDS)
        self._wake()

    def _leave(self) -> None:
        """Let go of the session, then publish the will: its publication may reach this very client's session."""
        session, self.session = self.session, None
        self._outbox.closed = True
        if session is None:
            return
        self._broker.leave(session)
        will = self._will
        if will is None:
            return
        if not self._broker.delay_will(session, self, will.properties.will_delay or 0):
            self.publish_will()

    # ------------------------------------------------------------------ packets

    def _first_packet(self, packet: Packet, now: float) -> None:
        match packet:
            case Connect():
                self._connect(packet, now)
            case UnsupportedConnect():
                self._refuse(encode(ConnAck(False, REFUSED_VERSION)), now)
            case _:
                raise MqttFormatError("the first packet is no CONNECT")

    def _connect(self, packet: Connect, now: float) -> None:
        broker, is_5 = self._broker, packet.level == LEVEL_5
        asked = packet.properties
        if asked.authentication_method is not None:
            self._refuse(encode_5(ConnAck(False, BAD_AUTHENTICATION_METHOD)), now)
            return
        admission = broker.admit(self, packet)
        if isinstance(admission, int):
            refusal = ConnAck(False, _CONNACK_5[admission] if is_5 else admission)
            self._refuse(encode_5(refusal) if is_5 else encode(refusal), now)
            return
        session, present, self._permissions, assigned = admission
        self.session = session
        if packet.will is not None:
            will = packet.will
            self._will = Publication(will.topic, will.payload, will.qos, will.retain)
            self._will.properties = will.properties
        self._parser.max_packet = broker.limits.max_packet
        keepalive = packet.keepalive
        outbox = self._outbox
        if is_5:
            limit = broker.limits.max_keepalive
            keepalive = min(keepalive or limit, limit) if limit < 65_535 else keepalive
            self._incoming_5 = Incoming5()
            outbox.window = min(WINDOW, asked.receive_maximum or WINDOW)
            outbox.writer = Writer5(alias_limit=asked.topic_alias_maximum or 0)
            if asked.maximum_packet_size is not None:
                outbox.writer.max_packet = asked.maximum_packet_size
            said = Properties(
                assigned_client_id=assigned,
                receive_maximum=RECEIVE_MAXIMUM,
                topic_alias_maximum=ALIAS_MAXIMUM,
                maximum_packet_size=broker.limits.max_packet,
                server_keepalive=keepalive if keepalive != packet.keepalive else None,
            )
            outbox.append(encode_5(ConnAck(present, ACCEPTED, said)))
        else:
            outbox.append(encode(ConnAck(present, ACCEPTED)))
        self._keepalive = keepalive * KEEPALIVE_GRACE
        broker.deadlines.discard(self, self._second)
        if self._keepalive:
            self._second = broker.deadlines.add(self, now + self._keepalive)
        session.attach(outbox)

    def _refuse(self, connack: bytes, now: float) -> None:
        self._broker.counters.refused_connections += 1
        self._outbox.append(connack)
        self._finish(now)

    def _published(self, session: Session, packet: Publish) -> None:
        topic, payload, qos, retain, _, packet_id, properties = packet
        outbox = self._outbox
        if self._incoming_5 is not None:
            topic, reason = self._examined(self._incoming_5, session, packet)
            if reason:
                self._refuse_publish(packet, reason)
                return
        if qos == 2:
            self._published_once(session, packet, topic)
            return
        publication = Publication(topic, payload, qos, retain)
        if properties is not NO_PROPERTIES:
            self._describe(publication, properties)
        reason = self._publish(publication, session)
        if qos:
            is_plain = not reason or self._incoming_5 is None
            answer = encode_puback(packet_id) if is_plain else encode_5(PubAck(packet_id, reason))
            if publication.number or retain or outbox.held:
                self._broker.journal.hold(outbox, answer)
            else:
                outbox.append(answer)

    def _examined(self, incoming: Incoming5, session: Session, packet: Publish) -> tuple[bytes, int]:
        """Return the topic of a message of MQTT 5, and a reason not to take it, or 0.  Raises MqttFormatError."""
        in_flight = len(session.received) + self._outbox.held
        if packet.qos and in_flight >= RECEIVE_MAXIMUM and packet.packet_id not in session.received:
            raise MqttFormatError("more messages in flight than the Receive Maximum", RECEIVE_MAXIMUM_EXCEEDED)
        return (packet.topic, 0) if packet.properties is NO_PROPERTIES else incoming.examined(packet)

    def _answer(self, packet: bytes, is_kept: object) -> None:
        """Answer a message, once it is on disk if it *is_kept* there, and behind the answers before (section 4.6)."""
        if is_kept or self._outbox.held:
            self._broker.journal.hold(self._outbox, packet)
        else:
            self._outbox.append(packet)

    def _published_once(self, session: Session, packet: Publish, topic: bytes) -> None:
        """Take a QoS 2 message: from now on its packet identifier is one of those that were received."""
        packet_id = packet.packet_id
        if packet_id in session.received:
            self._answer(encode(PubRec(packet_id)), session.expiry)  # the first one may be on its way to the disk
            return
        if len(session.received) >= RECEIVED_LIMIT:
            raise MqttFormatError("too many QoS 2 messages are not released")
        publication = Publication(topic, packet.payload, 2, packet.retain)
        if packet.properties is not NO_PROPERTIES:
            self._describe(publication, packet.properties)
        reason = self._publish(publication, session)
        if self._incoming_5 is None:
            reason = 0
        if reason < FAILURE:
            session.receive(packet_id)
            if session.expiry:
                self._broker.journal.receive(session.client_id, packet_id, True)
        answer = encode_5(PubRec(packet_id, reason)) if reason else encode(PubRec(packet_id))
        self._answer(answer, session.expiry or publication.number or packet.retain)

    def _describe(self, publication: Publication, properties: Properties) -> None:
        publication.properties = properties
        if properties.message_expiry is not None:
            publication.expires = self._broker.shared.now + properties.message_expiry

    def _refuse_publish(self, packet: Publish, reason: int) -> None:
        """Answer a message that is not taken."""
        self._broker.counters.refused_publishes += 1
        if packet.qos:
            answer = PubAck(packet.packet_id, reason) if packet.qos == 1 else PubRec(packet.packet_id, reason)
            self._answer(encode_5(answer), False)

    def _publish(self, publication: Publication, publisher: Session | None) -> int:
        """Publish for this client if it may; return a reason code.  $-topics are the server's own (section 4.7.2)."""
        topic = publication.topic
        broker = self._broker
        permissions = self._permissions
        if topic[0] == 0x24 or permissions is None or not permissions.may_publish(topic):
            broker.counters.refused_publishes += 1
            return NOT_AUTHORISED
        if broker.journal.is_full and (publication.qos or publication.retain):
            broker.counters.refused_publishes += 1
            if publication.qos and self._incoming_5 is None and publisher is not None:
                raise MqttFormatError("the disk does not keep up", QUOTA_EXCEEDED)
            return QUOTA_EXCEEDED
        broker.counters.published_in += 1
        if broker.on_publish is not None and broker.on_publish(self, topic, publication.payload):
            return 0
        return 0 if broker.publish(publication, publisher=publisher) else NO_SUBSCRIBERS

    def _control_packet(self, session: Session, packet: Packet, now: float) -> None:
        match packet:
            case PingReq():
                self._outbox.append(_PINGRESP)
            case Subscribe():
                self._subscribe(session, packet)
            case Unsubscribe(packet_id, filters):
                codes = self._broker.unsubscribe(session, filters)
                answer = UnsubAck(packet_id, codes)
                self._outbox.append(encode(answer) if self._incoming_5 is None else encode_5(answer))
            case PubRec(packet_id, reason):
                session.received_by_client(packet_id, now, reason)
            case PubRel(packet_id):
                self._released(session, packet_id)
            case PubComp(packet_id):
                session.completed_by_client(packet_id)
            case Disconnect(reason, properties):
                self._disconnect(session, reason, properties, now)
            case _:  # a second CONNECT (section 3.1), or a packet that only servers send, or AUTH
                raise MqttFormatError(f"{type(packet).__name__} from a connected client", PROTOCOL_ERROR)

    def _released(self, session: Session, packet_id: int) -> None:
        """PUBREL: the identifier may be used again, once that is on disk: it would be taken for a repeat."""
        is_known = session.release(packet_id)
        if self._incoming_5 is not None and not is_known:
            self._answer(encode_5(PubComp(packet_id, PACKET_ID_UNKNOWN)), session.expiry)
            return
        if session.expiry and is_known:
            self._broker.journal.receive(session.client_id, packet_id, False)
        self._answer(encode(PubComp(packet_id)), session.expiry)  # a repeat, too: the first may be on its way

    def _disconnect(self, session: Session, reason: int, properties: Properties, now: float) -> None:
        if properties.session_expiry is not None:
            if properties.session_expiry and not session.expiry:
                raise MqttFormatError("a session that ends with its connection cannot be kept", PROTOCOL_ERROR)
            session.expiry = properties.session_expiry
        if reason != DISCONNECT_WITH_WILL:
            self._will = None
        self._leave()
        self._finish(now)

    def _subscribe(self, session: Session, packet: Subscribe) -> None:
        """Grant what is allowed, in order; retained messages come behind the SUBACK, for all of a read together."""
        assert self._permissions is not None
        identifiers = packet.properties.subscription_identifiers
        identifier = identifiers[0] if identifiers else 0
        codes = []
        if self._granted is None:
            self._granted = {}
        for topic_filter, byte in packet.filters:
            options = read_options(byte, identifier)
            is_new = topic_filter not in session.subscriptions
            code = self._broker.subscribe(session, topic_filter, options, self._permissions)
            codes.append(code)
            handling = options.retain_handling
            if code < FAILURE and not topic_filter.startswith(SHARED) and (not handling or (handling == 1 and is_new)):
                self._granted[topic_filter] = options
        if self._incoming_5 is None:
            answer = encode(
                SubAck(packet.packet_id, tuple(code if code < FAILURE else SUBSCRIBE_FAILED for code in codes))
            )
        else:
            answer = encode_5(SubAck(packet.packet_id, tuple(codes)))
        journal = self._broker.journal
        if session.expiry and not journal.is_written(session.changed_in):
            journal.hold(self._outbox, answer)
        else:
            self._outbox.append(answer)
