"""HTTP/1.1 for the table of operations: twisted.web's parser, with a bound on everything a client can make us hold.

A request is refused as soon as its header says why, and what follows of its body is dropped, not kept.  Nothing here
writes a line of log because of what came from the network, however often it comes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request, datetimeToString

from coapgw.errors import CoapgwError
from coapgw.http.access import AdminToken
from coapgw.http.api import answer_to
from coapgw.http.operations import Access, Match, Operation, OperationTable, Reply, phrase_of
from coapgw.http.refusals import BodyTooLarge, Mistake, RequestInvalid, TooSlow
from coapgw.metrics import HttpCounters

CONNECTIONS: Final = 100  # one more ends the one that has been quiet for longest
REQUEST_SECONDS: Final = 60.0  # from the first byte of a request to its last
IDLE_SECONDS: Final = 60.0  # from an answer to the next request
LINGER_SECONDS: Final = 30.0  # for an answer to leave when the connection ends with it
HEADER_BYTES: Final = 16_384  # request line and header fields
HEADER_FIELDS: Final = 100
DRAIN_BYTES: Final = 8 << 20  # of a refused body, dropped so that its sender reads the answer; beyond, it is cut off
LENGTH_CHARACTERS: Final = 40  # of a Content-Length field; Python refuses to read thousands of digits
FAILURES_LOGGED: Final = 10

CallInThread: TypeAlias = "Callable[[Callable[[], Reply]], Deferred[Reply]]"
"""Calls a function that blocks somewhere else; fails with NotCalled if too many wait."""


class ApiRequest(Request):
    """One request, from its header on."""

    channel: ApiChannel

    def gotLength(self, length: int | None) -> None:
        """Find out who answers, before any of the body is here; *length* None is a body in chunks."""
        self._match: Match | None = None
        self._refusal: Exception | None = None
        self._chunks: list[bytes] = []
        self._received = 0
        channel = self.channel
        try:
            self._match = channel.factory.admit(self, channel._command, channel._path, length)
        except Exception as refusal:  # noqa: BLE001 - whatever it is, answer_to knows
            self._refusal = refusal
            asked_first = self.requestHeaders.hasHeader(b"Expect")
            if length != 0 and (asked_first or (length or 0) > DRAIN_BYTES):
                self.requestHeaders.removeHeader(b"Expect")
                self._cut_off(refusal)

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a part of the body, if it is wanted and small enough."""
        if self.finished:
            return  # cut off already; there was more in the same read
        self._received += len(data)
        if self._refusal is None:
            assert self._match is not None
            limit = self._match.operation.body_limit
            if self._received <= limit:
                self._chunks.append(data)
                return
            self._chunks.clear()
            self._refusal = BodyTooLarge(limit)
        if self._received > DRAIN_BYTES:
            self._cut_off(self._refusal)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Answer: everything is here.  The body is never taken for a form."""
        self._begin_answer(command, path, version)
        if self._refusal is not None or self._match is None:
            self.answer(answer_to(self._refusal or RequestInvalid([Mistake("", "no request")])))
            return
        body = b"".join(self._chunks)
        self._chunks.clear()
        operation, segments = self._match
        run = partial(operation.call, segments, path.partition(b"?")[2].decode("ascii"), body)
        factory = self.channel.factory
        factory.run(operation, run).addErrback(factory.reply_to).addCallback(self.answer)

    def answer(self, reply: Reply) -> None:
        """Send *reply*, if the client is still there."""
        if self._disconnected or self.finished:
            return
        self.channel.factory.count(reply.status)
        self.setResponseCode(reply.status, phrase_of(reply.status).encode())
        for name, value in _header_fields(reply):
            self.responseHeaders.addRawHeader(name, value)
        self.write(reply.body)
        self.finish()

    def _begin_answer(self, command: bytes, path: bytes, version: bytes) -> None:
        self.method, self.uri, self.path, self.clientproto = command, path, path.partition(b"?")[0], version

    def _cut_off(self, refusal: Exception) -> None:
        """Answer in the middle of the request, and end the connection."""
        channel = self.channel
        self._begin_answer(channel._command, channel._path, channel._version)
        self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        channel.persistent = False
        channel.give_up()
        self.answer(answer_to(refusal))


class ApiChannel(HTTPChannel):
    """One connection."""

    factory: ApiFactory
    requestFactory = ApiRequest
    totalHeadersSize = HEADER_BYTES
    maxHeaders = HEADER_FIELDS
    timeOut = None  # twisted.web's begins anew with every byte, and logs
    _deadline: IDelayedCall | None = None
    _in_request = False
    _given_up = False

    def connectionMade(self) -> None:
        """Begin to wait for a request."""
        super().connectionMade()
        self._expect_within(IDLE_SECONDS)
        self.factory.opened(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse; nothing that comes of it may reach the reactor as an exception."""
        if self._given_up:
            return
        if not (self._in_request or self._handlingRequest):
            self._in_request = True
            self.factory.heard(self)
            self._expect_within(REQUEST_SECONDS)
        try:
            super().dataReceived(data)
        except Exception:  # noqa: BLE001 - the pump
            self.factory.failed("received data")
            self.give_up()
            self._transport.abortConnection()

    def headerReceived(self, line: bytes) -> bool:
        """Take a header field; refuse a length that is none."""
        if line[:15].lower() == b"content-length:" and len(line) > LENGTH_CHARACTERS:
            self._respondToBadRequestAndDisconnect()
            return False
        taken: bool = super().headerReceived(line)
        return taken

    def rawDataReceived(self, data: bytes) -> None:
        """Take a part of a body, or what comes while we answer."""
        if not self._given_up:
            super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        """Wait for nothing while we answer."""
        if self._given_up:
            return
        self._in_request = False
        self._expect_within(None)
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """Wait for the next request, which may be here already."""
        if self.persistent:
            self._expect_within(IDLE_SECONDS)
        else:
            self.give_up()
        self.factory.heard(self)
        super().requestDone(request)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a header that does not end."""
        self._respondToBadRequestAndDisconnect()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection."""
        self._expect_within(None)
        self._given_up = True
        self.factory.closed(self)
        super().connectionLost(reason)

    def give_up(self) -> None:
        """Look at nothing more that comes; a connection that does not end by itself is ended."""
        self._given_up = True
        self._in_request = False
        self._expect_within(LINGER_SECONDS)

    def is_given_up(self) -> bool:
        """Return whether the connection is about to end."""
        return self._given_up

    def is_answering(self) -> bool:
        """Return whether a request is being worked on."""
        return bool(self._handlingRequest)

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse what is no HTTP; twisted.web calls this."""
        self.factory.counters.malformed += 1
        self._end_with(RequestInvalid([Mistake("", "no HTTP request, or its header is too large")]))

    def _end_with(self, refusal: Exception) -> None:
        """Answer without a request, and end the connection."""
        reply = answer_to(refusal)
        self.factory.count(reply.status)
        self.give_up()
        phrase = phrase_of(reply.status)
        lines = [b"HTTP/1.1 %d %s" % (reply.status, phrase.encode()), b"Connection: close"]
        lines += [name + b": " + value for name, value in _header_fields(reply)]
        self._transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + reply.body)
        self.loseConnection()

    def _expect_within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None:
            self._deadline = self.factory.reactor.callLater(seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if self._given_up:
            self._transport.abortConnection()
            return
        self.factory.counters.timeouts += 1
        if self._in_request:
            self._end_with(TooSlow("the request did not arrive in time"))
        else:
            self.give_up()
            self.loseConnection()

    @property
    def _transport(self) -> Any:
        return self.transport


class ApiFactory(ServerFactory):
    """What the connections share.

    Args:
        reactor: IReactorTime.
        call_in_thread: where operations that block are called.
        follow: has the gateway take in what an operation changed; never fails.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        table: OperationTable,
        token: AdminToken,
        reactor: Any,
        call_in_thread: CallInThread,
        counters: HttpCounters | None = None,
        *,
        follow: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        """Serve *table* to who has the *token*."""
        self._table = table
        self._token = token
        self.reactor = reactor
        self._call_in_thread = call_in_thread
        self._follow = follow
        self.counters = counters or HttpCounters()
        self._open: OrderedDict[ApiChannel, None] = OrderedDict()  # the one that was quiet for longest first

    def __len__(self) -> int:
        """Return how many connections there are."""
        return len(self._open)

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return the protocol of a new connection."""
        channel = ApiChannel()
        channel.factory = self
        channel.callLater = self.reactor.callLater  # type: ignore[method-assign]  # as twisted.web does itself
        return channel

    def opened(self, channel: ApiChannel) -> None:
        """Take note of a connection; if there are too many, end one that we do not work for."""
        self.counters.connections += 1
        if len(self._open) >= CONNECTIONS:
            quiet = next((one for one in self._open if not one.is_answering()), channel)
            self.counters.evicted_connections += 1
            self._open.pop(quiet, None)  # now, and not when it has ended: the next one may be accepted before
            quiet.give_up()
            quiet._transport.abortConnection()
        if not channel.is_given_up():
            self._open[channel] = None

    def heard(self, channel: ApiChannel) -> None:
        """Take note that a connection is in use."""
        if channel in self._open:
            self._open.move_to_end(channel)

    def closed(self, channel: ApiChannel) -> None:
        """Take note that a connection has ended."""
        self._open.pop(channel, None)

    def close_all(self) -> None:
        """End every connection."""
        for channel in list(self._open):
            channel.give_up()
            channel.loseConnection()

    def admit(self, request: Request, command: bytes, uri: bytes, length: int | None) -> Match:
        """Return who answers; raises what ``answer_to`` knows if that is nobody."""
        path, _, query = uri.partition(b"?")
        match = self._table.find(command.decode("latin-1"), _without_authority(path))
        operation = match.operation
        if operation.access is Access.TOKEN:
            fields = request.requestHeaders.getRawHeaders(b"Authorization") or []
            self._token.expect(fields[0] if len(fields) == 1 else None)
        if not query.isascii():
            raise RequestInvalid([Mistake("", "the query cannot be read")])
        if length is not None and length > operation.body_limit:
            raise BodyTooLarge(operation.body_limit)
        return match

    def run(self, operation: Operation, call: Callable[[], Reply]) -> Deferred[Reply]:
        """Call *call*: elsewhere if it blocks, else in another turn, so that a pipeline of requests is no monologue.

        What it changed has taken effect when the reply is there.
        """
        if operation.blocking:
            called = self._call_in_thread(call)
            return called if operation.method == "GET" else called.addCallback(self._followed)
        done: Deferred[Reply] = Deferred()
        self.reactor.callLater(0, done.callback, None)
        return done.addCallback(lambda _: call())

    def _followed(self, reply: Reply) -> Deferred[Reply]:
        return self._follow().addCallback(lambda _: reply)

    def count(self, status: int) -> None:
        """Count an answer."""
        counters = self.counters
        counters.requests += 1
        if status == HTTPStatus.UNAUTHORIZED:
            counters.unauthorised += 1
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            counters.failed += 1
        elif status >= HTTPStatus.BAD_REQUEST:
            counters.refused += 1

    def reply_to(self, failure: Failure) -> Reply:
        """Return the reply to what an operation raised."""
        error = failure.value
        if not isinstance(error, CoapgwError):
            self.failed("an operation", failure)
        return answer_to(error if isinstance(error, Exception) else RuntimeError())

    def failed(self, doing: str, failure: Failure | None = None) -> None:
        """Count and (the first times) log an error of ours; without *failure*, called from an except clause."""
        self.counters.pump_errors += 1
        if self.counters.pump_errors <= FAILURES_LOGGED:
            self._log.failure("the management API failed at {doing}", failure=failure, doing=doing)

    def log(self, request: Request) -> None:
        """Write no access log: twisted.web calls this after each request."""


def _without_authority(path: bytes) -> bytes:
    """Return the path of a request target in absolute form (RFC 9112 section 3.2.2), or of any other as it is."""
    if path[:7].lower() != b"http://":
        return path
    return b"/" + path[7:].partition(b"/")[2]


def _header_fields(reply: Reply) -> list[tuple[bytes, bytes]]:
    """Return the header fields of *reply*."""
    fields = [(b"Date", datetimeToString()), (b"Cache-Control", b"no-store")]
    if reply.status != HTTPStatus.NO_CONTENT:
        fields += [(b"Content-Type", reply.content_type.encode()), (b"Content-Length", b"%d" % len(reply.body))]
    return fields + [(name.encode(), value.encode()) for name, value in reply.headers]
