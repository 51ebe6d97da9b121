"""Bodies larger than a datagram, in blocks: RFC 7959, with RFC 9175's Request-Tag.

A site around a site: what is behind it sees whole requests and gives whole answers.

* Block1: the blocks of a request's body come in order and are put together; each but the last is answered 2.31, the
  last with what the body gets.  A block out of order is 4.08, a body that is or will be too large 4.13.
* Block2: an answer that is too large, or is asked for in blocks, is given in blocks.  To a GET each block is cut from
  an answer of its own, with an ETag that tells whether it still is the same; other methods are carried out once, and
  their answer is kept for the blocks that follow.

An upload belongs to an endpoint and to what it asks for (its options, those of the transfer left out); a Request-Tag
makes several of them possible at a time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import partial
from typing import Final, NamedTuple, Protocol

import attrs

from coapgw.coap.codec import (
    BAD_REQUEST,
    BLOCK1,
    BLOCK2,
    CONTINUE,
    ETAG,
    GET,
    REQUEST_ENTITY_INCOMPLETE,
    REQUEST_ENTITY_TOO_LARGE,
    SIZE1,
    SIZE2,
    Options,
    add_options,
    decode_uint,
    encode_body,
    encode_options,
    encode_uint,
    option_value,
    parse_options,
)
from coapgw.coap.conditions import SAFE_METHODS
from coapgw.coap.exchange import Exchange, Handler, answering
from coapgw.metrics import BlockwiseCounters

LARGEST_EXPONENT: Final = 6  # blocks of 1024 bytes; 7 is for reliable transports only (RFC 8323 section 6)
WHOLE_ANSWER: Final = 1024  # payload bytes that are sent as they are if nobody asked for blocks
COST_BYTES: Final = 1024  # of memory, about, that an upload or a kept answer costs beside its bytes
ETAG_BYTES: Final = 8
OPTION_BYTES: Final = 24  # of Block2, ETag and Size2, and the payload marker
SMALLEST_BLOCK: Final = 16
WAITING_LIMIT: Final = 8  # repeats of a last block that wait for the answer to the first
_TRANSFER_OPTIONS: Final = frozenset((BLOCK1, BLOCK2, SIZE1, SIZE2))


class Block(NamedTuple):
    """The value of a Block option: *number* of the block, whether *more* follow, and 16 << *exponent* bytes each."""

    number: int
    more: bool
    exponent: int

    @property
    def offset(self) -> int:
        """Where the block begins, in bytes."""
        return self.number << self.exponent + 4

    @property
    def size(self) -> int:
        """Bytes of a whole block."""
        return 16 << self.exponent

    def encoded(self) -> bytes:
        """Return the option's value (RFC 7959 section 2.2)."""
        return encode_uint(self.number << 4 | self.more << 3 | self.exponent)


def parse_block(value: bytes) -> Block | None:
    """Return what a Block option says, None for the reserved size."""
    number = decode_uint(value)
    block = Block(number >> 4, bool(number & 8), number & 7)
    return block if block.exponent <= LARGEST_EXPONENT else None


@attrs.frozen
class BlockwiseLimits:
    """What unfinished transfers may cost.

    Args:
        body_bytes: of one request.
        total_bytes: of all unfinished requests together, what each costs by itself included; beyond it the one that was
            silent for longest goes.
        uploads_per_endpoint: unfinished at a time; beyond it the one that was silent for longest goes.
        idle_seconds: how long an unfinished request waits for its next block, and a finished one for repeats.
        answer_bytes: of all answers that are kept for their next blocks.
    """

    body_bytes: int = 65_536
    total_bytes: int = 64 << 20
    uploads_per_endpoint: int = 4
    idle_seconds: float = 247.0
    answer_bytes: int = 4 << 20


@attrs.define(eq=False)
class Repeats:
    """What a repeat of the last block is answered: the *answer*, or that of the first once it is there."""

    last: Block
    digest: bytes  # of the last block's payload
    answer: tuple[int, bytes] | None = None
    waiting: list[Exchange] = attrs.field(factory=list)

    def is_by(self, block: Block, payload: bytes) -> bool:
        """Return whether this is the last block once more.  One that is the first as well may be a new request."""
        return block == self.last and block.number > 0 and _digest(payload) == self.digest


@attrs.define(eq=False)
class Upload:
    """A request's body as far as it is here; finished when it has *repeats*."""

    key: tuple[int, bytes]
    heard: float
    chunks: list[bytes] = attrs.field(factory=list)
    received: int = 0
    repeats: Repeats | None = None


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=ETAG_BYTES).digest()


