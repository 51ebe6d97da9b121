"""Counters, cheap enough for the message path: an attribute that is added to.

``http/metrics_page.py`` shows them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

import attrs

LATENCIES: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds


class Histogram:
    """How many durations were at most so long; *bounds* in seconds, rising."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Iterable[float] = LATENCIES) -> None:
        """Begin with nothing."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last one is of what is longer than all bounds
        self.sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count a duration, or so many of the same."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times


@attrs.define
class MessagingCounters:
    """What the CoAP message layer saw; datagrams unless said otherwise."""

    received: int = 0
    sent: int = 0
    duplicates: int = 0
    requests: int = 0
    pings: int = 0
    bad_options: int = 0
    resets_received: int = 0
    dropped_of_strangers: int = 0  # beyond what is listened to
    dropped_over_rate: int = 0  # of endpoints that went on after many 4.29
    unmatched: int = 0  # ACK, RST or response that belongs to nothing
    retransmissions: int = 0
    given_up: int = 0  # own confirmables nobody acknowledged
    separate: int = 0  # requests that got an empty ACK first
    evicted_exchanges: int = 0  # forgotten before their lifetime ended, for want of room
    evicted_endpoints: int = 0
    refused_busy: int = 0  # requests beyond the pending limit of an endpoint
    failed_requests: int = 0  # our own fault: a resource raised
    challenges: int = 0  # answers that ask to come again with Echo
    shortened: int = 0  # answers whose payload was left out: too large for an address that is not proven
    observations_begun: int = 0
    observations_refused: int = 0  # for want of room; the client got an ordinary answer
    observers_lost: int = 0  # observations that ended with an RST, or because nobody acknowledged
    notifications: int = 0  # repetitions left out


@attrs.define
class SourceCounters:
    """Requests by where they come from."""

    over_rate: int = 0  # beyond limits.network_rate


@attrs.define
class BlockwiseCounters:
    """Bodies larger than a datagram."""

    uploads: int = 0  # bodies put together
    answers: int = 0  # blocks of large answers
    incomplete: int = 0  # blocks that nothing came before, or not everything
    too_large: int = 0  # bodies that were, or would have been
    expired: int = 0  # unfinished uploads whose next block did not come in time
    dropped: int = 0  # unfinished uploads that went for want of room


@attrs.define
class SocketCounters:
    """What happened between the kernel and the machine."""

    received_bytes: int = 0
    sent_bytes: int = 0
    kernel_drops: int = 0  # datagrams the kernel had no room for; as it said when it was last asked
    send_blocked: int = 0
    send_failed: int = 0
    receive_failed: int = 0
    pump_errors: int = 0


@attrs.define
class DtlsCounters:
    """What DTLS peers did; records unless said otherwise."""

    hellos: int = 0  # ClientHellos
    malformed: int = 0  # datagrams that are no records of DTLS 1.2, or no hello, from a peer that has no association
    cookies: int = 0  # HelloVerifyRequests sent
    handshakes: int = 0  # begun: with a valid cookie, and within the limits
    established: int = 0  # handshakes that became associations
    failed: int = 0  # handshakes that ended in an alert
    unproven: int = 0  # of these: the peer could not prove that it knows a key
    timeouts: int = 0  # handshakes that were not finished in time
    displaced: int = 0  # handshakes that made room for others, or for another attempt of the same peer
    refused_rate: int = 0  # hellos beyond coaps.handshakes_per_second
    refused_full: int = 0  # hellos beyond coaps.max_handshakes, or beyond one network's part of it
    repeated_flights: int = 0
    received: int = 0  # with application data, authentic
    refused: int = 0  # not authentic, seen before, or not for us; dropped
    forged: int = 0  # of these: not authentic, AEAD suites
    replayed: int = 0  # of these: seen before, or so old that one cannot tell, AEAD suites
    with_cid: int = 0  # authentic, found by their Connection ID
    unknown_cid: int = 0  # with a Connection ID that no association has; dropped
    moved: int = 0  # changes of an association's address
    withheld: int = 0  # answers larger than a new address may get before it is known to be the peer's
    unsealed: int = 0  # answers nobody could be sent: too long, or no sequence numbers left
    closed: int = 0  # associations that the peer ended
    superseded: int = 0  # associations that ended because their device made a newer one
    evicted: int = 0  # associations that ended because there were too many
    idle: int = 0  # associations that ended because they were idle for too long
    revoked: int = 0  # associations that ended because their device or its key changed
    worn: int = 0  # associations that ended because their keys had protected, or been tried on, enough records
    restored: int = 0  # associations that went on after a planned restart


@attrs.define
class UplinkCounters:
    """What became of devices' messages."""

    accepted: int = 0
    unauthorised: int = 0
    topic_refused: int = 0
    too_large: int = 0
    over_rate: int = 0
    not_stored: int = 0
    introduced: int = 0
    translated: int = 0
    untranslatable: int = 0  # published as ERROR events


