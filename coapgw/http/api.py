"""The whole table of operations, and the one table that turns an error into an HTTP status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs

from coapgw.energysaver.errors import TemplateInvalid
from coapgw.errors import (
    DeviceExists,
    DeviceNotFound,
    DeviceRefused,
    KeyNotFound,
    KeyRefused,
    StorageError,
    TemplateConflict,
    TemplateNotFound,
    TemplateRefused,
    Untranslatable,
)
from coapgw.http.devices import DeviceOperations
from coapgw.http.health import HealthOperations
from coapgw.http.jobs import KeyJobs
from coapgw.http.json_text import write_json
from coapgw.http.keys import KeyOperations
from coapgw.http.openapi import openapi
from coapgw.http.operations import JSON, Access, Answered, Call, Operation, OperationTable, Reply, phrase_of
from coapgw.http.refusals import (
    BodyTooLarge,
    JobNotFound,
    MethodRefused,
    Mistake,
    NotReady,
    PathUnknown,
    RequestInvalid,
    TokenRefused,
    TooBusy,
    TooSlow,
)
from coapgw.http.schema import SHOWN_MISTAKES
from coapgw.http.templates import TemplateOperations
from coapgw.interfaces import IDeviceKeys, IDeviceRegistry, ILastSeen, ISavings, ITemplates, IWireBytes
from coapgw.threads import NotCalled


def answer_to(error: Exception) -> Reply:
    """Return the reply that tells a client of *error*."""
    match error:
        case RequestInvalid() | KeyRefused() | DeviceRefused() | TemplateRefused() | TemplateInvalid():
            return _refusal(*_wrong_with_body(error))
        case Untranslatable():
            return _refusal(400, [Mistake("payload", error.description)])
        case TokenRefused():
            return _told(401, error, ("WWW-Authenticate", 'Bearer realm="coapgw"'))
        case DeviceNotFound() | KeyNotFound() | TemplateNotFound() | JobNotFound() | PathUnknown():
            return _told(404, error)
        case MethodRefused():
            return _told(405, error, ("Allow", ", ".join(error.allowed)))
        case TooSlow():
            return _told(408, error)
        case BodyTooLarge():
            return _told(413, error)
        case TooBusy() | NotCalled():
            return _told(503, error, ("Retry-After", str(error.retry_seconds)))
        case NotReady():
            return _refusal(503, [Mistake("", reason) for reason in error.reasons])
        case StorageError():
            return _told(500, error)
        case _:
            return _refusal(500, [Mistake("", "an error of the gateway's own")])


def _wrong_with_body(
    error: RequestInvalid | KeyRefused | DeviceRefused | TemplateRefused | TemplateInvalid,
) -> tuple[int, Sequence[Mistake]]:
    """Return the status for a request that cannot be done as it is, and which of its fields is why."""
    match error:
        case RequestInvalid():
            return 400, error.mistakes
        case KeyRefused():
            return 400, [Mistake("secretKey", error.reason)]
        case TemplateInvalid():
            return 422, [Mistake(f"template#{one.path}", one.sentence) for one in error.mistakes[:SHOWN_MISTAKES]]
        case _:
            status = 409 if isinstance(error, DeviceExists | TemplateConflict) else 400
            return status, [Mistake(error.field, error.reason)]


def _told(status: int, error: Exception, *headers: tuple[str, str]) -> Reply:
    return _refusal(status, [Mistake("", str(error))], *headers)


def _refusal(status: int, mistakes: Sequence[Mistake], *headers: tuple[str, str]) -> Reply:
    errors = [
        {"message": mistake.message} | ({"field": mistake.field} if mistake.field else {}) for mistake in mistakes
    ]
    body = {"statusCode": status, "statusText": phrase_of(status), "errors": errors}
    return Reply(status, write_json(body), JSON, headers)


@attrs.frozen
class ApiParts:
    """What the operations work on; see their classes."""

    registry: IDeviceRegistry
    last_seen: ILastSeen
    wire_bytes: IWireBytes
    keys: IDeviceKeys
    jobs: KeyJobs
    templates: ITemplates
    savings: ISavings
    unready: Callable[[], Sequence[str]]
    metrics: Callable[[], bytes]


def make_table(parts: ApiParts) -> OperationTable:
    """Return every operation there is; a new room of the API is a line here."""
    document = _Document()
    table = OperationTable(
        (
            *DeviceOperations(parts.registry, parts.last_seen, parts.wire_bytes).operations(),
            *KeyOperations(parts.keys, parts.jobs).operations(),
            *TemplateOperations(parts.templates, parts.savings).operations(),
            document.operation(),
            *HealthOperations(parts.unready, parts.metrics).operations(),
        )
    )
    document.written = write_json(openapi(table))
    return table


class _Document:
    """The operation that shows the table it is in."""

    written: bytes = b""

    def operation(self) -> Operation:
        return Operation(
            *("GET", PATH, "getDocument", "This document", lambda _: Reply(200, self.written)),
            answered={200: Answered("the OpenAPI document", {"type": "object"})},
            access=Access.OPEN,
            blocking=False,
        )


PATH: Final = "/v1/openapi.json"
__all__ = ["ApiParts", "Call", "answer_to", "make_table"]
