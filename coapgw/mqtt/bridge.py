"""The link from the publisher to another broker, without I/O: what is on its way, whatever becomes of connections.

One ``MqttClient`` after the other carries the messages; this keeps what the broker has not acknowledged.

* After every CONNACK all of it is sent again, in order, before anything new, whether the broker says that it remembers
  the session or not: it may have been restored from an old copy.
* A message that the broker refuses for good, or that is larger than it takes, is set aside as a dead letter.  One that
  is refused for a reason that may pass is tried again ``RETRIES`` times with growing pauses, then set aside.  Meanwhile
  later messages of the same device wait behind it, those of others do not.
* MQTT 3.1.1 cannot refuse a message: brokers close the connection instead, and would do so for ever.  So when
  connections end before anything was acknowledged the window shrinks to one message, and one at which the broker closed
  the connection ``STRIKES`` times is set aside.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import attrs
from zope.interface import implementer

from coapgw.interfaces import IBrokerLink, IDelivery
from coapgw.metrics import BridgeCounters
from coapgw.model import Spooled
from coapgw.mqtt.client import LARGEST_PACKET, MqttClient
from coapgw.mqtt.packet_types import encoded_length
from coapgw.mqtt.packets import LEVEL_3_1_1, LEVEL_5, REFUSED_VERSION, REMAINING_LENGTH_LIMIT, Connect, Publish
from coapgw.mqtt.properties import NO_PROPERTIES, Properties
from coapgw.mqtt.reasons import FAILURE, FINAL_REFUSALS, UNSUPPORTED_VERSION, refusal

RETRIES: Final = 4  # of a refused message, after 1, 2, 4 and 8 seconds
RETRY_SECONDS: Final = 1.0
WAITING_LIMIT: Final = 1_000  # messages that wait behind refused ones; beyond that nothing is taken from the spool
FRUITLESS_CONNECTIONS: Final = 2  # that ended before anything was acknowledged: then one message at a time
STRIKES: Final = 5  # a message that is alone in flight when the broker closes this many times is set aside
STRIKE_SECONDS: Final = 5.0  # a broker closes sooner than that because of what it was sent
SESSION_SECONDS: Final = 604_800  # a broker of MQTT 5 remembers us for a week
_USER_PROPERTIES: Final = b"%b\x26\0\x05iccid\0%c%b\x26\0\x02id\0%c%b\x26\0\x08received\0%c%b"  # none is over 255 bytes


class BridgeVersion(enum.Enum):
    """Which MQTT the bridge speaks; AUTO is 5, and 3.1.1 with a broker that does not know it."""

    AUTO = "auto"
    V5 = "5"
    V3_1_1 = "3.1.1"


@attrs.frozen
class BridgeSettings:
    """How the bridge behaves towards its broker.

    Args:
        client_id: the same for ever: a broker that finds it connected twice closes the older connection.
        user: None for no user name.
        clean_session: have the broker forget us whenever the connection ends.
        keepalive: seconds, 0 for none.
        window: messages in flight at most; a broker's Receive Maximum may lower it.
        expiry_seconds: how long a broker keeps a message for absent subscribers, 0 for ever; MQTT 5 only.
    """

    client_id: str
    user: str | None = None
    clean_session: bool = False
    keepalive: int = 60
    window: int = 400
    expiry_seconds: int = 0
    version: BridgeVersion = BridgeVersion.AUTO


@attrs.define(eq=False)
class _Refused:
    """A device's messages of which the first was refused: *waiting* by their places, *attempts* of the first."""

    waiting: list[Spooled]
    due: float
    attempts: int = 0
    trying: int | None = None  # the place that is in flight again


