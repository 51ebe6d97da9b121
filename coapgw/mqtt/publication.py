"""A message on its way through the broker, and who still wants it."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from coapgw.model import Spooled
from coapgw.mqtt.origin import origin_properties
from coapgw.mqtt.properties import NO_PROPERTIES, Properties, encode_block
from coapgw.mqtt.subscriptions import Manner


class _Beside:
    """What most publications have not: values of the class, because setting each would cost every message."""

    retained: bool = False
    owed: int = 0
    kept: int = 0
    properties: Properties = NO_PROPERTIES
    expires: float | None = None
    number: int = 0
    stored_block: bytes | None = None
    stored_origin: str | None = None


@attrs.define(eq=False, slots=False)
class Publication(_Beside):
    """A message on its way through the broker.

    Args:
        topic: a valid topic name.
        payload: any bytes.
        qos: what its publisher asked for.
        retain: whether it replaces the retained message of its topic.
        settled: called once, with *place*, when nobody owes an acknowledgement for it any more that is not on disk in
            the broker's own file; from inside ``Broker.publish`` if nobody ever did.
        place: whatever the publisher knows it by.
        origin: the device's message, if it is the gateway's.

    Attributes:
        retained: True for the copy that a new subscriber is given (section 3.3.1.3).
        owed: sessions that still want it, apart from those for which it is on disk in the broker's own file.
        kept: sessions that still want it and for which it is there, or about to be.
        properties: what an MQTT 5 client said about it.
        expires: the broker's clock when it is of no use any more; None for never.
        number: in the broker's file, 0 if it is not there.
        stored_block: what ``block`` returns, once it is known.
        stored_origin: what ``origin_id`` returns of a message that was restored.
    """

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False
    settled: Callable[[object], None] | None = None
    place: object = None
    origin: Spooled | None = None

    def release(self) -> None:
        """Let one owner go."""
        self.owed -= 1
        if not self.owed and self.settled is not None:
            settled, self.settled = self.settled, None
            settled(self.place)

    def retains(self, manner: Manner | None) -> bool:
        """Return the retain flag for a subscriber."""
        return self.retained or (manner is not None and manner.retain and self.retain)

    def block(self) -> bytes:
        """Return the properties that every subscriber of MQTT 5 gets, encoded, without their length."""
        block = self.stored_block
        if block is None:
            if self.origin is not None:
                block = origin_properties(self.origin)
            else:
                passed_on = self.properties
                if passed_on is not NO_PROPERTIES:
                    passed_on = passed_on._replace(message_expiry=None, topic_alias=None, will_delay=None)
                block = encode_block(passed_on)
            self.stored_block = block
        return block

    @property
    def origin_id(self) -> str | None:
        """The envelope's id of a device's message."""
        return self.stored_origin if self.origin is None else self.origin.message_id
