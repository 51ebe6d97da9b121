"""The client role of a message layer: requests of ours, and what is answered (RFC 7252 section 5, RFC 7641)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coapgw.coap.codec import (
    ACK,
    CON,
    GET,
    HEADER_BYTES,
    OBSERVE,
    OptionRefused,
    Options,
    encode_body,
    known_options,
)
from coapgw.coap.endpoints import Address, Endpoint, EndpointTable
from coapgw.coap.exchanges import ExchangeMemory
from coapgw.coap.outgoing import NoResponse, Outcome, Outgoing, Response
from coapgw.metrics import MessagingCounters

_DEREGISTER: Final = b"\x01"  # the value of Observe: RFC 7641 section 2


class ClientRole:
    """What a message layer does as a client; the layer has these parts."""

    counters: MessagingCounters
    _now: float
    _lifetime: float
    _endpoints: dict[Address, Endpoint]
    _table: EndpointTable
    _memory: ExchangeMemory
    _outgoing: Outgoing
    _send: Callable[[bytes, Address], None]
    _reset: Callable[[bytes, Address], None]

    def request(
        self,
        address: Address,
        code: int,
        outcome: Outcome,
        now: float,
        *,
        options: Options = (),
        payload: bytes = b"",
        confirmable: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Send a request; *outcome* is called once, with a Response or a NoResponse.

        Args:
            address: where to; the endpoint there becomes known.
            code: the method.
            timeout: seconds until NoResponse("timeout"); EXCHANGE_LIFETIME if None.
        """
        self._now = now
        endpoint = self._endpoints.get(address) or self._table.know(address, now)
        expires = now + (self._lifetime if timeout is None else timeout)
        self._outgoing.request(endpoint, (code, confirmable), encode_body(options, payload), outcome, expires)

    def observe(
        self,
        address: Address,
        outcome: Outcome,
        now: float,
        *,
        options: Options = (),
        confirmable: bool = True,
        timeout: float | None = None,
    ) -> bytes:
        """Ask to be told of a resource's changes (RFC 7641); return the token that ``stop_observing`` wants.

        *outcome* is called with each notification that is newer than those before.  A Response without Observe, or
        that is no success, and a NoResponse are the last.
        """
        self._now = now
        endpoint = self._endpoints.get(address) or self._table.know(address, now)
        expires = now + (self._lifetime if timeout is None else timeout)
        body = encode_body([(OBSERVE, b""), *options])
        return self._outgoing.request(endpoint, (GET, confirmable), body, outcome, expires, observes=True)

    def stop_observing(
        self, address: Address, token: bytes, outcome: Outcome, now: float, *, options: Options = ()
    ) -> None:
        """End an observation of ours: by a GET that says so, whose *options* are those of the first.

        *outcome* is called once, with the answer to that.
        """
        self._now = now
        endpoint = self._endpoints.get(address)
        if endpoint is None:
            outcome(NoResponse("timeout"))
            return
        body = encode_body([(OBSERVE, _DEREGISTER), *options])
        self._outgoing.request(endpoint, (GET, True), body, outcome, now + self._lifetime, token=token)

    def _receive_response(self, data: bytes, token_end: int, parsed: tuple[Options, int], endpoint: Endpoint) -> None:
        options, payload_at = parsed
        kind, token, message_id = data[0] >> 4 & 3, data[HEADER_BYTES:token_end], data[2] << 8 | data[3]
        if kind == CON and endpoint.shard.get(endpoint.base | message_id):
            self.counters.duplicates += 1
            self._send(endpoint.shard[endpoint.base | message_id], endpoint.address)
            return
        acknowledged_id = message_id if kind == ACK else None
        known: Options | None = None
        if self._outgoing.awaits(endpoint, token, acknowledged_id):
            try:
                known = known_options(options)
            except OptionRefused:
                self.counters.bad_options += 1  # RFC 7252 section 5.4.1: such a response is rejected
        if known is None:
            self.counters.unmatched += 1
            if kind == CON:
                self._reset(data, endpoint.address)
            return
        if kind == CON:
            acknowledgement = b"\x60\x00" + data[2:4]
            self._memory.confirmable.bucket.append(endpoint.base | message_id)
            endpoint.shard[endpoint.base | message_id] = acknowledgement
            self._send(acknowledgement, endpoint.address)
        self._outgoing.responded(endpoint, token, Response(data[1], known, data[payload_at:]), self._now)
