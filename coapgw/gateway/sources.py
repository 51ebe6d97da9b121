"""What is known of a request by where it comes from: networks that may send so much, and networks nobody can fake."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Sequence
from typing import Final, Protocol, TypeAlias

from coapgw.coap.codec import MAX_AGE, TOO_MANY_REQUESTS, Options, encode_body, encode_uint
from coapgw.coap.exchange import Exchange, Handler
from coapgw.dtls.admission import network_of
from coapgw.gateway.rate import NetworkRates, OverRate
from coapgw.metrics import SourceCounters

NETWORKS_REMEMBERED: Final = 65_536  # hosts whose network is known without looking it up again

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


class TrustedNetworks:
    """Networks whose source addresses nobody can forge, as ``coap.trusted_networks`` has them."""

    def __init__(self, networks: Sequence[Network]) -> None:
        """Trust these."""
        self._networks = networks

    def contains(self, address: Hashable) -> bool:
        """Return whether the host of an *address*, a tuple that begins with it, is in one of them."""
        if not self._networks or not isinstance(address, tuple):
            return False
        host = ipaddress.ip_address(str(address[0]).partition("%")[0])
        return any(host in network for network in self._networks)


class InnerSite(Protocol):
    """The site behind this one."""

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""


class RatedSite:
    """A site to which a source network may send so many requests; more are answered 4.29 (RFC 8516)."""

    def __init__(self, inner: InnerSite, rates: NetworkRates, counters: SourceCounters | None = None) -> None:
        """Stand before *inner*."""
        self._inner = inner
        self._rates = rates
        self.counters = counters or SourceCounters()
        self._network_of: dict[object, str] = {}

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""
        handler, take = self._inner.resolve(code, options), self._rates.take

        def handle(exchange: Exchange, payload: bytes) -> None:
            try:
                take(self._network(exchange.endpoint.address))
            except OverRate as refusal:
                self.counters.over_rate += 1
                exchange.respond(TOO_MANY_REQUESTS, encode_body([(MAX_AGE, encode_uint(refusal.retry_seconds))]))
            else:
                handler(exchange, payload)

        return handle

    def _network(self, address: Hashable) -> str:
        """Return the network of a socket address, or of where the peer of an association is now."""
        if not isinstance(address, tuple):
            address = getattr(address, "address", ())
        host = address[0] if isinstance(address, tuple) and address else ""
        network = self._network_of.get(host)
        if network is None:
            if len(self._network_of) >= NETWORKS_REMEMBERED:
                self._network_of.clear()
            network = self._network_of[host] = network_of(address)
        return network
