"""How the broker writes messages for one connection of MQTT 5: aliases, expiry, identifiers, the client's limits."""

from __future__ import annotations

from typing import Final

import attrs

from coapgw.mqtt.packet_types import LENGTH_LIMIT, encoded_length, pack_two
from coapgw.mqtt.packets import encode_publish
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.subscriptions import Manner

ALIAS_LIMIT: Final = 64  # topics of one connection that get an alias, the first ones; more would only cost memory
HEAD_BYTES: Final = 5 + 2 + 2 + 4  # header, topic length, packet identifier, properties' length: at most


@attrs.define(eq=False)
class Writer5:
    """Writes PUBLISH packets for one client.

    Args:
        max_packet: the client's Maximum Packet Size.
        alias_limit: the client's Topic Alias Maximum.
    """

    max_packet: int = LENGTH_LIMIT + 5
    alias_limit: int = 0
    _aliases: dict[bytes, int] | None = None

    def publish(  # noqa: PLR0917 - the message path calls it, by position
        self,
        publication: Publication,
        qos: int,
        dup: bool,
        packet_id: int,
        manner: Manner | None,
        now: float,
        may_alias: bool = True,
    ) -> bytes:
        """Write a PUBLISH; return nothing if the client does not take one so large (section 3.1.2.11.4)."""
        block = publication.block()
        retain = publication.retained
        if manner is not None:
            retain = publication.retains(manner)
            for identifier in manner.identifiers:
                block += b"\x0b" + encoded_length(identifier)
        if publication.expires is not None:
            block += b"\x02" + max(0, int(publication.expires - now)).to_bytes(4, "big")
        topic, payload = publication.topic, publication.payload
        size = len(topic) + len(payload) + len(block)
        if size + HEAD_BYTES + 3 > self.max_packet and self._size(size, len(block), qos) > self.max_packet:
            return b""
        if self.alias_limit and may_alias and size + HEAD_BYTES + 3 <= self.max_packet:
            topic, block = self._aliased(topic, block)
        length = len(block)
        properties = (bytes((length,)) if length < 128 else encoded_length(length)) + block
        return encode_publish(topic, payload, qos, retain, dup, packet_id, properties)

    @staticmethod
    def _size(size: int, block: int, qos: int) -> int:
        size += len(encoded_length(block)) + (4 if qos else 2)
        return size + 1 + len(encoded_length(min(size, LENGTH_LIMIT)))

    def _aliased(self, topic: bytes, block: bytes) -> tuple[bytes, bytes]:
        """Return what stands for *topic*, and the properties with the alias (section 3.3.2.3.4)."""
        aliases = self._aliases
        if aliases is None:
            aliases = self._aliases = {}
        alias = aliases.get(topic)
        if alias is not None:
            return b"", block + b"\x23" + pack_two(alias)
        if len(aliases) >= min(self.alias_limit, ALIAS_LIMIT):
            return topic, block
        alias = aliases[topic] = len(aliases) + 1
        return topic, block + b"\x23" + pack_two(alias)