@implementer(IBrokerLink)
class BridgeLink:
    """What is on its way to the broker.

    Args:
        delivery: told how messages fare.
        settings: how to behave.
        clock: monotonic seconds.

    The owner tells of each connection: ``connection_opened``, the client's events, ``connection_lost``; and calls
    ``refill`` after it handed bytes in or took some out.  ``has_progress``: the broker acknowledged something on the
    latest connection.  ``falls_back``: the last one may have failed because it spoke MQTT 5; the next attempt speaks
    3.1.1, and need not wait.
    """

    def __init__(
        self,
        delivery: IDelivery,
        settings: BridgeSettings,
        clock: Callable[[], float],
        counters: BridgeCounters | None = None,
    ) -> None:
        """Begin without a connection."""
        self._delivery = delivery
        self.settings = settings
        self._clock = clock
        self.counters = counters or BridgeCounters()
        self._client: MqttClient | None = None
        self._in_flight: dict[int, Spooled] = {}  # by packet identifier, in the order of sending
        self._again: deque[int] = deque()  # those that were not sent on this connection yet
        self._overdue: deque[Spooled] = deque()  # taken from the publisher already, to be sent before anything new
        self._refused: dict[str, _Refused] = {}  # by ICCID
        self._behind = 0  # messages in _refused
        self._window = self._full_window = 0
        self._dup = False
        self._room = 0  # the window, or 0 while something goes before new messages
        self._largest = LARGEST_PACKET
        expiry = settings.expiry_seconds
        self._expiry = b"\x02" + expiry.to_bytes(4, "big") if expiry else b""
        self._level = LEVEL_3_1_1 if settings.version is BridgeVersion.V3_1_1 else LEVEL_5
        self._is_5_unknown = False
        self.falls_back = False
        self.last_refusal = ""  # why the latest message was set aside
        self.has_progress = False
        self._fruitless = 0
        self._strikes = 0
        self._suspect = 0  # the place that _strikes counts for
        self._last_sent = 0.0

    # ------------------------------------------------------------------ from the publisher

    def ready(self) -> bool:
        """Return whether a message may be delivered now."""
        client = self._client
        return len(self._in_flight) < self._room and client is not None and not client.is_full

    def deliver(self, message: Spooled) -> None:
        """Send a message; behind a refused one of the same device it waits."""
        if self._refused and (refused := self._refused.get(message.iccid)) is not None:
            refused.waiting.append(message)
            self._behind += 1
            self._make_room()
        else:
            self._send(message)

    # ------------------------------------------------------------------ connections

    def connect_packet(self, password: bytes | None) -> Connect:
        """Return what the next connection begins with."""
        settings = self.settings
        properties = NO_PROPERTIES
        if self._level == LEVEL_5 and not settings.clean_session:
            properties = Properties(session_expiry=SESSION_SECONDS)
        return Connect(
            *(settings.client_id, settings.clean_session, settings.keepalive, None, settings.user, password),
            *(self._level, properties),
        )

    def connection_opened(self, client: MqttClient) -> None:
        """Use *client* from now on; it has not sent its CONNECT yet."""
        self._client = client
        self.has_progress = self.falls_back = False

    def connected(self, session_present: bool) -> None:
        """Send again what is in flight, then what waits."""
        self.counters.connections += 1
        self._dup = session_present  # a broker that has forgotten us gets a new message, not a repeat (section 3.3.1.1)
        client = self._client
        assert client is not None
        assert client.answer is not None
        limits = client.answer.properties
        self._largest = min(LARGEST_PACKET, limits.maximum_packet_size or LARGEST_PACKET)
        self._full_window = min(self.settings.window, limits.receive_maximum or self.settings.window)
        self._window = self._full_window if self._fruitless < FRUITLESS_CONNECTIONS else 1
        if limits.maximum_qos == 0:
            client.fail("the broker takes no QoS 1: nothing would be safe with it")
            return
        self._again = deque(self._in_flight)
        self.refill()

    def connection_lost(self) -> None:
        """Forget the client."""
        client, self._client = self._client, None
        self._again.clear()
        self._room = 0
        if client is None:
            return
        self._choose_version(client)
        if not client.is_connected:
            return
        if self.has_progress or not client.unacknowledged:
            self._fruitless = self._strikes = 0
            return
        self._fruitless += 1
        if len(client.unacknowledged) == 1 and self._clock() - self._last_sent < STRIKE_SECONDS:
            self._strike(*client.unacknowledged)

    def _choose_version(self, client: MqttClient) -> None:
        """See which MQTT to try next: 5, unless the broker said that it does not know it, or closed without a word."""
        if self.settings.version is not BridgeVersion.AUTO or self._is_5_unknown:
            return
        said = client.answer.code if client.answer is not None else None
        if client.settings.level == LEVEL_5 and said in (UNSUPPORTED_VERSION, REFUSED_VERSION):
            self._is_5_unknown = True
            self._level = LEVEL_3_1_1
        elif client.settings.level == LEVEL_5 and said is None:
            self._level = LEVEL_3_1_1
        else:
            self._level = LEVEL_5
        self.falls_back = self._level == LEVEL_3_1_1

    def _strike(self, packet_id: int) -> None:
        """Suspect a message at which the broker closed the connection, and set it aside if that is no coincidence."""
        message = self._in_flight[packet_id]
        self._strikes = self._strikes + 1 if self._suspect == message.place else 1
        self._suspect = message.place
        if self._strikes >= STRIKES:
            del self._in_flight[packet_id]
            self._fruitless = self._strikes = 0
            self._set_aside(message, f"the broker closed the connection at it, {STRIKES} times")
            self._release(message)

    def refill(self) -> None:
        """Send what there is room for, and ask the publisher for more."""
        client = self._client
        if client is None or not client.is_connected or client.closing:
            return
        while self._again and len(client.unacknowledged) < self._window and not client.is_full:
            packet_id = self._again.popleft()
            message = self._in_flight[packet_id]
            properties = self._properties(message)
            if self._is_too_large(message, properties):
                del self._in_flight[packet_id]
                continue
            self.counters.repeated += 1
            self._last_sent = self._clock()
            client.publish_again(packet_id, message.topic, message.payload, self._dup, properties)
        while self._overdue and not self._again and len(self._in_flight) < self._window and not client.is_full:
            self.deliver(self._overdue.popleft())
        self._make_room()
        if self.ready():
            self._delivery.resume()

    def _make_room(self) -> None:
        blocked = self._client is None or self._again or self._overdue or self._behind >= WAITING_LIMIT
        self._room = 0 if blocked else self._window

    # ------------------------------------------------------------------ from the client

    def acknowledged(self, packet_id: int, reason: int) -> None:
        """Settle a message, or see what is to become of one that was refused."""
        message = self._in_flight.pop(packet_id)
        if not self.has_progress:
            self.has_progress = True
            self._fruitless = 0
            self._window = self._full_window
        if reason >= FAILURE:
            self.counters.refused += 1
            self._was_refused(message, reason)
            return
        self.counters.acknowledged += 1
        self._delivery.accepted(message.place)
        self._delivery.settled(message.place)
        if self._refused:
            self._release(message)

    def refused(self, code: int) -> None:
        """Nothing: ``connection_lost`` follows."""

    def received(self, message: Publish) -> None:
        """Nothing is subscribed to here."""

    def subscribed(self, packet_id: int, codes: Sequence[int]) -> None:
        """Nothing is subscribed to here."""

    # ------------------------------------------------------------------ refused messages

    def handle_timer(self) -> None:
        """Try refused messages again that have waited; called about once a second."""
        if not self._refused or self._again or self._client is None or not self._client.is_connected:
            return
        now, window = self._clock(), self._window
        for refused in self._refused.values():
            if refused.trying is None and refused.due <= now and len(self._in_flight) < window:
                message = refused.waiting.pop(0)
                self._behind -= 1
                refused.trying = message.place
                self.counters.repeated += 1
                self._send(message)

    @property
    def oldest_received(self) -> int | None:
        """When the oldest message that was taken and not settled was received, milliseconds since the epoch."""
        taken = [message.received for message in self._in_flight.values()]
        taken += [message.received for refused in self._refused.values() for message in refused.waiting[:1]]
        taken += [message.received for message in self._overdue]
        return min(taken, default=None)

    @property
    def version(self) -> BridgeVersion:
        """Which MQTT the connection speaks, or the next one will try."""
        level = self._client.settings.level if self._client is not None else self._level
        return BridgeVersion.V5 if level == LEVEL_5 else BridgeVersion.V3_1_1

    @property
    def in_flight(self) -> int:
        """How many messages the broker owes an acknowledgement for."""
        return len(self._in_flight)

    def _was_refused(self, message: Spooled, reason: int) -> None:
        """Set a refused message aside, or keep it, and what comes from the same device, for another attempt."""
        refused = self._refused.get(message.iccid)
        attempts = 0
        if refused is not None and refused.trying == message.place:
            attempts = refused.attempts
        if reason in FINAL_REFUSALS or attempts >= RETRIES:
            self._set_aside(message, refusal(reason))
            self._release(message)
            return
        due = self._clock() + RETRY_SECONDS * 2**attempts
        if refused is None:
            refused = self._refused[message.iccid] = _Refused([], due)
            refused.attempts = 1
        elif refused.trying == message.place:
            refused.attempts, refused.due, refused.trying = attempts + 1, due, None
        insort(refused.waiting, message)  # by place, which comes first
        self._behind += 1
        self._make_room()

    def _release(self, message: Spooled) -> None:
        """Let go what waited behind *message*, if it was the one that was tried."""
        refused = self._refused.get(message.iccid)
        if refused is not None and refused.trying == message.place:
            del self._refused[message.iccid]
            self._behind -= len(refused.waiting)
            self._overdue.extend(refused.waiting)
            self._make_room()

    def _set_aside(self, message: Spooled, reason: str) -> None:
        self.counters.set_aside += 1
        self.last_refusal = reason
        self._delivery.refused(message, reason)

    # ------------------------------------------------------------------ sending

    def _send(self, message: Spooled) -> None:
        client = self._client
        assert client is not None
        properties = self._properties(message)
        if self._is_too_large(message, properties):
            return
        self.counters.published += 1
        self._last_sent = self._clock()
        self._in_flight[client.publish(message.topic, message.payload, 1, False, properties)] = message

    def _properties(self, message: Spooled) -> bytes:
        """Return what MQTT 5 says beside a message, encoded: its expiry, and for raw payloads who sent it."""
        client = self._client
        if client is None or client.settings.level != LEVEL_5:
            return b""
        iccid, message_id = message.iccid.encode(), message.message_id.encode()
        received = b"%d" % message.received
        block = _USER_PROPERTIES % (
            *(self._expiry, len(iccid), iccid),
            *(len(message_id), message_id),
            *(len(received), received),
        )
        return encoded_length(len(block)) + block

    def _is_too_large(self, message: Spooled, properties: bytes) -> bool:
        """Set a message aside that is larger than the broker takes; return whether it is."""
        size = len(message.topic) + len(message.payload) + len(properties) + 4
        size += 1 + len(encoded_length(min(size, REMAINING_LENGTH_LIMIT)))
        if size <= self._largest:
            return False
        self._set_aside(message, f"a packet of {size} bytes, the broker takes {self._largest}")
        self._release(message)
        return True
