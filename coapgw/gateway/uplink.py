"""A device's message becomes a message for MQTT: who is it, which topic, translate, envelope, store.

``uplink.acknowledge`` says when the device is told that all is well: at once, when the message is on disk, or when the
broker has it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs

from coapgw.errors import CoapgwError, PayloadTooLarge, Untranslatable
from coapgw.gateway.envelope import EnvelopeWriter, MessageIds
from coapgw.gateway.rate import DeviceRates, OverRate
from coapgw.gateway.topics import mqtt_topic
from coapgw.interfaces import Answer, ISpool, ITranslator
from coapgw.metrics import UplinkCounters
from coapgw.model import Acknowledge, Device, Introduction, Outgoing, Translated

PUBLISH_SECONDS: Final = 60.0  # how long a device waits for the broker, acknowledge = "published"
WAITING_LIMIT: Final = 100_000  # messages waiting for the broker with a device waiting for them
LIFECYCLE_TOPIC: Final = b"lifecycle"
ERROR_TOPIC: Final = b"error"
LOCATION_TOPIC: Final = b"location"
_made: Final = tuple.__new__  # what a NamedTuple's own __new__ calls, at half the price

Decode: TypeAlias = Callable[[bytes], bytes]
"""Returns a payload as JSON.  Raises Untranslatable."""


def _not_counted(iccid: str, received: int, payload_bytes: int, document_bytes: int) -> None:
    """Count nothing."""


class NotPublished(CoapgwError):
    """The broker did not take the message in time; it is stored and will be published later."""


class TooManyWaiting(CoapgwError):
    """So many devices wait for the broker already that no further one is made to."""


@attrs.frozen
class UplinkSettings:
    """The part of the configuration that the uplink follows; *max_payload* in bytes."""

    acknowledge: Acknowledge = Acknowledge.STORED
    max_payload: int = 65_536
    topic_prefix: bytes = b""
    raw: bool = False


@attrs.frozen
class _Waiting:
    answer: Answer
    until: float


class Uplink:
    """The way from a device's payload to the spool.

    Args:
        ids: of messages.
        clock: seconds since the epoch.
        monotonic: seconds; a step of the time of day must not keep devices waiting, or send them all away.
        heard: gets, by ICCID, when each device was last heard, in milliseconds since the epoch; somebody empties it.
        rates: how much one device may send; None is no limit.
    """

    def __init__(
        self,
        spool: ISpool,
        ids: MessageIds,
        clock: Callable[[], float],
        settings: UplinkSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        rates: DeviceRates | None = None,
        counters: UplinkCounters | None = None,
        heard: dict[str, int] | None = None,
    ) -> None:
        """Store messages in *spool*."""
        self._spool = spool
        self._ids = ids
        self._clock = clock
        self._monotonic = monotonic
        self._settings = settings
        self.translator: ITranslator | None = None
        """Turns payloads into JSON; None forwards them as they are."""
        self.count: Callable[[str, int, int, int], None] = _not_counted
        """Told of every translation: the device, when (milliseconds), bytes of the payload, bytes of the document."""
        self._rates = rates
        self.counters = counters or UplinkCounters()
        self._heard: dict[str, int] = {} if heard is None else heard
        self._envelopes = EnvelopeWriter()
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()

    def accept(
        self, device: Device, topic: bytes | None, payload: bytes, answer: Answer, decode: Decode | None = None
    ) -> None:
        """Take a device's message; *answer* is called once, with None or with what is wrong.

        Args:
            topic: as ``topics.parse_topic`` returns it.
            answer: called now or later; PeerError is the device's fault, anything else ours.
            decode: makes JSON of the payload if no template is active.
        """
        settings = self._settings
        if len(payload) > settings.max_payload:
            self.counters.too_large += 1
            answer(PayloadTooLarge(len(payload), settings.max_payload))
            return
        self._heard[device.iccid] = received = int(self._clock() * 1000)
        if self._rates is not None:
            try:
                self._rates.take(device.iccid)
            except OverRate as refusal:
                self.counters.over_rate += 1
                answer(refusal)
                return
        message, event = self._messages(device, topic, payload, received, decode)
        introduction = None
        if not self._spool.is_introduced(device.iccid, device.created_at):
            introduction = self._introduction(device, received)
        try:
            if settings.acknowledge is Acknowledge.STORED:
                self._spool.append(message, answer, introduction, event)
            elif settings.acknowledge is Acknowledge.RECEIVED:
                self._spool.append(message, None, introduction, event)
                answer(None)
            else:
                self._accept_for_publication((message, introduction, event), answer)
        except CoapgwError as refusal:
            self.counters.not_stored += 1
            answer(refusal)
        else:
            self.counters.accepted += 1

    def _messages(
        self, device: Device, topic: bytes | None, payload: bytes, received: int, decode: Decode | None
    ) -> tuple[Outgoing, Outgoing | None]:
        """Return what is published of a payload: the message, and an event that goes with it."""
        settings = self._settings
        message_id = self._ids.next(received)
        if self.translator is None and decode is None:
            body = payload if settings.raw else self._envelopes.telemetry(device, message_id, received, payload, topic)
            return self._outgoing(device, message_id, received, topic, body), None
        try:
            document, location = self._translated(payload, decode)
        except Untranslatable as error:
            self.counters.untranslatable += 1
            event = self._envelopes.error(device, message_id, received, error.description, payload)
            return Outgoing(received, device.iccid, message_id, settings.topic_prefix + ERROR_TOPIC, event), None
        self.counters.translated += 1
        self.count(device.iccid, received, len(payload), len(document))
        body = document if settings.raw else self._envelopes.translated(device, message_id, received, document, topic)
        message = self._outgoing(device, message_id, received, topic, body)
        if location is None:
            return message, None
        event_id = self._ids.next(received)
        event = self._envelopes.location(device, event_id, received, location)
        return message, Outgoing(received, device.iccid, event_id, settings.topic_prefix + LOCATION_TOPIC, event)

    def _translated(self, payload: bytes, decode: Decode | None) -> Translated:
        """Return a payload as JSON.  Raises Untranslatable."""
        if self.translator is not None:
            return self.translator.translate(payload)
        assert decode is not None
        return Translated(decode(payload), None)

    def _outgoing(self, device: Device, message_id: str, received: int, topic: bytes | None, body: bytes) -> Outgoing:
        where = mqtt_topic(self._settings.topic_prefix, device.iccid, topic)
        return _made(Outgoing, (received, device.iccid, message_id, where, body))

    def _introduction(self, device: Device, received: int) -> Introduction:
        self.counters.introduced += 1
        message_id = self._ids.next(received)
        event = self._envelopes.lifecycle(device, message_id, received)
        topic = self._settings.topic_prefix + LIFECYCLE_TOPIC
        lifecycle = Outgoing(received, device.iccid, message_id, topic, event)
        return Introduction(device.iccid, device.created_at, lifecycle)

    # ------------------------------------------------------------------ acknowledge = "published"

    def _accept_for_publication(
        self, messages: tuple[Outgoing, Introduction | None, Outgoing | None], answer: Answer
    ) -> None:
        """Store a message whose device waits for the broker."""
        if len(self._waiting) >= WAITING_LIMIT:
            raise TooManyWaiting(f"{WAITING_LIMIT} messages wait for the broker")
        place = 0

        def stored(failure: Exception | None) -> None:
            if failure is not None:
                waiting = self._waiting.pop(place, None)
                if waiting is not None:
                    waiting.answer(failure)

        message, introduction, event = messages
        place = self._spool.append(message, stored, introduction, event)
        self._waiting[place] = _Waiting(answer, self._monotonic() + PUBLISH_SECONDS)

    def published(self, place: int) -> None:
        """Take note that the broker has the message at *place* of the spool."""
        waiting = self._waiting.pop(place, None) if self._waiting else None
        if waiting is not None:
            waiting.answer(None)

    def handle_timer(self) -> None:
        """Answer the devices that have waited for the broker for too long; called about once a second."""
        now = self._monotonic()
        while self._waiting:
            place, waiting = next(iter(self._waiting.items()))
            if waiting.until > now:
                return
            del self._waiting[place]
            waiting.answer(NotPublished("the broker did not take the message in time"))
