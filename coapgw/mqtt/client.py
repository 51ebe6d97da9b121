"""The client role on the same codec, without I/O: one connection to one broker (MQTT 3.1.1 and 5).

Reconnecting, and keeping what was published but not acknowledged, is the owner's: a new machine for each connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import attrs

from coapgw.mqtt.outbox import FULL_BYTES, Outbox
from coapgw.mqtt.packets import (
    ACCEPTED,
    LEVEL_5,
    REMAINING_LENGTH_LIMIT,
    TEXT_LIMIT,
    ConnAck,
    Connect,
    Disconnect,
    MqttFormatError,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    encode,
    encode_puback,
    encode_publish,
)
from coapgw.mqtt.parser import Parser
from coapgw.mqtt.reasons import refusal
from coapgw.mqtt.version_5 import encode_5

LARGEST_PACKET: Final = REMAINING_LENGTH_LIMIT + 5
ANSWERS_LIMIT: Final = 4 * FULL_BYTES  # bytes for a broker that sends, but takes nothing
ANSWER_SECONDS: Final = 30.0  # for CONNACK and PINGRESP, before the connection is given up


class ClientEvents(Protocol):
    """What a client's owner is told; from inside ``receive_data``."""

    def connected(self, session_present: bool) -> None:
        """The broker accepted the CONNECT."""

    def refused(self, code: int) -> None:
        """The broker refused the CONNECT with this return code."""

    def received(self, message: Publish) -> None:
        """A message came; a QoS 1 message is acknowledged when this returns."""

    def acknowledged(self, packet_id: int, reason: int) -> None:
        """The broker has taken responsibility for a QoS 1 message, or refused it: *reason* is 0x80 or above."""

    def subscribed(self, packet_id: int, codes: Sequence[int]) -> None:
        """The broker answered a SUBSCRIBE, a QoS or 0x80 for each filter."""


