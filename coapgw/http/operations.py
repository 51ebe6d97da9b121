"""What an operation is, and the table of them: routing, checking and the OpenAPI document all read it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import attrs

from coapgw.http.json_text import parse_json, write_json
from coapgw.http.refusals import BodyTooLarge, MethodRefused, Mistake, PathUnknown, RequestInvalid
from coapgw.http.schema import Schema, expect, unchecked_words
from coapgw.json_text import Json

BODY_BYTES: Final = 64 * 1024
LARGE_BODY_BYTES: Final = 4 * 1024 * 1024  # jobs and imports
JSON: Final = "application/json"


_NEWER_PHRASES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}  # Python has these from 3.13 on


def phrase_of(status: int) -> str:
    """Return the words for an HTTP status (RFC 9110 section 15)."""
    return _NEWER_PHRASES.get(status) or HTTPStatus(status).phrase


class Access(enum.Enum):
    """Who may ask: anybody, or who has the token."""

    OPEN = "open"
    TOKEN = "token"


class Parameter(NamedTuple):
    """One name of a query, or of a path."""

    name: str
    schema: Schema
    description: str


@attrs.frozen
class Call:
    """A request that is what its operation asks for.

    Args:
        path: the variable segments, decoded.
        query: integers where the schema says so; names that were not given are absent.
        body: checked against the schema.
    """

    path: Mapping[str, str] = attrs.field(factory=dict)
    query: Mapping[str, Any] = attrs.field(factory=dict)
    body: Any = None


@attrs.frozen
class Reply:
    """What is answered: bytes, ready to be sent."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def json_reply(value: Mapping[str, Any], status: int = 200, *headers: tuple[str, str]) -> Reply:
    """Return *value* as a reply."""
    return Reply(status, write_json(value), JSON, headers)


class Answered(NamedTuple):
    """How an operation answers when all is well; *schema* None: no body, or one that is not JSON."""

    description: str
    schema: Schema | None = None
    content_type: str = JSON


@attrs.frozen
class Operation:
    """One row of the table.

    Args:
        name: ``operationId``.
        path: variable segments in braces.
        run: called with a checked call; may raise anything ``http/api.py`` knows, and blocks if *blocking*.
        answered: by status; every one that *run* returns.
        refused: statuses of errors beyond those that any operation may have.
        aliases: further paths that do the same.
        path_schemas: of the variable segments, for the document: whoever has none of that form is answered 404.
        body: None takes none.
        needs_body: whether the body may be left out.
    """

    method: str
    path: str
    name: str
    summary: str
    run: Callable[[Call], Reply]
    answered: Mapping[int, Answered]
    refused: tuple[int, ...] = ()
    access: Access = Access.TOKEN
    blocking: bool = True
    path_parameters: tuple[Parameter, ...] = ()
    query: tuple[Parameter, ...] = ()
    body: Schema | None = None
    body_limit: int = BODY_BYTES
    aliases: tuple[str, ...] = ()

    def call(self, path: Mapping[str, str], query: str, body: bytes) -> Reply:
        """Check what was asked and run; RequestInvalid, BodyTooLarge, and whatever *run* raises."""
        return self.run(Call(path, self._query(query), self._body(body)))

    def _body(self, data: bytes) -> Json:
        if len(data) > self.body_limit:
            raise BodyTooLarge(self.body_limit)
        if self.body is None:
            if data:
                raise RequestInvalid([Mistake("", "this operation takes no body")])
            return None
        value = parse_json(data)
        expect(self.body, value)
        return value

    def _query(self, text: str) -> Mapping[str, Any]:
        known = {parameter.name: parameter.schema for parameter in self.query}
        given: dict[str, Any] = {}
        for name, value in _query_pairs(text):
            if name not in known:
                raise RequestInvalid([Mistake(name[:64], "is no parameter here")])
            if name in given:
                raise RequestInvalid([Mistake(name, "is there twice")])
            given[name] = _typed(known[name], value)
        schema = {"type": "object", "properties": known}
        expect(schema, given)
        return given


class Match(NamedTuple):
    """An operation, and the variable segments of the path it was found by."""

    operation: Operation
    path: Mapping[str, str]


class OperationTable:
    """Every operation, found by method and path."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        """Take them in the order in which the document shall show them.

        Raises:
            ValueError: a mistake of ours: two of the same method, path or name, or a schema word that nobody checks.
        """
        self.operations = tuple(operations)
        self._routes: list[tuple[tuple[str, ...], Operation]] = []
        taken: set[tuple[str, str]] = set()
        names: set[str] = set()
        for operation in self.operations:
            unchecked = unchecked_words(operation.body or {})
            for parameter in operation.query:
                unchecked |= unchecked_words(parameter.schema)
            if unchecked or operation.name in names:
                raise ValueError(f"{operation.name}: {sorted(unchecked) or 'a name that is there twice'}")
            names.add(operation.name)
            for path in (operation.path, *operation.aliases):
                if (operation.method, path) in taken:
                    raise ValueError(f"{operation.method} {path} is there twice")
                taken.add((operation.method, path))
                self._routes.append((tuple(path.split("/")[1:]), operation))

    def find(self, method: str, path: bytes) -> Match:
        """Return who answers; HEAD is GET.  Raises PathUnknown, MethodRefused."""
        segments = _segments(path)
        found = list(self._at(segments))
        if not found:
            raise PathUnknown
        wanted = "GET" if method == "HEAD" else method
        for match in found:
            if match.operation.method == wanted:
                return match
        raise MethodRefused(sorted({match.operation.method for match in found}))

    def _at(self, segments: Sequence[str]) -> Iterator[Match]:
        for route, operation in self._routes:
            if len(route) != len(segments):
                continue
            variables: dict[str, str] = {}
            for expected, segment in zip(route, segments, strict=True):
                if expected.startswith("{"):
                    variables[expected[1:-1]] = segment
                elif expected != segment:
                    break
            else:
                yield Match(operation, variables)


def _segments(path: bytes) -> Sequence[str]:
    """Return the decoded segments of *path*; raises PathUnknown."""
    if not path.startswith(b"/"):
        raise PathUnknown
    try:
        return [unquote_to_bytes(segment).decode("utf-8") for segment in path[1:].split(b"/")]
    except UnicodeDecodeError:
        raise PathUnknown from None


def _query_pairs(text: str) -> Sequence[tuple[str, str]]:
    """Return the names and values of a query; raises RequestInvalid."""
    try:
        return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=20)
    except ValueError:
        raise RequestInvalid([Mistake("", "the query cannot be read")]) from None


def _typed(schema: Schema, value: str) -> str | int:
    """Return an integer if *schema* wants one and *value* is one; the schema will refuse the text otherwise."""
    digits = value.removeprefix("-")
    if schema.get("type") == "integer" and digits.isascii() and digits.isdigit() and len(digits) <= 18:
        return int(value)
    return value