class Uploads:
    """All unfinished uploads, and the finished ones whose last block may come again."""

    def __init__(self, limits: BlockwiseLimits, counters: BlockwiseCounters) -> None:
        """Begin with none."""
        self._limits = limits
        self._counters = counters
        self._uploads: OrderedDict[tuple[int, bytes], Upload] = OrderedDict()  # the longest silent first
        self._of_endpoint: dict[int, list[Upload]] = {}
        self.held_bytes = 0

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._uploads)

    def begin(self, key: tuple[int, bytes], now: float) -> Upload:
        """Begin an upload, in place of one with the same key."""
        self.forget(self._uploads.get(key))
        siblings = self._of_endpoint.setdefault(key[0], [])
        if len(siblings) >= self._limits.uploads_per_endpoint:
            self._drop(min(siblings, key=lambda upload: upload.heard))
            siblings = self._of_endpoint.setdefault(key[0], [])
        upload = Upload(key, now)
        self._uploads[key] = upload
        siblings.append(upload)
        return upload

    def find(self, key: tuple[int, bytes]) -> Upload | None:
        """Return the upload with this key."""
        return self._uploads.get(key)

    def add(self, upload: Upload, chunk: bytes, now: float) -> None:
        """Put the next block's bytes to an upload; others go if there is no room."""
        upload.chunks.append(chunk)
        upload.received += len(chunk)
        upload.heard = now
        self.held_bytes += len(chunk)
        self._uploads.move_to_end(upload.key)
        while self.held_bytes + COST_BYTES * len(self._uploads) > self._limits.total_bytes:
            self._drop(next(iter(self._uploads.values())))

    def finish(self, upload: Upload, block: Block, payload: bytes) -> bytes:
        """Return the whole body, of which this block is the last; the upload is remembered without it."""
        body = b"".join(upload.chunks)
        if self.find(upload.key) is upload:
            self.held_bytes -= upload.received
        upload.chunks.clear()
        upload.repeats = Repeats(block, _digest(payload))
        return body

    def forget(self, upload: Upload | None) -> None:
        """Let go of an upload."""
        if upload is None or self._uploads.get(upload.key) is not upload:
            return
        del self._uploads[upload.key]
        siblings = self._of_endpoint[upload.key[0]]
        siblings.remove(upload)
        if not siblings:
            del self._of_endpoint[upload.key[0]]
        if upload.repeats is None:
            self.held_bytes -= upload.received

    def forget_silent(self, now: float) -> None:
        """Let go of those that were silent for too long."""
        while self._uploads:
            oldest = next(iter(self._uploads.values()))
            if now - oldest.heard < self._limits.idle_seconds:
                return
            self._counters.expired += oldest.repeats is None
            self.forget(oldest)

    def _drop(self, upload: Upload) -> None:
        self._counters.dropped += upload.repeats is None
        self.forget(upload)


class LargeSite(Protocol):
    """A site that knows which of its answers may be large."""

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""

    def may_be_large(self, options: Options) -> bool:
        """Return whether an answer to these options may not fit a datagram."""