@attrs.define(eq=False)
class MqttClient:
    """One connection, from CONNECT to its end.

    Args:
        settings: what CONNECT says; its level is the version that is spoken.
        events: whom to tell.
        on_output: called when there are bytes to send after there were none.
        max_packet: bytes of the largest packet that is taken from the broker.

    ``closing`` turns True when the connection is to be closed, after ``data_to_send`` was written; ``failure`` then
    says why, unless we wanted it.  ``answer`` is the CONNACK, whose properties hold the broker's limits.
    """

    settings: Connect
    events: ClientEvents
    on_output: Callable[[], None]
    max_packet: int = LARGEST_PACKET
    closing: bool = False
    failure: str | None = None
    is_connected: bool = False
    answer: ConnAck | None = None
    keepalive: int = attrs.field(init=False)
    unacknowledged: set[int] = attrs.Factory(set)
    _outbox: Outbox = attrs.field(init=False)
    _parser: Parser = attrs.field(init=False)
    _encode: Callable[[Packet], bytes] = attrs.field(init=False)
    _last_id: int = 0
    _sent_at: float = 0.0
    _answer_due: float | None = None

    @_outbox.default
    def _new_outbox(self) -> Outbox:
        return Outbox(self.on_output)

    @_parser.default
    def _new_parser(self) -> Parser:
        return Parser(self.max_packet, level=self.settings.level)

    @_encode.default
    def _encoder(self) -> Callable[[Packet], bytes]:
        return encode_5 if self.settings.level == LEVEL_5 else encode

    @keepalive.default
    def _asked_keepalive(self) -> int:
        return self.settings.keepalive

    def start(self, now: float) -> None:
        """Send CONNECT."""
        self._sent_at = now
        self._answer_due = now + ANSWER_SECONDS
        self._outbox.append(self._encode(self.settings))

    def subscribe(self, filters: Sequence[tuple[bytes, int]]) -> int:
        """Ask for topics at QoS 0 or 1; return the packet identifier that ``subscribed`` will name."""
        packet_id = self._next_id()
        self._outbox.append(self._encode(Subscribe(packet_id, tuple(filters))))
        return packet_id

    def unsubscribe(self, filters: Sequence[bytes]) -> None:
        """Ask for topics no more."""
        self._outbox.append(self._encode(Unsubscribe(self._next_id(), tuple(filters))))

    def publish(self, topic: bytes, payload: bytes, qos: int = 0, retain: bool = False, properties: bytes = b"") -> int:
        """Send a message at QoS 0 or 1; return its packet identifier, 0 at QoS 0.

        How many are unacknowledged at a time is the caller's window.  *properties* are encoded, and there are always
        some in MQTT 5: at least ``NO_PROPERTIES_ENCODED``.
        """
        packet_id = 0
        if qos:
            packet_id = self._next_id()
            self.unacknowledged.add(packet_id)
        self._outbox.append(encode_publish(topic, payload, qos, retain, False, packet_id, properties))
        return packet_id

    def publish_again(self, packet_id: int, topic: bytes, payload: bytes, dup: bool, properties: bytes = b"") -> None:
        """Send a QoS 1 message of an earlier connection under its packet identifier, which is free on this one.

        Before anything new is published, so that its identifier is not taken.
        """
        self.unacknowledged.add(packet_id)
        self._outbox.append(encode_publish(topic, payload, 1, False, dup, packet_id, properties))

    def disconnect(self) -> None:
        """Leave in peace: no will is published."""
        self._outbox.append(self._encode(Disconnect()))
        self.closing = True

    def data_to_send(self, now: float) -> bytes:
        """Return what to write now."""
        data = self._outbox.take()
        if data:
            self._sent_at = now
        return data

    def pause(self) -> None:
        """The transport's buffer is full."""
        self._outbox.pause()

    def resume(self) -> None:
        """The transport takes bytes again."""
        self._outbox.resume()

    @property
    def is_full(self) -> bool:
        """Whether the transport is so slow that publishing should wait."""
        return self._outbox.full

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the broker; what is wrong with them ends in ``closing``, not in an exception."""
        try:
            for packet in self._parser.packets(data):
                if isinstance(packet, Publish):
                    self._received(packet)
                elif isinstance(packet, PubAck):
                    if packet.packet_id in self.unacknowledged:
                        self.unacknowledged.remove(packet.packet_id)
                        self.events.acknowledged(packet.packet_id, packet.reason)
                else:
                    self._control_packet(packet)
        except MqttFormatError as wrong:
            if self.is_connected and self.settings.level == LEVEL_5:
                self._outbox.append(encode_5(Disconnect(wrong.code)))
            self.fail(f"the broker sent what is no MQTT: {wrong.reason}")

    def next_timer(self) -> float | None:
        """Return the ``now`` at which ``handle_timer`` is due."""
        if self._answer_due is not None:
            return self._answer_due
        return self._sent_at + self.keepalive if self.keepalive else None

    def handle_timer(self, now: float) -> None:
        """Ping a broker that was sent nothing for a while; give up one that does not answer (section 3.1.2.10)."""
        due = self.next_timer()
        if due is None or now < due:
            return
        if self._answer_due is not None:
            self.fail(f"the broker did not answer within {ANSWER_SECONDS:.0f} s")
            return
        self._answer_due = now + ANSWER_SECONDS
        self._outbox.append(self._encode(PingReq()))

    def fail(self, failure: str) -> None:
        """Give the connection up, for a reason an operator can read."""
        self.failure = failure
        self.closing = True
        self.on_output()

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % TEXT_LIMIT + 1
            if self._last_id not in self.unacknowledged:
                return self._last_id

    def _received(self, message: Publish) -> None:
        if not self.is_connected or message.qos == 2:  # it was never asked for
            raise MqttFormatError("PUBLISH before CONNACK, or at QoS 2")
        if self._outbox.size > ANSWERS_LIMIT:
            raise MqttFormatError("messages without end, and no acknowledgement is taken")
        self.events.received(message)
        if message.qos:
            self._outbox.append(encode_puback(message.packet_id))

    def _control_packet(self, packet: Packet) -> None:
        match packet:
            case ConnAck(session_present, code, properties) if not self.is_connected:
                self._answer_due = None
                self.answer = packet
                if properties.server_keepalive is not None:
                    self.keepalive = properties.server_keepalive
                if code == ACCEPTED:
                    self.is_connected = True
                    self.events.connected(session_present)
                else:
                    self.fail(f"the broker refused the connection: {refusal(code)}")
                    self.events.refused(code)
            case PingResp() if self.is_connected:
                self._answer_due = None
            case SubAck(packet_id, codes) if self.is_connected:
                self.events.subscribed(packet_id, codes)
            case UnsubAck() if self.is_connected:
                pass
            case Disconnect(reason) if self.is_connected and self.settings.level == LEVEL_5:
                self.fail(f"the broker disconnected: {refusal(reason)}")
            case _:
                raise MqttFormatError(f"{type(packet).__name__} is nothing a broker sends now")