@attrs.define
class BootstrapCounters:
    """What became of devices' bootstrap calls."""

    answered: int = 0
    unauthorised: int = 0
    from_elsewhere: int = 0  # not from a network that may bootstrap
    over_rate: int = 0
    refused_busy: int = 0
    failed: int = 0


@attrs.define
class SpoolCounters:
    """The spool's work; times in seconds."""

    commits: int = 0
    committed: int = 0
    failed_commits: int = 0
    failed_reads: int = 0  # of messages on their way out
    replaced: int = 0  # files that were damaged
    settled: int = 0


@attrs.define
class BrokerCounters:
    """The embedded broker's clients and messages."""

    connections: int = 0  # taken, since the start
    refused_connections: int = 0  # too many, or a CONNECT that was not accepted
    protocol_errors: int = 0
    timeouts: int = 0  # no CONNECT in time, or nothing for one and a half keepalives
    pump_errors: int = 0
    packets_in: int = 0  # of any kind, from clients
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    published_in: int = 0  # from clients
    refused_publishes: int = 0  # from clients that may not
    delivered: int = 0
    dropped: int = 0  # because a client was slow or away too long
    not_retained: int = 0  # for want of room
    ended_sessions: int = 0  # of clients that were away, for want of room
    replaced: int = 0  # files of sessions that were damaged


@attrs.define
class AmqttCounters:
    """aMQTT's clients, and the gateway's messages to them."""

    connections: int = 0  # taken, since the start
    refused_connections: int = 0  # too many, or a CONNECT that was not accepted
    protocol_errors: int = 0
    timeouts: int = 0  # no CONNECT in time, nothing for one and a half keepalives, or nothing read for ten seconds
    pump_errors: int = 0
    complaints: int = 0  # warnings and errors of aMQTT's own
    bytes_in: int = 0
    bytes_out: int = 0
    delivered: int = 0  # of the gateway's messages, acknowledged
    unacknowledged: int = 0  # of these, not acknowledged in time; their client is disconnected
    dropped: int = 0  # because a client was slow or away too long
    withheld: int = 0  # retained messages that aMQTT would have sent to clients that had not asked for them


@attrs.define
class BridgeCounters:
    """The bridge to another broker; messages unless said otherwise."""

    connections: int = 0  # that the broker accepted
    failed_attempts: int = 0  # connections that did not come about, or that the broker refused
    published: int = 0  # sent for the first time
    repeated: int = 0  # sent again on a later connection, or after a refusal
    acknowledged: int = 0
    refused: int = 0  # by the broker, final or not
    set_aside: int = 0  # given up and kept as dead letters
    pump_errors: int = 0  # our own fault


@attrs.define
class HttpCounters:
    """The management API's clients; requests unless said otherwise."""

    connections: int = 0  # taken, since the start
    evicted_connections: int = 0  # ended for a newer one, for want of room
    requests: int = 0  # answered, whatever the answer
    unauthorised: int = 0  # 401
    refused: int = 0  # 4xx but 401
    failed: int = 0  # 5xx
    malformed: int = 0  # what is no HTTP
    timeouts: int = 0  # connections that were idle, or whose request did not arrive in time
    pump_errors: int = 0
