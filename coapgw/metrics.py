"""Counters, cheap enough for the message path: an attribute that is added to.

The page that shows them comes with the management API; until then ``snapshot`` is for tests and the log.
"""

from __future__ import annotations

import attrs


@attrs.define
class MessagingCounters:
    """What the CoAP message layer saw; datagrams unless said otherwise."""

    received: int = 0
    sent: int = 0
    malformed: int = 0
    duplicates: int = 0
    requests: int = 0
    pings: int = 0
    bad_options: int = 0
    resets_received: int = 0
    unmatched: int = 0  # ACK, RST or response that belongs to nothing
    retransmissions: int = 0
    given_up: int = 0  # own confirmables nobody acknowledged
    separate: int = 0  # requests that got an empty ACK first
    evicted_exchanges: int = 0  # forgotten before their lifetime ended, for want of room
    evicted_endpoints: int = 0
    refused_busy: int = 0  # requests beyond the pending limit of an endpoint
    failed_requests: int = 0  # our own fault: a resource raised


@attrs.define
class SocketCounters:
    """What happened between the kernel and the machine."""

    send_blocked: int = 0
    send_failed: int = 0
    receive_failed: int = 0
    pump_errors: int = 0


@attrs.define
class UplinkCounters:
    """What became of devices' messages."""

    accepted: int = 0
    unauthorised: int = 0
    topic_refused: int = 0
    too_large: int = 0
    not_stored: int = 0
    introduced: int = 0


@attrs.define
class SpoolCounters:
    """The spool's work; times in seconds."""

    commits: int = 0
    committed: int = 0
    commit_seconds: float = 0.0
    failed_commits: int = 0
    settled: int = 0


@attrs.define
class BrokerCounters:
    """The embedded broker's clients and messages."""

    connections: int = 0  # taken, since the start
    refused_connections: int = 0  # too many, or a CONNECT that was not accepted
    protocol_errors: int = 0
    timeouts: int = 0  # no CONNECT in time, or nothing for one and a half keepalives
    pump_errors: int = 0
    published_in: int = 0  # from clients
    refused_publishes: int = 0  # from clients that may not
    delivered: int = 0
    dropped: int = 0  # because a client was slow or away too long
    not_retained: int = 0  # for want of room
    ended_sessions: int = 0  # of clients that were away, for want of room


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
