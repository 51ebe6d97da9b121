"""The schemas of what goes over the management API; a schema with a title is shown once in the document."""

from __future__ import annotations

from typing import Any, Final

from coapgw.http.schema import Schema
from coapgw.model import NAME_LIMIT, DeviceStatus, KeyFormat, TemplateStatus

KEYS_AT_ONCE: Final = 5_000  # PRODUCT section 8
PAGE_DEFAULT: Final = 100
PAGE_LIMIT: Final = 1_000
LEAST_KEY: Final = 8  # characters, PRODUCT section 8
LONGEST_KEY: Final = 256


def closed(title: str, properties: dict[str, Schema], *required: str, **further: Any) -> Schema:
    """Return the schema of an object that has no other fields than these."""
    schema: dict[str, Any] = {"title": title, "type": "object", "properties": properties}
    return schema | {"required": list(required), "additionalProperties": False} | further


def array_of(items: Schema, **further: Any) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items, **further}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


ICCID: Final[Schema] = {"type": "string", "pattern": "^[0-9]{18,20}$", "description": "an ICCID has 18 to 20 digits"}
IMSI: Final[Schema] = {"type": "string", "pattern": "^[0-9]{15}$", "description": "an IMSI has 15 digits"}
IP: Final[Schema] = {
    "type": "string",
    "minLength": 2,
    "maxLength": 45,
    "description": "IPv4 or IPv6 address, the source address of the device; no two devices share one",
}
NAME: Final[Schema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": NAME_LIMIT,
    "description": "for people; printable characters",
}
STATUS: Final[Schema] = {
    "type": "string",
    "enum": [status.value for status in DeviceStatus],
    "description": "an INACTIVE device is treated like an unknown one",
}
TIME: Final[Schema] = {
    "type": "string",
    "format": "date-time",
    "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z$",
    "description": "ISO 8601, UTC, milliseconds",
}

_BYTES: Final[Schema] = {"type": "integer", "minimum": 0}
WIRE_BYTES: Final = closed(
    "WireBytes",
    {"received": _BYTES, "sent": _BYTES},
    *("received", "sent"),
    description="UDP payload over DTLS since the gateway started, handshakes included; absent in lists and before any",
)

DEVICE: Final = closed(
    "Device",
    {
        "iccid": ICCID,
        "imsi": IMSI,
        "ip": IP,
        "name": NAME,
        "status": STATUS,
        "createdAt": TIME,
        "updatedAt": TIME,
        "lastSeenAt": {**TIME, "description": "when the last message of the device arrived; absent before the first"},
        "wireBytes": WIRE_BYTES,
    },
    *("iccid", "status", "createdAt", "updatedAt"),
)
NEW_DEVICE: Final = closed(
    "NewDevice",
    {"iccid": ICCID, "imsi": _or_null(IMSI), "ip": _or_null(IP), "name": _or_null(NAME), "status": STATUS},
    "iccid",
)
DEVICE_CHANGES: Final = closed(
    "DeviceChanges",
    {"imsi": _or_null(IMSI), "ip": _or_null(IP), "name": _or_null(NAME), "status": STATUS},
    description="what is absent stays as it is; null empties a field",
)
CURSOR: Final[Schema] = {
    "type": "string",
    "pattern": "^c[0-9]{18,20}$",
    "description": "a cursor is the `next` of the page before",
}
DEVICE_PAGE: Final = closed(
    "DevicePage",
    {"items": array_of(DEVICE), "next": {**CURSOR, "description": "cursor of the next page; absent on the last"}},
    "items",
)

SECRET_KEY: Final[Schema] = {
    "type": "string",
    "minLength": LEAST_KEY,
    "maxLength": LONGEST_KEY,
    "description": "the characters of the key, or with format HEX the hexadecimal digits of its bytes",
}
PROTOCOL: Final[Schema] = {"type": "string", "enum": ["COAP"]}
FORMAT: Final[Schema] = {"type": "string", "enum": [form.value for form in KeyFormat], "default": "STRING"}
NEW_KEY: Final = closed(
    "NewKey", {"secretKey": SECRET_KEY, "protocol": PROTOCOL, "format": FORMAT}, "secretKey", "protocol"
)
KEY: Final = closed(
    "Key",
    {
        "deviceId": ICCID,
        "identity": {"type": "string", "description": "the PSK identity in the DTLS handshake: the ICCID"},
        "secretKey": {"type": "string"},
        "createdAt": TIME,
        "updatedAt": TIME,
        "protocol": PROTOCOL,
        "format": {"type": "string", "enum": [form.value for form in KeyFormat]},
    },
    *("deviceId", "identity", "secretKey", "createdAt", "updatedAt", "protocol", "format"),
)

