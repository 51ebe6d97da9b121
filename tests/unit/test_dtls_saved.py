"""Saved associations: everything comes back, or nothing does."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.dtls.association import AeadAssociation, AssociationState, CipherCache
from coapgw.dtls.cid import CidAssociation
from coapgw.dtls.errors import (
    SavedByAnother,
    SavedDamaged,
    SavedRefused,
    SavedTooOld,
    SavedWithAnotherKey,
)
from coapgw.dtls.records import APPLICATION_DATA, LAST_SEQUENCE, sequence_of
from coapgw.dtls.saved import FUTURE_MS, SKIP_BITS, Located, restore, save, save_in_chunks
from coapgw.dtls.suites import SUITES, AeadSuite, KeyBlock
from tests.unit.openssl_pair import flight_of, handshake

KEY = bytes(range(32))
SAVED_AT = 1_700_000_000_000
CIPHERS = CipherCache(4)

numbers = st.integers(0, LAST_SEQUENCE)
states = st.sampled_from(SUITES).flatmap(
    lambda suite: st.builds(
        AssociationState,
        suite=st.just(suite),
        keys=st.binary(min_size=suite.block_bytes, max_size=suite.block_bytes).map(KeyBlock),
        client=st.booleans(),
        write_sequence=st.integers(0, LAST_SEQUENCE - 2**SKIP_BITS),
        skipped=numbers,
        newest=numbers,
        window=st.integers(0, 2**64 - 1),
        failures=numbers,
        cid=st.just(b"") | st.binary(min_size=1, max_size=20),
        peer_cid=st.binary(max_size=255),
    )
)
addresses = st.lists(st.text(max_size=45) | st.integers(-(2**70), 2**70) | st.binary(max_size=30), max_size=6).map(
    tuple
)
located = st.builds(
    lambda listener, address, serial, state: Located(
        listener,
        (CidAssociation if state.cid else AeadAssociation).resume(
            address, "8988280666000000017", serial, state, CIPHERS
        ),
    ),
    st.text(max_size=20),
    addresses,
    st.integers(-(2**63), 2**80),
    states,
)


@settings(deadline=None)
@given(states)
def test_an_association_goes_on_from_exactly_its_state(state: AssociationState) -> None:
    """What was read, tried and left out counts on: else a restart would let old records in once more."""
    if state.cid:
        assert CidAssociation.resume(None, "", 0, state, CIPHERS).state() == state
    else:
        plain = state._replace(peer_cid=b"")
        assert AeadAssociation.resume(None, "", 0, plain, CIPHERS).state() == plain


class NoSkip:
    """Leaves no sequence number out."""

    def getrandbits(self, k: int, /) -> int:
        return 0


def restored(
    saved: bytes, key: bytes = KEY, now_ms: int = SAVED_AT + 5000, now: float = 105.0, max_age_ms: int = 3_600_000
) -> list[Located]:
    return restore(saved, now_ms, max_age_ms, key, now=now, ciphers=CIPHERS, random=NoSkip())


def some(count: int, address: Hashable = ("192.0.2.1", 5)) -> list[Located]:
    suite = SUITES[0]
    keys = KeyBlock(bytes(suite.block_bytes))
    return [
        Located("coaps-0", AeadAssociation(address, str(10**18 + number), number, suite, keys, number, CIPHERS))
        for number in range(count)
    ]


def shown(one: Located) -> tuple[object, ...]:
    association = one.association
    return one.listener, association.address, association.iccid, association.serial, association.state()


@settings(max_examples=30)
@given(st.lists(located, max_size=3))
def test_everything_comes_back(associations: list[Located]) -> None:
    back = restored(save(associations, 100.0, SAVED_AT, KEY))
    assert list(map(shown, back)) == list(map(shown, associations))


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 2048])
def test_any_number_of_chunks_comes_back_in_order(count: int) -> None:
    associations = some(count)
    saved = save(iter(associations), 100.0, SAVED_AT, KEY)
    assert [one.association.serial for one in restored(saved)] == list(range(count))
    assert b"".join(save_in_chunks(associations, 100.0, SAVED_AT, KEY)) == saved


def test_idle_time_goes_on_meanwhile() -> None:
    associations = some(2)
    associations[0].association.last_heard = 98.5
    associations[1].association.last_heard = 100.0
    saved = save(associations, 100.0, SAVED_AT, KEY)
    back = restored(saved, now=10_000.0)  # another clock, 5 s later
    assert [one.association.last_heard for one in back] == [10_000 - 5 - 1.5, 10_000 - 5]


@pytest.mark.parametrize("suite", SUITES, ids=[suite.name for suite in SUITES])
def test_openssl_client_goes_on_after_a_restart(suite: AeadSuite) -> None:
    pair = handshake(suite.name)
    before = pair.association(suite)
    pair.client.send(b"one")
    (replayed,) = flight_of(pair.client)
    assert before.open(replayed) == b"one"
    used = before.seal(APPLICATION_DATA, b"lost on the way")
    saved = save([Located("a", before)], 0.0, SAVED_AT, KEY)
    back = restore(saved, SAVED_AT, 0, KEY, now=0.0, ciphers=CipherCache(1), random=random.Random(1))[0].association
    assert back.open(replayed) is None
    pair.client.send(b"two")
    assert back.open(flight_of(pair.client)[0]) == b"two"
    answer = back.seal(APPLICATION_DATA, b"three")
    assert sequence_of(answer) > sequence_of(used)
    pair.client.bio_write(answer)
    assert pair.client.recv(100) == b"three"


def test_two_restores_of_one_save_use_different_sequence_numbers() -> None:
    saved = save(some(200), 100.0, SAVED_AT, KEY)
    one, other = (
        restore(saved, SAVED_AT, 0, KEY, now=0.0, ciphers=CIPHERS, random=random.Random(seed)) for seed in (1, 2)
    )
    for first, second in zip(one, other, strict=True):
        assert abs(first.association.write_sequence - second.association.write_sequence) > 1000
        for back in (first, second):
            assert back.association.write_sequence - back.association.skipped == back.association.serial


def test_one_with_too_few_numbers_left_is_left_out() -> None:
    associations = some(3)
    associations[1].association.write_sequence = LAST_SEQUENCE + 1
    back = restored(save(associations, 100.0, SAVED_AT, KEY))
    assert [one.association.serial for one in back] == [0, 2]


def test_flipped_bytes_restore_nothing() -> None:
    saved = save(some(2), 100.0, SAVED_AT, KEY)
    for at in range(len(saved)):
        for bit in (1, 0x80):
            flipped = bytearray(saved)
            flipped[at] ^= bit
            with pytest.raises(SavedRefused):
                restored(bytes(flipped), max_age_ms=2**64)


def test_cut_lengthened_and_moved_chunks_restore_nothing() -> None:
    pieces = list(save_in_chunks(some(2049), 100.0, SAVED_AT, KEY))
    assert len(pieces) == 4
    header, one, two, three = pieces
    saved = b"".join(pieces)
    for wrong in (
        header,
        header + one,
        header + one + two,
        header + two + one + three,
        header + one + three,
        header + three,
        header + one + one + two + three,
        saved + b"\0",
        saved + three,
        saved[:-1],
        saved[: len(header) + 3],
    ):
        with pytest.raises(SavedDamaged):
            restored(wrong)
    for short in (b"", header[:5]):
        with pytest.raises(SavedDamaged):
            restored(short)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_restore_nothing(rubbish: bytes, behind_a_header: bool) -> None:
    header = next(save_in_chunks([], 100.0, SAVED_AT, KEY)) if behind_a_header else b""
    with pytest.raises(SavedRefused):
        restored(header + rubbish)


def test_another_key_restores_nothing() -> None:
    with pytest.raises(SavedWithAnotherKey):
        restored(save(some(1), 100.0, SAVED_AT, KEY), key=bytes(32))


def test_another_version_restores_nothing() -> None:
    saved = save(some(1), 100.0, SAVED_AT, KEY)
    with pytest.raises(SavedByAnother, match=r"version 2"):
        restored(saved[:12] + b"\0\2" + saved[14:])
    with pytest.raises(SavedByAnother, match=r"no saved associations"):
        restored(b"x" * 100)


def test_too_old_and_too_young_restore_nothing() -> None:
    saved = save(some(1), 100.0, SAVED_AT, KEY)
    for now_ms in (SAVED_AT - FUTURE_MS, SAVED_AT, SAVED_AT + 1000):
        (back,) = restored(saved, now_ms=now_ms, max_age_ms=1000, now=100.0)
        assert back.association.last_heard <= 100
    for now_ms in (SAVED_AT + 1001, SAVED_AT - FUTURE_MS - 1):
        with pytest.raises(SavedTooOld):
            restored(saved, now_ms=now_ms, max_age_ms=1000)


def test_keys_cannot_be_found_in_what_was_saved() -> None:
    associations = some(3)
    saved = save(associations, 100.0, SAVED_AT, KEY)
    assert bytes(40) not in saved
    assert b"192.0.2.1" not in saved
    assert KEY[:8] not in saved


@pytest.mark.parametrize("address", ["192.0.2.1", ("192.0.2.1", None), ("192.0.2.1", (1, 2)), 5])
def test_addresses_of_other_kinds_are_a_mistake(address: Hashable) -> None:
    with pytest.raises(TypeError):
        save(some(1, address), 100.0, SAVED_AT, KEY)
