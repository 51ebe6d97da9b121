"""What stands between a client's bytes and aMQTT: only what is MQTT 3.1.1, in time, and allowed, gets through.

aMQTT has no limit on packets, lets go of a client only when its socket closes, and disturbs the session that a CONNECT
names before it looks at the password.  So the first packet is decided about here and handed on without its password,
its keepalive (which is watched here) and a will its user may not publish; every later one is read by our own parser
before aMQTT reads the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from coapgw.errors import PeerError
from coapgw.mqtt.access import Authenticator
from coapgw.mqtt.broker import BrokerLimits
from coapgw.mqtt.connection import CONNECT_BYTES, KEEPALIVE_GRACE
from coapgw.mqtt.packets import (
    CONNACK_5_UNSUPPORTED_VERSION,
    LEVEL_5,
    REFUSED_CLIENT_ID,
    REFUSED_NOT_AUTHORISED,
    REFUSED_PASSWORD,
    REFUSED_UNAVAILABLE,
    REFUSED_VERSION,
    ConnAck,
    Connect,
    Disconnect,
    MqttFormatError,
    Packet,
    PingReq,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    Unsubscribe,
    UnsupportedConnect,
    encode,
)
from coapgw.mqtt.parser import Parser
from coapgw.mqtt.topics import LEVEL_LIMIT

LONGEST_HEADER: Final = 5  # bytes, section 2.2
_FROM_CLIENTS: Final = (Publish, PubAck, PubRec, PubRel, PubComp, Subscribe, Unsubscribe, PingReq, Disconnect)


class ClientRefused(PeerError):
    """A client whose connection has to end; *answer* are the last bytes it gets, if any."""

    def __init__(self, reason: str, answer: bytes = b"") -> None:
        """Say the *reason*, for whoever debugs."""
        super().__init__(reason)
        self.answer = answer


def _refused(reason: str, code: int) -> ClientRefused:
    return ClientRefused(reason, encode(ConnAck(False, code)))


@attrs.define(eq=False)
class Guard:
    """One client's bytes, from the first on; owns no socket and no clock.

    Args:
        access: decides who a client is.
        limits: what it may cost.
        loopback: whether its listener is bound to a loopback address.
        keeps_password: hand the password on, where aMQTT's plugins look at it.
        owner_of: the user of the session with this client id in a tuple, None if there is no session.
        has_room: whether one more session may outlive its connection.
        new_id: makes a client id, for those that have none.
        host: where it comes from, if that is known.
        last_heard: when bytes came, on the caller's clock; before that, when the connection was made.

    Attributes:
        client: its CONNECT, as aMQTT gets it, once that was accepted.
        keepalive: seconds of silence that it asked for, 0: any.
    """

    _access: Authenticator
    _limits: BrokerLimits
    _loopback: bool
    _owner_of: Callable[[str], tuple[str | None] | None]
    _has_room: Callable[[], bool]
    _new_id: Callable[[], str]
    last_heard: float
    keeps_password: bool = False
    host: str = ""
    client: Connect | None = None
    keepalive: float = 0.0
    _first: bytearray = attrs.Factory(bytearray)
    _parser: Parser = attrs.field(init=False)
    _filters: set[bytes] = attrs.Factory(set)

    @_parser.default
    def _parse_first(self) -> Parser:
        return Parser(min(CONNECT_BYTES, self._limits.max_packet))

    def receive(self, data: bytes, now: float) -> bytes:
        """Return what aMQTT may read of what came: nothing before the CONNECT is there, then everything.

        Raises ClientRefused, after which the guard is of no use.
        """
        self.last_heard = now
        try:
            if self.client is not None:
                return self._passed(data)
            self._first += data
            length = _packet_length(self._first)
            if length is None or len(self._first) < min(length, self._parser.max_packet + 1):
                return b""
            connect, rest = bytes(self._first[:length]), bytes(self._first[length:])
            self._first.clear()
            (accepted,) = [self._admit(packet) for packet in self._parser.packets(connect)]
            self._parser.max_packet = self._limits.max_packet
            return encode(accepted) + self._passed(rest)
        except MqttFormatError as wrong:
            raise ClientRefused(str(wrong)) from None

    def is_overdue(self, now: float) -> bool:
        """Return whether the client should have said something by now (section 3.1.2.10)."""
        silence = now - self.last_heard
        if self.client is None:
            return silence > self._limits.connect_timeout
        return bool(self.keepalive) and silence > self.keepalive * KEEPALIVE_GRACE

    def _admit(self, packet: Packet) -> Connect:
        """Return the CONNECT that aMQTT is to see."""
        if isinstance(packet, UnsupportedConnect):
            if packet.level == LEVEL_5:
                raise ClientRefused("MQTT 5", CONNACK_5_UNSUPPORTED_VERSION)
            raise _refused(f"protocol level {packet.level}", REFUSED_VERSION)
        if not isinstance(packet, Connect):
            raise ClientRefused("the first packet is no CONNECT")
        permissions = self._access.authenticate(
            packet.user, packet.password, self._loopback, self.host, self.last_heard
        )
        if permissions is None:
            raise _refused("not who it says", REFUSED_NOT_AUTHORISED if packet.user is None else REFUSED_PASSWORD)
        if len(packet.client_id.encode()) > self._limits.max_client_id or not (
            packet.client_id or packet.clean_session
        ):
            raise _refused("client id", REFUSED_CLIENT_ID)
        owner = self._owner_of(packet.client_id)
        if owner is not None and owner[0] != packet.user:
            raise _refused("another user's client id", REFUSED_CLIENT_ID)
        if owner is None and not packet.clean_session and not self._has_room():
            raise _refused("too many sessions", REFUSED_UNAVAILABLE)
        will = packet.will
        if will is not None and (will.topic.startswith(b"$") or not permissions.may_publish(will.topic)):
            will = None
        self.keepalive = packet.keepalive
        password = packet.password if self.keeps_password else None
        client_id = packet.client_id or self._new_id()
        self.client = attrs.evolve(packet, client_id=client_id, password=password, keepalive=0, will=will)
        return self.client

    def _passed(self, data: bytes) -> bytes:
        for packet in self._parser.packets(data):
            if isinstance(packet, Subscribe):
                self._filters.update(topic_filter for topic_filter, _ in packet.filters)
                if len(self._filters) > self._limits.max_subscriptions or any(
                    topic_filter.count(b"/") >= LEVEL_LIMIT for topic_filter, _ in packet.filters
                ):
                    raise ClientRefused("too many subscriptions, or levels of one")
            elif isinstance(packet, Unsubscribe):
                self._filters.difference_update(packet.filters)
            elif not isinstance(packet, _FROM_CLIENTS):
                raise ClientRefused(f"{type(packet).__name__} from a client")
        return data


def _packet_length(data: bytearray) -> int | None:
    """Return the length of the packet that *data* begins with, None if it is not known yet (section 2.2.3).

    Raises ClientRefused if its length is none.
    """
    length = 0
    for at, byte in enumerate(data[1:5]):
        length |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            return 2 + at + length
    if len(data) >= LONGEST_HEADER:
        raise ClientRefused("a length of over four bytes")
    return None


__all__ = ["ClientRefused", "Guard"]