NEW_KEY_JOB: Final = closed(
    "NewKeyJob",
    {
        "keys": array_of(
            closed(
                "NewDeviceKey",
                {"deviceId": ICCID, "secretKey": SECRET_KEY, "protocol": PROTOCOL, "format": FORMAT},
                *("deviceId", "secretKey", "protocol"),
            ),
            minItems=1,
            maxItems=KEYS_AT_ONCE,
        )
    },
    "keys",
)
TEMPLATE_TEXT: Final[Schema] = {"type": "string", "description": "the template: JSON, as a text"}
_TEMPLATE: Final[dict[str, Schema]] = {
    "name": NAME,
    "template": TEMPLATE_TEXT,
    "protocolFilter": array_of(PROTOCOL, minItems=1, maxItems=1),
    "status": {
        "type": "string",
        "enum": [status.value for status in TemplateStatus],
        "description": "one template at a time is ACTIVE",
    },
}
TEMPLATE: Final = closed(
    "Template",
    {"id": {"type": "string"}, **_TEMPLATE, "createdAt": TIME, "updatedAt": TIME},
    *("id", "name", "template", "protocolFilter", "status", "createdAt", "updatedAt"),
)
TEMPLATES: Final = closed("Templates", {"items": array_of(TEMPLATE)}, "items")
NEW_TEMPLATE: Final = closed(
    "NewTemplate", _TEMPLATE, "name", "template", description="INACTIVE, and for COAP, if it does not say otherwise"
)
TEMPLATE_CHANGES: Final = closed("TemplateChanges", _TEMPLATE, description="what is absent stays as it is")
TEMPLATE_TRIAL: Final = closed(
    "TemplateTrial",
    {"template": TEMPLATE_TEXT, "payload": {"type": "string", "description": "base64 (RFC 4648 section 4)"}},
    *("template", "payload"),
)
TRANSLATION: Final = closed(
    "Translation",
    {
        "translatedPayload": {"type": "string", "description": "JSON, as a text"},
        "reducedBytes": {"type": "integer", "description": "what the JSON is longer than the payload"},
        "energyUsageReduction": {"type": "number", "description": "percent"},
    },
    *("translatedPayload", "reducedBytes", "energyUsageReduction"),
)
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_JOB: Final[dict[str, Schema]] = {
    "id": {"type": "string"},
    "status": {
        "type": "string",
        "enum": ["SCHEDULED", "IN_PROGRESS", "SUCCEEDED", "FAILED"],
        "description": "FAILED: at least one key was not set; the others are",
    },
    "createdAt": TIME,
    "updatedAt": TIME,
    "total": _COUNT,
    "succeeded": _COUNT,
    "failed": _COUNT,
}
KEY_JOB_SUMMARY: Final = closed("KeyJobSummary", _JOB, *_JOB)
KEY_JOB: Final = closed(
    "KeyJob",
    {
        **_JOB,
        "errors": array_of(
            closed("KeyJobError", {"deviceId": ICCID, "message": {"type": "string"}}, "deviceId", "message")
        ),
    },
    *(*_JOB, "errors"),
)
KEY_JOBS: Final = closed("KeyJobs", {"items": array_of(KEY_JOB_SUMMARY)}, "items")

ERROR: Final = closed(
    "Error",
    {
        "statusCode": {"type": "integer"},
        "statusText": {"type": "string"},
        "errors": array_of(
            closed(
                "ErrorDetail",
                {"message": {"type": "string"}, "field": {"type": "string", "description": "what is wrong, if one is"}},
                "message",
            )
        ),
    },
    *("statusCode", "statusText", "errors"),
)
HEALTH: Final = closed("Health", {"status": {"type": "string"}}, "status")

RANGES: Final = (1, 7, 30)  # days, PRODUCT section 5
RANGE: Final[Schema] = {"type": "integer", "enum": list(RANGES)}
_SAVINGS_FIGURES: Final = ("messagesTranslated", "averageBytesReducedPerMessage", "bytesSaved")
_FIGURE: Final = closed(
    "Figure",
    {
        "value": {"type": "number"},
        "delta": {"type": "number", "description": "what it is more than in as many days before"},
    },
    *("value", "delta"),
)
SAVINGS: Final = closed("Savings", dict.fromkeys(_SAVINGS_FIGURES, _FIGURE), *_SAVINGS_FIGURES)
_SAVED: Final[dict[str, Schema]] = {
    "messagesTranslated": _COUNT,
    "averageBytesReducedPerMessage": {"type": "number"},
    "bytesSaved": {"type": "integer", "description": "JSON less payload; below 0 if the JSON is shorter"},
}
DAY: Final[Schema] = {"type": "string", "format": "date", "description": "a day, UTC"}
SAVINGS_BY_DAY: Final = closed(
    "SavingsByDay", {"items": array_of(closed("SavingsOfDay", {"day": DAY, **_SAVED}, "day", *_SAVED))}, "items"
)
SAVINGS_BY_DEVICE: Final = closed(
    "SavingsByDevice",
    {"items": array_of(closed("SavingsOfDevice", {"iccid": {"type": "string"}, **_SAVED}, "iccid", *_SAVED))},
    "items",
)
