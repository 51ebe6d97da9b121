"""The limit of one device's messages, with a clock of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgw.gateway.rate import LONGEST_WAIT, DeviceRates, OverRate


class _Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _taken(rates: DeviceRates, iccid: str, messages: int) -> int:
    taken = 0
    for _ in range(messages):
        try:
            rates.take(iccid)
        except OverRate:
            continue
        taken += 1
    return taken


@pytest.mark.parametrize(
    ("rate", "burst", "at_once"), [(5, 0, 5), (5, 3, 8), (1, 0, 1), (0.1, 0, 1), (0.1, 4, 5), (2.5, 0, 2)]
)
def test_a_second_s_messages_and_the_burst_may_come_at_once(rate: float, burst: int, at_once: int) -> None:
    rates = DeviceRates(rate, burst, _Time())
    assert _taken(rates, "a", 50) == at_once
    assert _taken(rates, "b", 50) == at_once


def test_the_wait_it_names_is_enough_and_a_refused_message_does_not_lengthen_it() -> None:
    time = _Time()
    rates = DeviceRates(0.1, 0, time)
    rates.take("a")
    for _ in range(3):
        with pytest.raises(OverRate) as refused:
            rates.take("a")
        assert refused.value.retry_seconds == 10
    time.now += 9.5
    with pytest.raises(OverRate) as refused:
        rates.take("a")
    assert refused.value.retry_seconds == 1
    time.now += 0.5
    rates.take("a")


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e300, 1.7e308])
def test_absurd_rates_make_no_absurd_answers(rate: float) -> None:
    rates = DeviceRates(rate, 0, _Time())
    rates.take("a")
    if rate < 1:
        with pytest.raises(OverRate) as refused:
            rates.take("a")
        assert refused.value.retry_seconds == LONGEST_WAIT
    else:
        assert _taken(rates, "a", 50) == 50


def test_devices_with_full_buckets_are_forgotten() -> None:
    time = _Time()
    rates = DeviceRates(1, 0, time)
    for number in range(1000):
        rates.take(str(number))
    assert len(rates) == 1000
    time.now += 2
    for number in range(1000, 2000):
        rates.take(str(number))
    assert len(rates) == 1000


def test_no_more_devices_are_kept_than_the_limit() -> None:
    rates = DeviceRates(0.001, 0, _Time(), known_limit=10)
    for number in range(1000):
        rates.take(str(number))
    assert len(rates) == 10
    assert _taken(rates, "999", 1) == 0


@given(
    rate=st.floats(0.1, 50),
    burst=st.integers(0, 20),
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_never_more_than_the_bucket_and_the_rate_over_any_time(rate: float, burst: int, gaps: list[float]) -> None:
    time = _Time()
    rates = DeviceRates(rate, burst, time)
    taken = 0
    for gap in gaps:
        time.now += gap
        taken += _taken(rates, "a", 1)
        assert taken <= max(1, rate) + burst + rate * (time.now - 1000.0) + 0.01
