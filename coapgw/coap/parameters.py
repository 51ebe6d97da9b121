"""Transmission parameters of RFC 7252 section 4.8, the times derived from them, and the bounds that are ours."""

from __future__ import annotations

import attrs


@attrs.frozen
class TransmissionParameters:
    """RFC 7252 section 4.8, in seconds where it is a time.

    ==================  =============
    name                default value
    ==================  =============
    ACK_TIMEOUT         2 seconds
    ACK_RANDOM_FACTOR   1.5
    MAX_RETRANSMIT      4
    NSTART              1
    PROBING_RATE        1 byte/second
    MAX_LATENCY         100 seconds
    ==================  =============
    """

    ack_timeout: float = 2.0
    ack_random_factor: float = 1.5
    max_retransmit: int = 4
    nstart: int = 1
    probing_rate: float = 1.0
    max_latency: float = 100.0

    @property
    def processing_delay(self) -> float:
        """PROCESSING_DELAY: how long a node may take to turn a confirmable message into an acknowledgement."""
        return self.ack_timeout

    @property
    def max_transmit_span(self) -> float:
        """MAX_TRANSMIT_SPAN: from the first transmission of a confirmable message to its last; 45 s."""
        return self.ack_timeout * ((1 << self.max_retransmit) - 1) * self.ack_random_factor

    @property
    def max_transmit_wait(self) -> float:
        """MAX_TRANSMIT_WAIT: from the first transmission to giving up on an acknowledgement; 93 s."""
        return self.ack_timeout * ((2 << self.max_retransmit) - 1) * self.ack_random_factor

    @property
    def max_rtt(self) -> float:
        """MAX_RTT: 202 s."""
        return 2 * self.max_latency + self.processing_delay

    @property
    def exchange_lifetime(self) -> float:
        """EXCHANGE_LIFETIME: how long the Message ID of a confirmable message stays taken; 247 s."""
        return self.max_transmit_span + self.max_rtt

    @property
    def non_lifetime(self) -> float:
        """NON_LIFETIME: the same for a non-confirmable message; 145 s."""
        return self.max_transmit_span + self.max_latency


@attrs.frozen
class MessagingLimits:
    """What the message layer holds at most.

    Args:
        endpoints: endpoints of known peers; beyond it the longest known and idle go first.
        endpoints_per_host: of one host, which is one device: a NAT gives it a new port now and then.
        exchanges: answers remembered for repeats, of all endpoints together (about 130 bytes each).
        stranger_exchanges: the same for peers that are not known, in a table of their own, so that a flood of spoofed
            addresses never costs a device its entry.
        stranger_datagrams_per_host: datagrams a second of one host that is not known; more are dropped unseen.
        stranger_datagrams: the same of all hosts that are not known.
        pending_per_endpoint: requests of one endpoint that wait for their answer; one that keeps to NSTART has one.
        pending_when_crowded: the same while more arrives than can be served: who floods goes short, and nobody else.
        refusals_per_endpoint: 4.29 that an endpoint gets in a second; one that goes on is not heard until it is over.
        queued_per_endpoint: own confirmables to one endpoint waiting for their turn (NSTART).
        remembered_handlers: option blocks whose meaning is remembered.
        piggyback_seconds: how long an answer may take to travel in the acknowledgement; half of the shortest time
            (ACK_TIMEOUT) after which a client repeats itself.
        observations: what endpoints observe, of all endpoints together; beyond it a GET is just a GET.
        observations_per_endpoint: the same of one endpoint.
        extra_bytes_to_strangers: how much larger than its request an answer to an unknown peer may be.
    """

    endpoints: int = 100_000
    endpoints_per_host: int = 64
    exchanges: int = 4_000_000
    stranger_exchanges: int = 65_536
    stranger_datagrams_per_host: int = 500
    stranger_datagrams: int = 5000
    pending_per_endpoint: int = 1024
    pending_when_crowded: int = 16
    refusals_per_endpoint: int = 100
    queued_per_endpoint: int = 64
    remembered_handlers: int = 4096
    piggyback_seconds: float = 1.0
    observations: int = 10_000
    observations_per_endpoint: int = 16
    extra_bytes_to_strangers: int = 48
