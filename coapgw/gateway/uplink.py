"""A device's message becomes a message for MQTT: who is it, which topic, translate, envelope, store.

``uplink.acknowledge`` says when the device is told that all is well: at once, when the message is on disk, or when the
broker has it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import attrs

from coapgw.errors import CoapgwError, PayloadTooLarge
from coapgw.gateway.envelope import EnvelopeWriter, MessageIds
from coapgw.gateway.rate import DeviceRates, OverRate
from coapgw.gateway.topics import mqtt_topic
from coapgw.interfaces import Answer, ISpool, ITranslator
from coapgw.metrics import UplinkCounters
from coapgw.model import Acknowledge, Device, Introduction, Outgoing

PUBLISH_SECONDS: Final = 60.0  # how long a device waits for the broker, acknowledge = "published"
WAITING_LIMIT: Final = 100_000  # messages waiting for the broker with a device waiting for them
LIFECYCLE_TOPIC: Final = b"lifecycle"


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
        translator: turns payloads into JSON; None forwards them as they are.
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
        translator: ITranslator | None = None,
        rates: DeviceRates | None = None,
        counters: UplinkCounters | None = None,
        heard: dict[str, int] | None = None,
    ) -> None:
        """Store messages in *spool*."""
        self._spool = spool
        self._ids = ids
        self._clock = clock
        self._settings = settings
        self._translator = translator
        self._rates = rates
        self.counters = counters or UplinkCounters()
        self._heard: dict[str, int] = {} if heard is None else heard
        self._envelopes = EnvelopeWriter()
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()

    def accept(self, device: Device, topic: bytes | None, payload: bytes, answer: Answer) -> None:
        """Take a device's message; *answer* is called once, with None or with what is wrong.

        Args:
            topic: as ``topics.parse_topic`` returns it.
            answer: called now or later; PeerError is the device's fault, anything else ours.
        """
        settings = self._settings
        if len(payload) > settings.max_payload:
            self.counters.too_large += 1
            answer(PayloadTooLarge(len(payload), settings.max_payload))
            return
        now = self._clock()
        self._heard[device.iccid] = received = int(now * 1000)
        if self._rates is not None:
            try:
                self._rates.take(device.iccid)
            except OverRate as refusal:
                self.counters.over_rate += 1
                answer(refusal)
                return
        message = self._message(device, topic, payload, received)
        introduction = None
        if not self._spool.is_introduced(device.iccid, device.created_at):
            introduction = self._introduction(device, received)
        try:
            if settings.acknowledge is Acknowledge.STORED:
                self._spool.append(message, answer, introduction)
            elif settings.acknowledge is Acknowledge.RECEIVED:
                self._spool.append(message, None, introduction)
                answer(None)
            else:
                self._accept_for_publication(message, introduction, answer, now)
        except CoapgwError as refusal:
            self.counters.not_stored += 1
            answer(refusal)
        else:
            self.counters.accepted += 1

    def _message(self, device: Device, topic: bytes | None, payload: bytes, received: int) -> Outgoing:
        message_id = self._ids.next(received)
        settings = self._settings
        if self._translator is None:
            body = payload if settings.raw else self._envelopes.telemetry(device, message_id, received, payload, topic)
        else:
            document = self._translator.translate(payload)
            body = (
                document if settings.raw else self._envelopes.translated(device, message_id, received, document, topic)
            )
        return Outgoing(
            received, device.iccid, message_id, mqtt_topic(settings.topic_prefix, device.iccid, topic), body
        )

    def _introduction(self, device: Device, received: int) -> Introduction:
        self.counters.introduced += 1
        message_id = self._ids.next(received)
        event = self._envelopes.lifecycle(device, message_id, received)
        topic = self._settings.topic_prefix + LIFECYCLE_TOPIC
        lifecycle = Outgoing(received, device.iccid, message_id, topic, event)
        return Introduction(device.iccid, device.created_at, lifecycle)

    # ------------------------------------------------------------------ acknowledge = "published"

    def _accept_for_publication(
        self, message: Outgoing, introduction: Introduction | None, answer: Answer, now: float
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

        place = self._spool.append(message, stored, introduction)
        self._waiting[place] = _Waiting(answer, now + PUBLISH_SECONDS)

    def published(self, place: int) -> None:
        """Take note that the broker has the message at *place* of the spool."""
        waiting = self._waiting.pop(place, None) if self._waiting else None
        if waiting is not None:
            waiting.answer(None)

    def handle_timer(self) -> None:
        """Answer the devices that have waited for the broker for too long; called about once a second."""
        now = self._clock()
        while self._waiting:
            place, waiting = next(iter(self._waiting.items()))
            if waiting.until > now:
                return
            del self._waiting[place]
            waiting.answer(NotPublished("the broker did not take the message in time"))
