"""Associations: what opens and what does not, in both directions and against OpenSSL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from coapgw.dtls.association import (
    FLIGHT_REPEATS,
    WINDOW_BITS,
    AeadAssociation,
    AssociationState,
    CipherCache,
    Refusal,
)
from coapgw.dtls.errors import DtlsError, PlaintextTooLarge, SequenceExhausted
from coapgw.dtls.records import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    HEADER,
    LAST_SEQUENCE,
    PLAINTEXT_LIMIT,
    epoch_of,
    sequence_of,
    split,
)
from coapgw.dtls.suites import SUITES, AeadSuite, KeyBlock, suite_of
from tests.unit.openssl_pair import flight_of, handshake

NAMES = [suite.name for suite in SUITES]
each_suite = pytest.mark.parametrize("suite", SUITES, ids=NAMES)
CCM8 = next(suite for suite in SUITES if suite.name == "PSK-AES128-CCM8")


def peers(suite: AeadSuite = CCM8, cache: CipherCache | None = None) -> tuple[AeadAssociation, AeadAssociation]:
    """A server's and a client's association with the same keys."""
    keys = KeyBlock(bytes(range(suite.block_bytes)))
    ciphers = cache or CipherCache(8)
    server, client = (
        AeadAssociation(("192.0.2.1", 5), "8988280666000000017", 7, suite, keys, 1, ciphers, role)
        for role in (False, True)
    )
    return server, client


def sealed(client: AeadAssociation, sequence: int, plaintext: bytes = b"data") -> bytes:
    """Return the record that *client* would seal if the numbers before *sequence* had been left out."""
    state = client.state()._replace(write_sequence=sequence, skipped=sequence)
    return AeadAssociation.resume(None, "", 0, state, CipherCache(1)).seal(APPLICATION_DATA, plaintext)


def without_failures(association: AeadAssociation) -> AssociationState:
    return association.state()._replace(failures=0)


# Against OpenSSL.


@each_suite
def test_openssl_client_is_understood_and_understands(suite: AeadSuite) -> None:
    pair = handshake(suite.name)
    server = pair.association(suite)
    for size in (0, 1, 15, 16, 17, 80, 1000):
        up, down = bytes([size & 0xFF]) * size, bytes([255 - size & 0xFF]) * size
        if size:  # OpenSSL sends no empty records
            pair.client.send(up)
            (record,) = flight_of(pair.client)
            assert record[0] == APPLICATION_DATA
            assert server.open(record) == up
            assert server.open(record) is None
        pair.client.bio_write(server.seal(APPLICATION_DATA, down))
        if size:
            assert pair.client.recv(4096) == down


@each_suite
def test_openssl_server_is_understood_and_understands(suite: AeadSuite) -> None:
    pair = handshake(suite.name)
    client = pair.association(suite, client=True)
    for message in (b"x", b"y" * 80, b"z" * 1000):
        pair.server.send(message)
        (record,) = flight_of(pair.server)
        assert client.open(record) == message
        pair.server.bio_write(client.seal(APPLICATION_DATA, message))
        assert pair.server.recv(4096) == message


@each_suite
def test_close_notify_goes_both_ways(suite: AeadSuite) -> None:
    pair = handshake(suite.name)
    server = pair.association(suite)
    pair.client.shutdown()
    (record,) = flight_of(pair.client)
    assert (record[0], server.open(record)) == (ALERT, b"\1\0")
    pair = handshake(suite.name)
    pair.client.bio_write(pair.association(suite).seal(ALERT, b"\1\0"))
    with pytest.raises(SSL.ZeroReturnError):
        pair.client.recv(4096)


@each_suite
def test_openssl_drops_what_was_sealed_once_and_comes_twice(suite: AeadSuite) -> None:
    pair = handshake(suite.name)
    record = pair.association(suite).seal(APPLICATION_DATA, b"once")
    pair.client.bio_write(record)
    assert pair.client.recv(4096) == b"once"
    pair.client.bio_write(record)
    with pytest.raises(SSL.WantReadError):
        pair.client.recv(4096)


@each_suite
def test_repeated_flight_completes_a_handshake_whose_first_was_lost(suite: AeadSuite) -> None:
    pair = handshake(suite.name, client_sees_last_flight=False)
    server = pair.association(suite)
    server.keep_sent_flight(pair.last_flight)
    flight = server.repeat_flight()
    assert flight is not None
    change, finished = flight
    assert (change[0], epoch_of(change), finished[0], epoch_of(finished)) == (CHANGE_CIPHER_SPEC, 0, HANDSHAKE, 1)
    assert sequence_of(change) == sequence_of(pair.last_flight[-2]) + 1
    assert sequence_of(finished) == 1
    assert split(change + finished) == [change, finished]
    for record in flight:
        pair.client.bio_write(record)
        try:
            pair.client.do_handshake()
        except SSL.WantReadError:
            assert record is change
    pair.client.send(b"at last")
    assert server.open(flight_of(pair.client)[-1]) == b"at last"
    assert server.repeat_flight() is None


def test_repeated_finished_of_openssl_opens_as_a_handshake_record() -> None:
    pair = handshake(CCM8.name, client_sees_last_flight=False)
    server = pair.association(CCM8)
    server.keep_sent_flight(pair.last_flight)
    finished = pair.association(CCM8, client=True).seal(HANDSHAKE, b"\x14" + bytes(23))
    plaintext = server.open(finished)
    assert plaintext is not None
    assert (finished[0], plaintext[0]) == (HANDSHAKE, 20)
    assert server.repeat_flight() is not None


# What opens.


@each_suite
def test_every_flipped_bit_is_noticed(suite: AeadSuite) -> None:
    server, client = peers(suite)
    record = sealed(client, 9)
    before = without_failures(server)
    for at in range(len(record)):
        for bit in (1, 0x80):
            flipped = bytearray(record)
            flipped[at] ^= bit
            assert server.open(bytes(flipped)) is None
            assert without_failures(server) == before
    assert server.failures > 0
    assert server.open(record) == b"data"


@each_suite
def test_truncated_or_lengthened_records_are_noticed(suite: AeadSuite) -> None:
    server, client = peers(suite)
    record = sealed(client, 9)
    before = without_failures(server)
    for size in range(len(record)):
        assert server.open(record[:size]) is None
        if size >= 13:
            assert server.open(record[:11] + (size - 13).to_bytes(2, "big") + record[13:size]) is None
    assert server.open(record + b"\0") is None
    assert without_failures(server) == before
    assert server.open(record) == b"data"


def test_any_bytes_are_none() -> None:
    server, _ = peers()
    before = without_failures(server)

    @given(st.binary(max_size=100), st.booleans())
    def holds(rubbish: bytes, plausible: bool) -> None:
        if plausible:
            rubbish = HEADER.pack(APPLICATION_DATA, 0xFEFD, 1 << 48 | 5, len(rubbish)) + rubbish
        assert server.open(rubbish) is None
        assert isinstance(server.refusal(rubbish), Refusal)
        assert without_failures(server) == before

    holds()


def test_own_records_sent_back_are_not_taken() -> None:
    server, _ = peers()
    record = server.seal(APPLICATION_DATA, b"down")
    assert server.open(record) is None


def test_records_of_other_epochs_and_versions_are_not_taken() -> None:
    server, client = peers()
    record = sealed(client, 3)
    for odd in (
        record[:3] + b"\0\0" + record[5:],
        record[:3] + b"\0\2" + record[5:],
        record[:3] + b"\xff\xff" + record[5:],
        record[:1] + b"\xfe\xff" + record[3:],
        record[:1] + b"\3\3" + record[3:],
    ):
        assert server.open(odd) is None
        assert server.refusal(odd) is Refusal.MALFORMED
    assert server.failures == 0


def test_every_content_type_opens() -> None:
    server, client = peers()
    for content_type in (CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, 99):
        assert server.open(client.seal(content_type, b"!")) == b"!"


@each_suite
def test_sizes_up_to_the_limit_open(suite: AeadSuite) -> None:
    server, client = peers(suite)
    for size in (0, 1, 255, 256, PLAINTEXT_LIMIT):
        plaintext = bytes(size)
        assert server.open(client.seal(APPLICATION_DATA, plaintext)) == plaintext
    with pytest.raises(PlaintextTooLarge) as refused:
        client.seal(APPLICATION_DATA, bytes(PLAINTEXT_LIMIT + 1))
    assert refused.value.size == PLAINTEXT_LIMIT + 1
    assert isinstance(refused.value, DtlsError)


def test_explicit_nonce_is_the_senders_choice() -> None:
    """RFC 5288 section 3 leaves it to the sender, so long as it never repeats."""
    server, client = peers()
    nonce = b"anything"
    additional = bytes.fromhex("0001000000000005 17 fefd 0002")
    keys = client.state().keys
    body = nonce + CCM8.aead(keys[:16]).encrypt(keys[32:36] + nonce, b"hi", additional)
    record = HEADER.pack(APPLICATION_DATA, 0xFEFD, 1 << 48 | 5, len(body)) + body
    assert server.open(record) == b"hi"


# The window.


def test_finished_cannot_be_replayed() -> None:
    server, client = peers()
    record = sealed(client, 0)
    assert server.open(record) is None
    assert server.refusal(record) is Refusal.REPLAYED


def test_reordered_within_the_window_each_opens_once() -> None:
    server, client = peers()
    records = {sequence: sealed(client, sequence) for sequence in range(1, 201)}
    assert server.open(records[100]) == b"data"
    oldest = 100 - WINDOW_BITS + 1
    for sequence in [*range(99, oldest - 1, -1), 101, 150, 120]:
        assert server.open(records[sequence]) == b"data", sequence
    for sequence in (oldest, 50, 99, 100, 101, 120, 150, 150 - WINDOW_BITS, 1):
        assert server.open(records[sequence]) is None, sequence
        assert server.refusal(records[sequence]) is Refusal.REPLAYED
    assert server.open(records[106]) == b"data"  # nobody has seen that one
    assert server.failures == 0


@given(st.lists(st.integers(1, 300), max_size=80))
def test_window_is_that_of_the_rfc(arriving: list[int]) -> None:
    server, client = peers()
    seen, newest = {0}, 0
    for sequence in arriving:
        opens = sequence not in seen and sequence > newest - WINDOW_BITS
        record = sealed(client, sequence)
        assert (server.open(record) is not None) == opens
        if opens:
            assert server.is_newest(record) == (sequence > newest)
            seen.add(sequence)
            newest = max(newest, sequence)


def test_far_jump_leaves_an_empty_window() -> None:
    server, client = peers()
    for sequence in (1, 1 + WINDOW_BITS, 2**40, LAST_SEQUENCE):
        record = sealed(client, sequence)
        assert server.open(record) == b"data"
        assert server.open(record) is None
        before = sealed(client, sequence - 1)
        assert (server.open(before) is not None) == (sequence > 1)
        assert server.is_newest(record)


def test_forged_records_do_not_move_the_window() -> None:
    server, client = peers()
    genuine = sealed(client, 5)
    record = sealed(client, 2**47)
    forged = record[:-1] + bytes((record[-1] ^ 1,))
    assert server.open(forged) is None
    assert server.refusal(forged) is Refusal.FORGED
    assert server.failures == 1
    assert server.open(genuine) == b"data"
    assert server.is_newest(genuine)


# Sealing.


def test_sequence_numbers_go_up_by_one_until_there_are_none() -> None:
    _, client = peers()
    assert [sequence_of(client.seal(ALERT, b"")) for _ in range(3)] == [1, 2, 3]
    client.write_sequence = LAST_SEQUENCE
    last = client.seal(ALERT, b"")
    assert (epoch_of(last), sequence_of(last)) == (1, LAST_SEQUENCE)
    for _ in range(2):
        with pytest.raises(SequenceExhausted):
            client.seal(ALERT, b"")


def test_refused_plaintext_uses_no_number_up() -> None:
    _, client = peers()
    with pytest.raises(PlaintextTooLarge):
        client.seal(ALERT, bytes(PLAINTEXT_LIMIT + 1))
    assert sequence_of(client.seal(ALERT, b"")) == 1


def test_worn_keys_are_told() -> None:
    server, _ = peers()
    assert not server.is_worn()
    server.write_sequence = CCM8.sealed_limit
    assert server.is_worn()
    server.skipped = 1
    assert not server.is_worn()
    server.failures = CCM8.forgery_limit
    assert server.is_worn()


def test_worn_keys_protect_no_more_data_but_a_farewell() -> None:
    _, client = peers()
    state = client.state()._replace(write_sequence=CCM8.sealed_limit + 4, skipped=5)
    worn = AeadAssociation.resume(None, "", 0, state, CipherCache(1))
    worn.seal(APPLICATION_DATA, b"the last")
    with pytest.raises(SequenceExhausted):
        worn.seal(APPLICATION_DATA, b"one more")
    assert worn.is_worn()
    assert worn.seal(ALERT, b"\1\0")


# The last flight.


def test_flight_is_repeated_a_few_times_with_new_numbers() -> None:
    server, client = peers()
    server.keep_flight(4, b"finished")
    places = set()
    for repeat in range(FLIGHT_REPEATS):
        flight = server.repeat_flight()
        assert flight is not None
        change, finished = flight
        assert change == bytes.fromhex("14 fefd 0000 0000000000") + bytes([4 + repeat]) + b"\0\1\1"
        assert client.open(finished) == b"finished"
        places.add(sequence_of(finished))
    assert len(places) == FLIGHT_REPEATS
    assert server.repeat_flight() is None


def test_flight_is_kept_until_authentic_application_data() -> None:
    server, client = peers()
    assert server.repeat_flight() is None
    server.keep_flight(1, b"finished")
    data = client.seal(APPLICATION_DATA, b"data")
    server.open(data[:-1] + bytes([data[-1] ^ 1]))
    server.open(client.seal(HANDSHAKE, b"finished again"))
    server.open(client.seal(ALERT, b"\1\x5a"))
    assert server.repeat_flight() is not None
    server.open(data)
    assert server.repeat_flight() is None


@pytest.mark.parametrize("records", [[], [b"\x14" + bytes(13)], [b"\x16\xfe\xfd\0\1" + bytes(40)]])
def test_what_is_no_last_flight_is_not_kept(records: list[bytes]) -> None:
    server, _ = peers()
    server.keep_sent_flight(records)
    assert server.repeat_flight() is None


# Memory.


def test_only_so_many_keep_their_ciphers() -> None:
    cache = CipherCache(2)
    pairs = [peers(cache=cache) for _ in range(3)]
    for rounds in range(3):
        for number, (server, client) in enumerate(pairs):
            message = b"%d of %d" % (number, rounds)
            assert server.open(client.seal(APPLICATION_DATA, message)) == message
    ready = {association for pair in pairs for association in pair if association._ciphers is not None}
    assert ready == set(pairs[2])


def test_cache_keeps_one_at_least() -> None:
    server, client = peers(cache=CipherCache(0))
    assert server.open(client.seal(APPLICATION_DATA, b"data")) == b"data"


def test_associations_are_equal_to_themselves_only() -> None:
    server, client = peers()
    assert server != client
    assert len({server, client, server}) == 2
    server.address = ("192.0.2.2", 6)
    assert server in {server}


def test_secrets_are_not_shown() -> None:
    server, client = peers()
    client.seal(ALERT, b"")
    keys = bytes(server.state().keys)
    for thing in (server, client, server.state(), server.suite):
        assert repr(keys)[2:12] not in repr(thing)


def test_suite_of_a_finished_handshake_is_found() -> None:
    assert suite_of(handshake(CCM8.name).server.get_cipher_name() or "") is CCM8
