"""What is measured: one record for one run, one contestant, one benchmark."""

from __future__ import annotations

import json
import math
from typing import Self

import attrs


@attrs.frozen
class Plan:
    """What to measure and how: cores by number, times in seconds, payload in bytes."""

    server_core: int
    load_core: int
    devices: int
    window: int
    payload: int
    seconds: float
    warm_up: float
    repeat: int


@attrs.frozen
class Run:
    """The part of coapload's figures that is looked at; bench/load/README.md explains them."""

    sent: int
    ok: int
    req_per_s: float
    p50_us: float
    p99_us: float
    max_us: float
    lost: int
    unanswered: int
    retransmits: int
    overruns: int
    mid_wraps: int
    codes: dict[str, int]
    client_busy_pct: float
    server_cpu_pct: float
    per_cpu_second: float
    server_rss_kib: float

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Take them out of one line of coapload's output."""
        figures = json.loads(text)
        return cls(**{field.name: figures[field.name] for field in attrs.fields(cls)})

    def troubles(self) -> list[str]:
        """Return what makes this run worth less than it says."""
        counts = {
            "retransmitted": self.retransmits,
            "lost": self.lost,
            "unanswered": self.unanswered,
            "not sent for want of a slot": self.overruns,
            "with another code than 2.04": self.ok - self.codes.get("2.04", 0),
        }
        return [f"{count:,} {what}" for what, count in counts.items() if count]


@attrs.frozen
class Delivery:
    """What the subscriber got of what one gateway acknowledged, all its runs together.

    Args:
        sent: requests sent; those in flight when a run ended may have been stored without an answer that was seen.
        acknowledged: requests answered with 2.04.
        delivered: different messages that the subscriber got.
        repeats: messages it got again.
        behind_seconds: how long after the end of the full load it had everything.
        per_cpu_second: acknowledged under full load per CPU second of the gateway until all of it was delivered.
    """

    sent: int
    acknowledged: int
    delivered: int
    repeats: int
    behind_seconds: float
    per_cpu_second: float


@attrs.define
class Measured:
    """Everything that was measured of one contestant: at full load, at half of it, in slices of one long run."""

    full: list[Run] = attrs.field(factory=list)
    half: list[Run] = attrs.field(factory=list)
    slices: list[Run] = attrs.field(factory=list)
    deliveries: list[Delivery] = attrs.field(factory=list)


@attrs.define
class Surroundings:
    """How the machine did meanwhile: seconds for a fixed loop, seconds for 4 KiB to be on disk, before every run.

    No run began before the loop took *quiet* seconds or less, or a minute was over.
    """

    loops: list[float] = attrs.field(factory=list)
    syncs: list[float] = attrs.field(factory=list)
    filesystem: str = "unknown"
    quiet: float = math.inf
