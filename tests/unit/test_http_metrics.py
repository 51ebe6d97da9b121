"""The page for Prometheus: every counter, added up, with a meaning that docs/operations.md has too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coapgw import metrics
from coapgw.http.metrics_page import MEANINGS, CounterGroup, Gauge, Labelled, MetricsPage
from coapgw.metrics import (
    AmqttCounters,
    BlockwiseCounters,
    BootstrapCounters,
    BridgeCounters,
    BrokerCounters,
    DtlsCounters,
    Histogram,
    HttpCounters,
    MessagingCounters,
    SocketCounters,
    SourceCounters,
    SpoolCounters,
    UplinkCounters,
)

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
KINDS: list[tuple[str, Any]] = [
    ("coap", MessagingCounters),
    ("blockwise", BlockwiseCounters),
    ("source", SourceCounters),
    ("udp", SocketCounters),
    ("dtls", DtlsCounters),
    ("bootstrap", BootstrapCounters),
    ("uplink", UplinkCounters),
    ("spool", SpoolCounters),
    ("mqtt", BrokerCounters),
    ("mqtt", AmqttCounters),
    ("bridge", BridgeCounters),
    ("http", HttpCounters),
]
GAUGES = (
    "ready",
    "dtls_associations",
    "dtls_associations_with_cid",
    "dtls_half_open",
    "observations",
    "devices",
    "spool_fill_ratio",
    "mqtt_clients",
    "mqtt_sessions",
    "mqtt_owed",
    "spool_messages",
    "spool_bytes",
    "publisher_oldest_seconds",
    "bridge_connected",
    "bridge_since_seconds",
    "bridge_in_flight",
)


HISTOGRAMS = ("uplink_stored_seconds", "spool_commit_seconds", "publisher_delay_seconds")


def samples(page: bytes) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name.startswith("coapgw")
    }


def test_counters_are_added_up_when_somebody_asks() -> None:
    sockets = [SocketCounters(send_blocked=1), SocketCounters(send_blocked=2)]
    page = MetricsPage([CounterGroup("udp", lambda: sockets)], [Gauge("devices", lambda: 7)])
    assert samples(page())["coapgw_udp_send_blocked_total"] == 3
    sockets[0].send_blocked += 10
    shown = samples(page())
    assert shown["coapgw_udp_send_blocked_total"] == 13
    assert shown["coapgw_devices"] == 7
    assert shown["coapgw_info"] == 1


def test_histogram_is_shown_with_its_buckets() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds, times in ((0.05, 2), (0.1, 1), (0.5, 3), (7.0, 1)):
        histogram.observe(seconds, times)
    (family,) = text_string_to_metric_families(
        MetricsPage([], [], {"spool_commit_seconds": histogram})().decode().split("# HELP coapgw_info")[0]
    )
    shown = {(sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value for sample in family.samples}
    expected = {("bucket", "0.1"): 3, ("bucket", "1.0"): 6, ("bucket", "+Inf"): 7, ("count", None): 7}
    assert shown == expected | {("sum", None): pytest.approx(8.7)}


def test_counter_with_a_label_has_a_line_for_each_value() -> None:
    counts = [("/", "2.04", 5), ("/data", "4.01", 1)]
    page = MetricsPage([], [], labelled=[Labelled("coap_answers", ("resource", "code"), lambda: counts)])()
    assert b'coapgw_coap_answers_total{code="2.04",resource="/"} 5.0' in page
    assert b'coapgw_coap_answers_total{code="4.01",resource="/data"} 1.0' in page


def test_process_is_shown_too() -> None:
    assert b"process_resident_memory_bytes" in MetricsPage([], [])()


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_counter_has_a_meaning_and_is_documented(name: str, kind: Any) -> None:
    for field in attrs.fields(kind):
        full = f"{name}_{field.name}"
        assert full in MEANINGS
        assert f"`coapgw_{full}_total`" in PAGE, full


def test_every_set_of_counters_is_on_the_page() -> None:
    """Whoever adds one is told to show it."""
    every = {kind for kind in vars(metrics).values() if attrs.has(kind) and kind.__module__ == metrics.__name__}
    assert every == {kind for _, kind in KINDS}


def test_nothing_else_has_a_meaning_or_is_documented() -> None:
    counters = {f"{name}_{field.name}" for name, kind in KINDS for field in attrs.fields(kind)}
    assert MEANINGS.keys() == counters | {*GAUGES, *HISTOGRAMS, "coap_answers", "coap_malformed", "info"}
    documented = {word.removesuffix("_total") for word in re.findall(r"`coapgw_([a-z_]+)`", PAGE)}
    assert documented == MEANINGS.keys()


def test_dashboard_shows_what_there_is() -> None:
    dashboard = json.loads((Path(__file__).parents[2] / "etc" / "grafana" / "coapgw.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for name in re.findall(r"coapgw_([a-z0-9_]+)", " ".join(expressions)):
        assert name.removesuffix("_total").removesuffix("_bucket") in MEANINGS, name
        assert name.endswith(("_total", "_bucket")) or name in GAUGES, name
