"""The broker's end of one client's connection: bytes and ``now`` in, bytes out (MQTT 3.1.1 chapters 3 and 4)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from coapgw.mqtt.outbox import FULL_BYTES, Outbox
from coapgw.mqtt.packets import (
    ACCEPTED,
    CONNACK_5_UNSUPPORTED_VERSION,
    LEVEL_5,
    PROTOCOL_NAME,
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
    Will,
    encode,
    encode_puback,
)
from coapgw.mqtt.parser import Parser
from coapgw.mqtt.session import RECEIVED_LIMIT, Publication, Session

if TYPE_CHECKING:
    from coapgw.mqtt.access import Permissions
    from coapgw.mqtt.broker import Broker

CONNECT_BYTES: Final = 32_768  # largest first packet: 10,000 strangers who send all but the last byte hold 320 MB
REPLIES_BYTES: Final = FULL_BYTES + 262_144  # with acknowledgements for a peer that does not read: 65,536 PUBACKs
KEEPALIVE_GRACE: Final = 1.5  # section 3.1.2.10
FLUSH_SECONDS: Final = 10.0  # for a peer to read our last bytes before the connection is cut

_PINGRESP: Final = encode(PingResp())


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
        self._parser = Parser(min(CONNECT_BYTES, broker.limits.max_packet), broker.valid_topics)
        self._permissions: Permissions | None = None
        self._will: Will | None = None
        self._keepalive = 0.0
        self._last_heard = now
        self._lost = False
        self._granted: dict[bytes, int] = {}  # subscriptions of this read: their retained messages are still to be sent
        self._second = broker.deadlines.add(self, now + broker.limits.connect_timeout)

    # ------------------------------------------------------------------ the glue's side

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes from the peer; whatever is wrong with them ends in ``closing``, not in an exception."""
        if self.closing is not Closing.NO:
            return
        self._last_heard = self._broker.shared.now = now
        session = self.session
        try:
            for packet in self._parser.packets(data):
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
            if self._granted and session is not None:
                granted, self._granted = self._granted, {}
                self._broker.subscribed(session, granted)
        except MqttFormatError:
            self._broker.counters.protocol_errors += 1
            self.abort()
            return
        if self._outbox.paused and self._outbox.size > REPLIES_BYTES:
            self._broker.counters.protocol_errors += 1
            self.abort()

    def data_to_send(self) -> bytes:
        """Return what to write now; more may follow in the next batch."""
        was_full = self._outbox.full
        data = self._outbox.take()
        if was_full and self.session is not None:
            self.session.pump()
        return data

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

    def handle_deadline(self, now: float) -> None:
        """Look whether the peer was silent for too long; called when it may have been."""
        if self.closing is not Closing.NO:
            self.abort()
            return
        deadline = self._last_heard + self._keepalive
        if self.session is None or deadline <= now:
            self._broker.counters.timeouts += 1
            self.abort()
        else:
            self._second = self._broker.deadlines.add(self, deadline)

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
        will, self._will = self._will, None
        if session is not None:
            self._broker.leave(session)
        if will is not None:
            self._publish(Publication(will.topic, will.payload, will.qos, will.retain))

    # ------------------------------------------------------------------ packets

    def _first_packet(self, packet: Packet, now: float) -> None:
        match packet:
            case Connect():
                self._connect(packet, now)
            case UnsupportedConnect(name, level):
                is_five = name == PROTOCOL_NAME and level == LEVEL_5
                self._refuse(CONNACK_5_UNSUPPORTED_VERSION if is_five else encode(ConnAck(False, REFUSED_VERSION)), now)
            case _:
                raise MqttFormatError("the first packet is no CONNECT")

    def _connect(self, packet: Connect, now: float) -> None:
        broker = self._broker
        admission = broker.admit(self, packet)
        if isinstance(admission, int):
            self._refuse(encode(ConnAck(False, admission)), now)
            return
        session, present, self._permissions = admission
        self.session = session
        self._will = packet.will
        self._parser.max_packet = broker.limits.max_packet
        self._keepalive = packet.keepalive * KEEPALIVE_GRACE
        broker.deadlines.discard(self, self._second)
        if self._keepalive:
            self._second = broker.deadlines.add(self, now + self._keepalive)
        self._outbox.append(encode(ConnAck(present, ACCEPTED)))
        session.attach(self._outbox)

    def _refuse(self, connack: bytes, now: float) -> None:
        self._broker.counters.refused_connections += 1
        self._outbox.append(connack)
        self._finish(now)

    def _published(self, session: Session, packet: Publish) -> None:
        topic, payload, qos, retain, _, packet_id, _ = packet
        if qos == 2:
            if packet_id not in session.received:
                if len(session.received) >= RECEIVED_LIMIT:
                    raise MqttFormatError("too many QoS 2 messages are not released")
                session.received.add(packet_id)
                self._publish(Publication(topic, payload, qos, retain))
            self._outbox.append(encode(PubRec(packet_id)))
            return
        self._publish(Publication(topic, payload, qos, retain))
        if qos:
            self._outbox.append(encode_puback(packet_id))

    def _publish(self, publication: Publication) -> None:
        """Publish for this client if it may; $-topics are the server's own (section 4.7.2)."""
        topic = publication.topic
        broker = self._broker
        if topic[0] == 0x24 or self._permissions is None or not self._permissions.may_publish(topic):
            broker.counters.refused_publishes += 1
            return
        broker.counters.published_in += 1
        if broker.on_publish is not None and broker.on_publish(self, topic, publication.payload):
            return
        broker.publish(publication)

    def _control_packet(self, session: Session, packet: Packet, now: float) -> None:
        match packet:
            case PingReq():
                self._outbox.append(_PINGRESP)
            case Subscribe():
                self._subscribe(session, packet)
            case Unsubscribe(packet_id, filters):
                self._broker.unsubscribe(session, filters)
                self._outbox.append(encode(UnsubAck(packet_id)))
            case PubRec(packet_id):
                session.received_by_client(packet_id, now)
            case PubRel(packet_id):
                session.received.discard(packet_id)
                self._outbox.append(encode(PubComp(packet_id)))
            case PubComp(packet_id):
                session.completed_by_client(packet_id)
            case Disconnect():
                self._will = None
                self._leave()
                self._finish(now)
            case _:  # a second CONNECT (section 3.1), or a packet that only servers send
                raise MqttFormatError(f"{type(packet).__name__} from a connected client")

    def _subscribe(self, session: Session, packet: Subscribe) -> None:
        """Grant what is allowed, in order; retained messages come behind the SUBACK, for all of a read together."""
        assert self._permissions is not None
        granted = [
            (one, qos)
            for one, qos in packet.filters
            if self._permissions.may_subscribe(one) and self._broker.subscribe(session, one, qos)
        ]
        taken = set(granted)
        codes = tuple(qos if (one, qos) in taken else SUBSCRIBE_FAILED for one, qos in packet.filters)
        self._outbox.append(encode(SubAck(packet.packet_id, codes)))
        self._granted.update(granted)
