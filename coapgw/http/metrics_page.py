"""What Prometheus reads: every counter there is, looked at when somebody asks and not before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import attrs
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from coapgw import __version__
from coapgw.metrics import Histogram

PREFIX: Final = "coapgw"

MEANINGS: Final[Mapping[str, str]] = {
    "coap_received": "Datagrams that arrived for CoAP",
    "coap_sent": "Datagrams that the CoAP layer sent",
    "coap_malformed": "Datagrams that are no CoAP, by the part that is wrong",
    "coap_duplicates": "Messages that were repeated and answered once",
    "coap_requests": "CoAP requests",
    "coap_pings": "Empty CONs, answered by RST",
    "coap_answers": "CoAP requests that were answered, by resource and code of the answer; repeats are not counted",
    "coap_bad_options": "Messages with a critical option that is not known",
    "coap_resets_received": "RSTs that arrived",
    "coap_dropped_of_strangers": "Datagrams of hosts that are no devices, dropped because there were too many of them",
    "coap_dropped_over_rate": "Datagrams of devices dropped, because they went on after a hundred 4.29 in a second",
    "coap_unmatched": "ACKs, RSTs and responses that belong to nothing",
    "coap_retransmissions": "Own confirmables sent again",
    "coap_given_up": "Own confirmables nobody acknowledged",
    "coap_separate": "Requests that got an empty ACK first",
    "coap_evicted_exchanges": "Exchanges forgotten before their time, for want of room",
    "coap_evicted_endpoints": "Endpoints forgotten before their time, for want of room",
    "coap_refused_busy": "Requests dropped, because too many of their endpoint were pending",
    "coap_failed_requests": "Requests that a resource failed at",
    "coap_challenges": "Answers that ask a device to come again with the Echo option",
    "coap_shortened": "Answers whose payload was left out, too large for an address that is not proven",
    "coap_observations_begun": "Observations begun",
    "coap_observations_refused": "Requests to observe answered once, for want of room",
    "coap_observers_lost": "Observations ended by an RST, or because nobody acknowledged",
    "coap_notifications": "Notifications sent, repetitions left out",
    "blockwise_uploads": "Bodies of requests put together from blocks",
    "blockwise_answers": "Blocks of large answers",
    "blockwise_incomplete": "Blocks that nothing came before, or not everything",
    "blockwise_too_large": "Bodies in blocks that were too large, or would have been",
    "blockwise_expired": "Unfinished bodies whose next block did not come in time",
    "blockwise_dropped": "Unfinished bodies that went for want of room",
    "source_over_rate": "Requests over limits.network_rate",
    "udp_received_bytes": "Bytes of datagrams that arrived, without IP and UDP headers",
    "udp_sent_bytes": "Bytes of datagrams that were sent, without IP and UDP headers",
    "udp_kernel_drops": "Datagrams the kernel dropped, because the receive buffer was full",
    "udp_send_blocked": "Times the send buffer of a UDP socket was full",
    "udp_send_failed": "Datagrams the system did not send",
    "udp_receive_failed": "Errors reported by the system while reading",
    "udp_pump_errors": "Errors of the gateway's own while reading datagrams",
    "dtls_hellos": "ClientHellos that arrived",
    "dtls_malformed": "Datagrams on a DTLS socket that are no DTLS 1.2, and ClientHellos that are none",
    "dtls_cookies": "HelloVerifyRequests sent",
    "dtls_handshakes": "Handshakes begun: with a valid cookie, and within the limits",
    "dtls_established": "Handshakes that became associations",
    "dtls_failed": "Handshakes that failed",
    "dtls_unproven": "Handshakes that failed because the peer did not know a key (part of the above)",
    "dtls_timeouts": "Handshakes not finished in time; so end most with a wrong key or an unknown identity",
    "dtls_displaced": "Handshakes that made room for others, or for another attempt of the same peer",
    "dtls_refused_rate": "ClientHellos beyond coaps.handshakes_per_second",
    "dtls_refused_full": "ClientHellos beyond coaps.max_handshakes, or beyond one network's part of it",
    "dtls_repeated_flights": "Last flights repeated for clients that lost them",
    "dtls_received": "Authentic records with application data",
    "dtls_refused": "Records dropped: not authentic, or seen before",
    "dtls_forged": "Of the records dropped: not authentic (AEAD suites)",
    "dtls_replayed": "Of the records dropped: seen before, or too old to tell (AEAD suites)",
    "dtls_with_cid": "Records found by their Connection ID, authentic",
    "dtls_unknown_cid": "Records dropped, because no association has their Connection ID",
    "dtls_moved": "Changes of an association's address",
    "dtls_withheld": "Answers not sent, because a new address may get three times what came from it",
    "dtls_unsealed": "Answers that could not be sealed",
    "dtls_closed": "Associations the peer ended",
    "dtls_superseded": "Associations ended because their device made a newer one",
    "dtls_evicted": "Associations ended for want of room",
    "dtls_idle": "Associations ended because they were idle for too long",
    "dtls_revoked": "Associations ended because their device or its key changed",
    "dtls_worn": "Associations ended because their keys had done enough",
    "dtls_restored": "Associations that went on after a planned restart",
    "bootstrap_answered": "Bootstrap calls answered with a key",
    "bootstrap_unauthorised": "Bootstrap calls of no registered, active device, or without accepted terms",
    "bootstrap_from_elsewhere": "Bootstrap calls from a network that may not",
    "bootstrap_over_rate": "Bootstrap calls of devices that call all the time",
    "bootstrap_refused_busy": "Bootstrap calls refused because too many waited",
    "bootstrap_failed": "Bootstrap calls that failed, because no key could be stored or no URL is known",
    "uplink_accepted": "Messages of devices that were taken",
    "uplink_unauthorised": "Messages of no registered, active device",
    "uplink_topic_refused": "Messages with a topic that is none",
    "uplink_too_large": "Messages over uplink.max_payload",
    "uplink_over_rate": "Messages over limits.device_rate",
    "uplink_not_stored": "Messages refused, because the spool was full or failing",
    "uplink_introduced": "Devices heard for the first time",
    "uplink_translated": "Payloads a template turned into JSON",
    "uplink_untranslatable": "Payloads that did not fit the template, published as ERROR events",
    "spool_commits": "Transactions of the spool",
    "spool_committed": "Messages brought to disk",
    "spool_failed_commits": "Transactions the disk refused",
    "spool_failed_reads": "Reads the disk refused",
    "spool_replaced": "Times the file was damaged, and another one took its place",
    "spool_settled": "Messages deleted, because every subscriber has them",
    "mqtt_connections": "MQTT clients that connected",
    "mqtt_refused_connections": "MQTT clients refused: too many, or a CONNECT that was not accepted",
    "mqtt_protocol_errors": "MQTT clients disconnected, because they broke the protocol",
    "mqtt_timeouts": "MQTT clients disconnected, because they were silent",
    "mqtt_pump_errors": "Errors of the gateway's own while serving MQTT",
    "mqtt_packets_in": "MQTT packets from clients",
    "mqtt_packets_out": "MQTT packets to clients",
    "mqtt_bytes_in": "Bytes of MQTT from clients",
    "mqtt_bytes_out": "Bytes of MQTT to clients",
    "mqtt_published_in": "Messages MQTT clients published",
    "mqtt_refused_publishes": "Messages MQTT clients published that they may not",
    "mqtt_delivered": "Messages handed to MQTT clients",
    "mqtt_dropped": "Messages not handed to an MQTT client that was slow or away too long",
    "mqtt_not_retained": "Messages not retained, for want of room",
    "mqtt_ended_sessions": "Sessions of absent MQTT clients ended, for want of room",
    "mqtt_replaced": "Times the file of sessions was damaged, and another one took its place",
    "mqtt_complaints": "Warnings and errors that aMQTT logged",
    "mqtt_unacknowledged": "Messages aMQTT sent and a client did not acknowledge in time; they are sent again",
    "mqtt_withheld": "Retained messages that aMQTT would have sent to clients that had not asked for them",
    "mqtt_owed": "Messages of devices that clients of aMQTT have not acknowledged yet, each as often as it is owed",
    "bridge_connections": "Connections that the other broker accepted",
    "bridge_failed_attempts": "Connections to the other broker that did not come about, or that it refused",
    "bridge_published": "Messages sent to the other broker for the first time",
    "bridge_repeated": "Messages sent to the other broker again, on a later connection or after a refusal",
    "bridge_acknowledged": "Messages the other broker acknowledged",
    "bridge_refused": "Messages the other broker refused, finally or not",
    "bridge_set_aside": "Messages given up and kept as dead letters",
    "bridge_pump_errors": "Errors of the gateway's own while serving the bridge",
    "bridge_connected": "1 if the other broker has accepted the bridge, else 0",
    "bridge_since_seconds": "Since when that is so, in seconds since the epoch",
    "bridge_in_flight": "Messages the other broker has not acknowledged yet",
    "http_connections": "Connections to the management API",
    "http_evicted_connections": "Connections ended for newer ones, for want of room",
    "http_requests": "Requests the management API answered",
    "http_unauthorised": "Requests without the token",
    "http_refused": "Requests refused as the client's mistake, 401 left out",
    "http_failed": "Requests that failed, or came when the gateway was too busy or not ready",
    "http_malformed": "What came and is no HTTP",
    "http_timeouts": "Connections ended, because they were idle or a request did not arrive in time",
    "http_pump_errors": "Errors of the gateway's own while reading and answering requests",
    "uplink_stored_seconds": "From receiving a message to having it on disk, which is when its 2.04 leaves",
    "spool_commit_seconds": "One transaction of the spool",
    "publisher_delay_seconds": "From receiving a message to handing it to the broker; one message a turn is looked at",
    "spool_messages": "Messages on disk that have not left the spool yet",
    "spool_bytes": "Bytes of them",
    "publisher_oldest_seconds": "Age of the message that is handed to the broker next; 0 if none waits",
    "dtls_associations": "Established DTLS associations",
    "dtls_associations_with_cid": "Of these: found by a Connection ID",
    "dtls_half_open": "Handshakes under way",
    "observations": "Observations of resources, by all clients",
    "devices": "Registered devices, whatever their status",
    "mqtt_clients": "MQTT clients that are connected",
    "spool_fill_ratio": "How full the spool is, 0 to 1",
    "mqtt_sessions": "MQTT sessions, connected or not",
    "ready": "1 if the gateway takes messages, else 0",
    "info": "Always 1; the label says which version runs",
}
"""Of each metric by its name, without prefix and suffix."""


class CounterGroup(NamedTuple):
    """Counters of one room: *read* returns every set of them there is, which are added up."""

    name: str
    read: Callable[[], Iterable[Any]]


class Gauge(NamedTuple):
    """A figure that goes up and down."""

    name: str
    read: Callable[[], float]


class Labelled(NamedTuple):
    """Counters with labels: *read* returns their values and, behind these, the count."""

    name: str
    labels: tuple[str, ...]
    read: Callable[[], Iterable[tuple[*tuple[str, ...], int]]]


class MetricsPage:
    """Writes the page; calling it costs a millisecond and the message path nothing."""

    def __init__(
        self,
        groups: Sequence[CounterGroup],
        gauges: Sequence[Gauge],
        histograms: Mapping[str, Histogram] | None = None,
        labelled: Sequence[Labelled] = (),
    ) -> None:
        """Show these, and what the system knows of the process (memory, CPU, open files)."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Counters(groups, gauges, histograms or {}, labelled))
        ProcessCollector(registry=self._registry)

    def __call__(self) -> bytes:
        """Return the page in the text format, version 0.0.4."""
        return generate_latest(self._registry)