class BlockwiseSite:
    """A site whose requests and answers may come and go in blocks.

    Peers that are not known get no blocks: their requests are passed on as they are, to be refused.
    """

    def __init__(
        self, inner: LargeSite, limits: BlockwiseLimits | None = None, counters: BlockwiseCounters | None = None
    ) -> None:
        """Stand before *inner*."""
        self._inner = inner
        self._limits = limits or BlockwiseLimits()
        self.counters = counters or BlockwiseCounters()
        self.uploads = Uploads(self._limits, self.counters)
        self._answers: OrderedDict[tuple[int, bytes], tuple[int, bytes]] = OrderedDict()
        self.kept_bytes = 0

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options.

        What neither has blocks nor may need them gets the inner handler itself: there the way is as short as before.
        """
        first, second = option_value(options, BLOCK1), option_value(options, BLOCK2)
        up = parse_block(first) if first is not None else None
        down = parse_block(second) if second is not None else None
        if (first is not None and up is None) or (second is not None and (down is None or down.more)):
            return answering(BAD_REQUEST)
        if up is None and down is None and not self._inner.may_be_large(options):
            return self._inner.resolve(code, options)
        rest = tuple(option for option in options if option[0] not in _TRANSFER_OPTIONS)
        identity = bytes((code,)) + encode_options(rest)
        handler = self._downloading(self._inner.resolve(code, rest), code, identity, down)
        if up is None:
            return handler
        announced = option_value(options, SIZE1)
        return self._uploading(handler, identity, up, decode_uint(announced) if announced is not None else 0)

    # ------------------------------------------------------------------ Block1

    def _uploading(self, handler: Handler, identity: bytes, block: Block, announced: int) -> Handler:
        """Return what takes one block of a request's body."""

        def handle(exchange: Exchange, payload: bytes) -> None:
            key = (exchange.endpoint.base, identity)
            if exchange.principal is None:
                handler(exchange, payload)
            elif max(announced, block.offset + len(payload)) > self._limits.body_bytes:
                self.counters.too_large += 1
                self.uploads.forget(self.uploads.find(key))
                exchange.respond(REQUEST_ENTITY_TOO_LARGE, encode_body([(SIZE1, encode_uint(self._limits.body_bytes))]))
            elif block.more and len(payload) != block.size:
                exchange.respond(BAD_REQUEST, encode_body(payload=b"a block before the last is not whole"))
            else:
                self._take_block(exchange, handler, key, block, payload)

        return handle

    def _take_block(
        self, exchange: Exchange, handler: Handler, key: tuple[int, bytes], block: Block, payload: bytes
    ) -> None:
        now = exchange.now
        self.uploads.forget_silent(now)
        known = self.uploads.find(key)
        if known is not None and known.repeats is not None and known.repeats.is_by(block, payload):
            self._answer_again(exchange, known.repeats)
            return
        upload = self.uploads.begin(key, now) if block.number == 0 else known
        if (
            upload is None
            or upload.repeats is not None
            or block.offset > upload.received
            or (block.offset < upload.received and not block.more)  # an end where the body does not end
        ):
            self.counters.incomplete += 1
            exchange.respond(REQUEST_ENTITY_INCOMPLETE, encode_body([(BLOCK1, block.encoded())]))
            return
        if block.offset == upload.received:
            self.uploads.add(upload, payload, now)
        if block.more:
            exchange.respond(CONTINUE, encode_body([(BLOCK1, block.encoded())]))
        else:
            self.counters.uploads += 1
            exchange.shapes.append(partial(self._conclude, upload, block))
            handler(exchange, self.uploads.finish(upload, block, payload))

    def _answer_again(self, exchange: Exchange, repeats: Repeats) -> None:
        """Answer a last block that comes again under another Message ID as it was answered, or will be."""
        if repeats.answer is not None:
            exchange.respond(*repeats.answer)
        elif len(repeats.waiting) < WAITING_LIMIT:
            repeats.waiting.append(exchange)

    def _conclude(self, upload: Upload, block: Block, code: int, body: bytes) -> tuple[int, bytes]:
        """Say in an answer which block it answers, and keep it for repeats of that; what failed may be tried again."""
        answer = (code, add_options(body, [(BLOCK1, block.encoded())]))
        repeats = upload.repeats
        if repeats is not None:
            repeats.answer = answer
            waiting, repeats.waiting = repeats.waiting, []
            if code >> 5 != 2:
                self.uploads.forget(upload)
            for exchange in waiting:
                exchange.respond(*answer)
        return answer

    # ------------------------------------------------------------------ Block2

    def _downloading(self, handler: Handler, code: int, identity: bytes, asked: Block | None) -> Handler:
        """Return what gives one block of an answer, or the whole if that is small and nobody *asked*."""

        def handle(exchange: Exchange, payload: bytes) -> None:
            key = (exchange.endpoint.base, identity)
            if asked is not None and asked.number and code != GET and exchange.principal is not None:
                kept = self._answers.get(key)
                block = _fitting(exchange, asked)
                exchange.respond(*(_cut(*kept, block) if kept else (REQUEST_ENTITY_INCOMPLETE, b"")))
                return

            def cut(code_of_answer: int, body: bytes) -> tuple[int, bytes]:
                is_whole = len(body) <= WHOLE_ANSWER and (code in SAFE_METHODS or len(body) <= _room(exchange))
                if (asked is None and is_whole) or code_of_answer >> 5 != 2:
                    return code_of_answer, body
                if code != GET and len(body) > SMALLEST_BLOCK:
                    self._keep(key, code_of_answer, body)
                self.counters.answers += 1
                block = asked or Block(0, False, LARGEST_EXPONENT)
                return _cut(code_of_answer, body, block if code in SAFE_METHODS else _fitting(exchange, block))

            exchange.shapes.append(cut)
            handler(exchange, payload)

        return handle

    def _keep(self, key: tuple[int, bytes], code: int, body: bytes) -> None:
        """Keep an answer for its next blocks, in place of the oldest if there is no room."""
        before = self._answers.pop(key, None)
        self.kept_bytes += COST_BYTES + len(body) - (COST_BYTES + len(before[1]) if before else 0)
        self._answers[key] = (code, body)
        while self.kept_bytes > self._limits.answer_bytes:
            _, (_, dropped) = self._answers.popitem(last=False)
            self.kept_bytes -= COST_BYTES + len(dropped)


def _room(exchange: Exchange) -> int:
    """Return how many bytes may follow the token of an answer."""
    return exchange.room - len(exchange.header)


def _fitting(exchange: Exchange, block: Block) -> Block:
    """Return the block, or a smaller one at the same place if that is too much for an address that is not proven."""
    room = _room(exchange) - OPTION_BYTES
    exponent = block.exponent
    while exponent and 16 << exponent > room:
        exponent -= 1
    return Block(block.number << block.exponent - exponent, block.more, exponent)


def _cut(code: int, body: bytes, block: Block) -> tuple[int, bytes]:
    """Return the answer that gives one block of a whole answer (RFC 7959 section 2.4)."""
    options, payload_at = parse_options(body, 0)
    payload = body[payload_at:]
    if block.number and block.offset >= len(payload):
        return BAD_REQUEST, encode_body(payload=b"there is no such block")
    end = block.offset + block.size
    said = [(BLOCK2, Block(block.number, end < len(payload), block.exponent).encoded())]
    if not any(number == ETAG for number, _ in options):
        said.append((ETAG, _digest(payload)))
    if not block.number:
        said.append((SIZE2, encode_uint(len(payload))))
    return code, encode_body([*options, *said], payload[block.offset : end])
