"""Bodies in blocks, RFC 7959: every size, every order, every loss; one body once, and memory that is bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.coap.blockwise import COST_BYTES, BlockwiseLimits, BlockwiseSite
from coapgw.coap.codec import (
    BLOCK1,
    BLOCK2,
    CHANGED,
    CONTENT,
    CONTINUE,
    ETAG,
    GET,
    POST,
    SIZE1,
    SIZE2,
    Options,
    decode_uint,
    encode_body,
    encode_uint,
    parse_options,
)
from coapgw.coap.exchange import Exchange, Handler
from coapgw.coap.messaging import MessageLayer
from tests.unit.coap_wire import DEVICE, OTHER, STRANGER, Peers, datagram, option

PATH, REQUEST_TAG = 11, 292
TOO_LARGE, INCOMPLETE, BAD_REQUEST = 0x8D, 0x88, 0x80


class Inner:
    """A site that remembers whole requests and answers with what it is told."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.answer: tuple[int, bytes] = (CHANGED, b"")
        self.held: list[Exchange] | None = None

    def resolve(self, code: int, options: Options) -> Handler:
        assert not {number for number, _ in options} & {BLOCK1, BLOCK2, SIZE1} or code == GET

        def handle(exchange: Exchange, payload: bytes) -> None:
            if exchange.principal is None:
                exchange.respond(0x81)
                return
            self.bodies.append(payload)
            if self.held is not None:
                self.held.append(exchange)
            else:
                exchange.respond(*self.answer)

        return handle

    def may_be_large(self, options: Options) -> bool:
        return len(self.answer[1]) > 1000