class _Counters(Collector):
    """Makes metrics of attributes."""

    def __init__(
        self,
        groups: Sequence[CounterGroup],
        gauges: Sequence[Gauge],
        histograms: Mapping[str, Histogram],
        labelled: Sequence[Labelled],
    ) -> None:
        self._labelled = labelled
        self._groups = groups
        self._gauges = gauges
        self._histograms = histograms

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its value now."""
        for group in self._groups:
            yield from _summed(group)
        for gauge in self._gauges:
            yield GaugeMetricFamily(f"{PREFIX}_{gauge.name}", MEANINGS[gauge.name], value=gauge.read())
        for name, histogram in self._histograms.items():
            bounds = [*map(str, histogram.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            yield HistogramMetricFamily(f"{PREFIX}_{name}", MEANINGS[name], buckets=buckets, sum_value=histogram.sum)
        for counter in self._labelled:
            family = CounterMetricFamily(f"{PREFIX}_{counter.name}", MEANINGS[counter.name], labels=counter.labels)
            for *values, count in counter.read():
                family.add_metric(values, count)
            yield family
        info = GaugeMetricFamily(f"{PREFIX}_info", MEANINGS["info"], labels=["version"])
        info.add_metric([__version__], 1)
        yield info


def _summed(group: CounterGroup) -> Iterator[Metric]:
    """Yield the sum of each attribute over the sets of counters of *group*."""
    sums: dict[str, float] = {}
    for counters in group.read():
        for field in attrs.fields(type(counters)):
            sums[field.name] = sums.get(field.name, 0) + getattr(counters, field.name)
    for name, value in sums.items():
        full = f"{group.name}_{name}"
        yield CounterMetricFamily(f"{PREFIX}_{full}", MEANINGS.get(full, name.replace("_", " ")), value=value)