class Rig:
    """A message layer over a block-wise site."""

    def __init__(self, **limits: float) -> None:
        self.now = 1000.0
        self.inner = Inner()
        self.site = BlockwiseSite(self.inner, BlockwiseLimits(**limits))  # type: ignore[arg-type]
        self.layer = MessageLayer(self.site, Peers(DEVICE[0], OTHER[0]), random.Random(1))
        self._message_id = 0

    def send(
        self,
        options: list[tuple[int, bytes]],
        payload: bytes = b"",
        code: int = POST,
        source: tuple[str, int] = DEVICE,
        message_id: int | None = None,
    ) -> tuple[int, dict[int, bytes], bytes] | None:
        """Send a request; return code, options and payload of the answer."""
        if message_id is None:
            self._message_id += 1
            message_id = self._message_id
        encoded, before = b"", 0
        for number, value in sorted(options):
            encoded += option(number - before, value)
            before = number
        self.layer.receive_datagram(datagram(0, code, message_id, b"tk", encoded, payload), source, self.now)
        answers = self.layer.datagrams_to_send(self.now)
        if not answers:
            return None
        answer, _ = answers[-1]
        found, payload_at = parse_options(answer, 4 + (answer[0] & 15))
        return answer[1], dict(found), answer[payload_at:]

    def block(
        self, number: int, more: bool, exponent: int, payload: bytes, *others: tuple[int, bytes], **about: object
    ) -> int:
        """Send a block of a request; return the code of the answer."""
        value = encode_uint(number << 4 | more << 3 | exponent)
        answer = self.send([(BLOCK1, value), *others], payload, **about)  # type: ignore[arg-type]
        assert answer is not None
        if answer[0] in (CONTINUE, CHANGED):
            assert answer[1][BLOCK1] == value
        return answer[0]

    def upload(self, body: bytes, exponent: int, *others: tuple[int, bytes], start: int = 0, **about: object) -> int:
        """Send a body in blocks; return the last code."""
        size = 16 << exponent
        code = 0
        for number in range(start, max(1, -(-len(body) // size))):
            chunk = body[number * size : (number + 1) * size]
            code = self.block(number, (number + 1) * size < len(body), exponent, chunk, *others, **about)
        return code


@pytest.mark.parametrize("exponent", range(7))
@pytest.mark.parametrize("blocks", [0.5, 1, 1.5, 2, 7.3])
def test_a_body_in_blocks_of_any_size_arrives_whole_and_once(exponent: int, blocks: float) -> None:
    rig = Rig()
    body = random.Random(5).randbytes(int((16 << exponent) * blocks))
    assert rig.upload(body, exponent) == CHANGED
    assert rig.inner.bodies == [body]
    assert rig.site.uploads.held_bytes == 0
    assert not any(upload.chunks for upload in rig.site.uploads._uploads.values())


def test_the_reserved_size_is_refused() -> None:
    assert Rig().block(0, False, 7, b"x") == BAD_REQUEST


def test_a_block_that_is_not_whole_is_refused_unless_it_is_the_last() -> None:
    rig = Rig()
    assert rig.block(0, True, 0, b"15 bytes only..") == BAD_REQUEST
    assert rig.block(0, True, 0, b"17 bytes and more") == BAD_REQUEST


def test_blocks_out_of_order_are_4_08_and_repeated_ones_change_nothing() -> None:
    rig = Rig()
    assert rig.block(1, True, 0, bytes(16)) == INCOMPLETE
    assert rig.block(0, True, 0, b"a" * 16) == CONTINUE
    assert rig.block(2, True, 0, b"c" * 16) == INCOMPLETE
    assert rig.block(1, True, 0, b"b" * 16) == CONTINUE
    assert rig.block(1, True, 0, b"b" * 16) == CONTINUE
    assert rig.block(2, False, 0, b"c") == CHANGED
    assert rig.inner.bodies == [b"a" * 16 + b"b" * 16 + b"c"]
    assert rig.site.counters.incomplete == 2


@pytest.mark.parametrize(("number", "exponent"), [(1, 0), (2, 0), (1, 1)])
def test_a_last_block_that_is_before_the_end_of_what_came_ends_no_body(number: int, exponent: int) -> None:
    """A body whose last block says that it is shorter than what is here is not what the client means."""
    rig = Rig()
    for known in range(3):
        assert rig.block(known, True, 0, bytes((known,)) * 16) == CONTINUE
    assert rig.block(number, False, exponent, b"end") == INCOMPLETE
    assert rig.inner.bodies == []
    assert rig.block(3, False, 0, b"end") == CHANGED
    assert [len(body) for body in rig.inner.bodies] == [51]


def test_a_client_may_go_on_with_smaller_blocks() -> None:
    rig = Rig()
    assert rig.block(0, True, 2, b"a" * 64) == CONTINUE
    assert rig.block(4, True, 0, b"b" * 16) == CONTINUE
    assert rig.block(5, False, 0, b"c") == CHANGED
    assert rig.inner.bodies == [b"a" * 64 + b"b" * 16 + b"c"]


def test_the_last_block_again_under_another_message_id_is_answered_and_nothing_else() -> None:
    rig = Rig()
    body = bytes(range(40))
    assert rig.upload(body, 0) == CHANGED
    assert rig.block(2, False, 0, body[32:]) == CHANGED
    assert rig.inner.bodies == [body]
    assert rig.block(2, False, 0, b"another") == INCOMPLETE
    assert rig.upload(body, 0) == CHANGED  # from its beginning it is another message
    assert rig.inner.bodies == [body, body]


def test_a_last_block_that_comes_again_before_the_answer_gets_the_same() -> None:
    rig = Rig()
    rig.inner.held = []
    body = bytes(range(20))
    assert rig.block(0, True, 0, body[:16]) == CONTINUE
    last = [(BLOCK1, b"\x10")]
    assert rig.send(last, body[16:]) is None
    assert rig.send(last, body[16:]) is None
    assert len(rig.inner.held) == 1
    rig.inner.held[0].respond(CHANGED)
    codes = [data[1] for data, _ in rig.layer.datagrams_to_send(rig.now)]
    assert codes == [CHANGED, CHANGED]


def test_what_failed_may_be_sent_again() -> None:
    rig = Rig()
    rig.inner.answer = (0xA3, b"")
    body = bytes(range(40))
    assert rig.upload(body, 0) == 0xA3
    assert rig.block(2, False, 0, body[32:]) == INCOMPLETE
    rig.inner.answer = (CHANGED, b"")
    assert rig.upload(body, 0) == CHANGED


def test_several_uploads_of_an_endpoint_have_request_tags_or_other_options() -> None:
    rig = Rig()
    kinds = [((REQUEST_TAG, b"1"),), ((REQUEST_TAG, b"2"),), ((PATH, b"data"),), ()]
    for kind in kinds:
        assert rig.block(0, True, 0, b"a" * 16, *kind) == CONTINUE
    assert rig.block(0, True, 0, b"z" * 16, source=OTHER) == CONTINUE
    for number, kind in enumerate(kinds):
        assert rig.block(1, False, 0, b"%d" % number, *kind) == CHANGED
    assert rig.inner.bodies == [b"a" * 16 + b"%d" % number for number in range(4)]


def test_a_body_that_is_too_large_is_4_13_as_soon_as_that_is_known() -> None:
    rig = Rig(body_bytes=40)
    answer = rig.send([(BLOCK1, b"\x08"), (SIZE1, b"\x29")], bytes(16))
    assert answer is not None
    assert answer[0] == TOO_LARGE
    assert decode_uint(answer[1][SIZE1]) == 40
    assert rig.upload(bytes(40), 0) == CHANGED
    assert rig.upload(bytes(41), 0) == TOO_LARGE
    assert rig.block(0, True, 0, bytes(16)) == CONTINUE
    assert rig.block(200, True, 0, bytes(16)) == TOO_LARGE
    assert rig.site.uploads.held_bytes == 0


def test_an_unfinished_body_is_forgotten_in_time() -> None:
    rig = Rig(idle_seconds=100)
    assert rig.block(0, True, 0, b"a" * 16) == CONTINUE
    rig.now += 99
    assert rig.block(1, True, 0, b"b" * 16) == CONTINUE
    rig.now += 100
    assert rig.block(2, False, 0, b"c") == INCOMPLETE
    assert rig.site.uploads.held_bytes == 0
    assert rig.site.counters.expired == 1


def test_memory_is_bounded_in_all_and_for_each_endpoint() -> None:
    rig = Rig(total_bytes=1024 + 2 * COST_BYTES, uploads_per_endpoint=2)
    for number in range(5):
        assert rig.block(0, True, 0, bytes(16), (REQUEST_TAG, bytes((number,)))) == CONTINUE
    assert len(rig.site.uploads) == 2
    assert rig.block(1, True, 0, bytes(16), (REQUEST_TAG, b"\0")) == INCOMPLETE
    assert rig.block(1, True, 0, bytes(16), (REQUEST_TAG, b"\4")) == CONTINUE
    assert rig.block(0, True, 6, bytes(1024), source=OTHER) == CONTINUE
    assert rig.site.uploads.held_bytes <= 1024
    assert rig.site.counters.dropped == 5


def test_many_small_transfers_are_bounded_by_what_each_costs() -> None:
    rig = Rig(total_bytes=100 * COST_BYTES, answer_bytes=100 * COST_BYTES)
    rig.inner.answer = (CONTENT, encode_body(payload=bytes(20)))
    for number in range(300):
        source = (DEVICE[0], 6000 + number)
        assert rig.block(0, True, 0, bytes(16), source=source) == CONTINUE
        assert rig.block(1, False, 0, b"end", source=source) == CONTENT  # the finished ones cost, too
        rig.send([(BLOCK2, b"")], code=POST, source=source)
    assert len(rig.site.uploads) <= 100
    assert len(rig.site._answers) <= 100


def test_a_stranger_costs_nothing() -> None:
    rig = Rig()
    assert rig.block(0, True, 0, bytes(16), source=STRANGER) == 0x81
    assert len(rig.site.uploads) == 0


# Block2.


def large(size: int = 3000) -> bytes:
    return random.Random(size).randbytes(size)


def download(rig: Rig, exponent: int | None, code: int = GET) -> bytes:
    """Fetch an answer block by block."""
    got, number, etags = b"", 0, set()
    while True:
        asked = [] if exponent is None else [(BLOCK2, encode_uint(number << 4 | exponent))]
        answer = rig.send(asked, code=code)
        assert answer is not None
        answered_with, options, payload = answer
        assert answered_with == CONTENT
        block = decode_uint(options[BLOCK2])
        etags.add(options[ETAG])
        exponent = block & 7
        assert block >> 4 == number
        if number == 0:
            assert decode_uint(options[SIZE2]) == len(large())
        got += payload
        if not block & 8:
            assert len(etags) == 1
            return got
        assert len(payload) == 16 << exponent
        number += 1


@pytest.mark.parametrize("exponent", [None, *range(7)])
def test_a_large_answer_comes_in_blocks(exponent: int | None) -> None:
    rig = Rig()
    rig.inner.answer = (CONTENT, encode_body([(12, b"\x28")], large()))
    assert download(rig, exponent) == large()


def test_blocks_may_be_asked_for_in_any_order_and_there_are_no_others() -> None:
    rig = Rig()
    rig.inner.answer = (CONTENT, encode_body(payload=large()))
    for number in (2, 0, 1):
        answer = rig.send([(BLOCK2, encode_uint(number << 4 | 6))], code=GET)
        assert answer is not None
        assert answer[2] == large()[number * 1024 : (number + 1) * 1024]
    answer = rig.send([(BLOCK2, encode_uint(3 << 4 | 6))], code=GET)
    assert answer is not None
    assert answer[0] == BAD_REQUEST


def test_another_method_is_carried_out_once_for_all_blocks_of_its_answer() -> None:
    rig = Rig()
    rig.inner.answer = (CONTENT, encode_body(payload=large()))
    assert download(rig, 5, code=POST) == large()
    assert len(rig.inner.bodies) == 1
    answer = rig.send([(BLOCK2, encode_uint(1 << 4 | 5))], code=POST, source=OTHER)
    assert answer is not None
    assert answer[0] == INCOMPLETE


def test_kept_answers_are_bounded() -> None:
    rig = Rig(answer_bytes=5000)
    rig.inner.answer = (CONTENT, encode_body(payload=large()))
    for number in range(5):
        rig.send([(PATH, b"%d" % number)], code=POST)
    assert rig.site.kept_bytes <= 5000


def test_an_upload_may_have_a_large_answer() -> None:
    rig = Rig()
    rig.inner.answer = (CONTENT, encode_body(payload=large()))
    assert rig.block(0, True, 0, bytes(16)) == CONTINUE
    answer = rig.send([(BLOCK1, b"\x10")], b"end")
    assert answer is not None
    assert answer[0] == CONTENT
    assert answer[1][BLOCK1] == b"\x10"
    assert decode_uint(answer[1][BLOCK2]) == 0x0E
    assert answer[2] == large()[:1024]
    second = rig.send([(BLOCK2, encode_uint(1 << 4 | 6))], code=POST)
    assert second is not None
    assert second[2] == large()[1024:2048]


def test_small_answers_and_errors_are_given_as_they_are() -> None:
    rig = Rig()
    rig.inner.answer = (CONTENT, encode_body(payload=b"small"))
    answer = rig.send([], code=GET)
    assert answer == (CONTENT, {}, b"small")
    rig.inner.answer = (0x84, encode_body(payload=b"Not Found"))
    assert rig.send([(BLOCK2, b"\x02")], code=GET) == (0x84, {}, b"Not Found")


@settings(max_examples=60, deadline=None)
@given(
    body=st.binary(max_size=200),
    exponent=st.integers(0, 2),
    plan=st.lists(st.tuples(st.integers(0, 14), st.booleans()), max_size=30),
)
def test_whatever_comes_a_body_is_whole_or_none(body: bytes, exponent: int, plan: list[tuple[int, bool]]) -> None:
    """Blocks of one body in any order, repeated, some under old Message IDs: bodies that arrive are that body."""
    rig = Rig()
    size = 16 << exponent
    blocks = max(1, -(-len(body) // size))
    for chosen, again in plan:
        number = chosen % blocks
        more = number + 1 < blocks
        value = encode_uint(number << 4 | more << 3 | exponent)
        chunk = body[number * size : (number + 1) * size]
        for _ in range(1 + again):
            rig.send([(BLOCK1, value)], chunk)
    assert all(arrived == body for arrived in rig.inner.bodies)
    assert rig.site.uploads.held_bytes <= len(body) + size
