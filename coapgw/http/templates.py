"""The operations on Energy Saver templates: kept, tried, and what they save."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from coapgw.energysaver.savings import energy_saved_percent
from coapgw.energysaver.template import parse_template
from coapgw.http import schemas
from coapgw.http.device_json import time_text
from coapgw.http.operations import Answered, Call, Operation, Parameter, Reply, json_reply
from coapgw.http.refusals import Mistake, RequestInvalid
from coapgw.interfaces import ISavings, ITemplates
from coapgw.model import PROTOCOL, Saved, StoredTemplate, TemplateStatus

RANGE_DEFAULT: Final = 7
DAY_SECONDS: Final = 86_400

_TEMPLATES: Final = "/v1/optimize/templates"
_ONE: Final = f"{_TEMPLATES}/{{id}}"
_SAVINGS: Final = "/v1/optimize/savings"


class TemplateOperations:
    """What the API does with templates; every call blocks."""

    def __init__(self, templates: ITemplates, savings: ISavings) -> None:
        """Keep *templates*, and tell of *savings*."""
        self._templates = templates
        self._savings = savings

    def operations(self) -> Sequence[Operation]:
        """Return the rows of the table."""
        template = Answered("the template", schemas.TEMPLATE)
        one = (Parameter("id", {"type": "string"}, "the template"),)
        days = Parameter("range", schemas.RANGE, f"days, today (UTC) included; {RANGE_DEFAULT} if absent")
        return (
            Operation(
                *("GET", _TEMPLATES, "listTemplates", "List templates, the oldest first", self.list),
                answered={200: Answered("every template", schemas.TEMPLATES)},
            ),
            Operation(
                *("POST", _TEMPLATES, "addTemplate", "Keep a template", self.add),
                answered={201: template},
                refused=(409, 422),
                body=schemas.NEW_TEMPLATE,
            ),
            Operation(
                *("GET", _ONE, "getTemplate", "Show a template", self.get),
                answered={200: template},
                refused=(404,),
                path_parameters=one,
            ),
            Operation(
                *("PATCH", _ONE, "changeTemplate", "Change a template, or switch it on or off", self.change),
                answered={204: Answered("it is changed")},
                refused=(404, 409, 422),
                path_parameters=one,
                body=schemas.TEMPLATE_CHANGES,
            ),
            Operation(
                *("DELETE", _ONE, "removeTemplate", "Forget a template", self.remove),
                answered={204: Answered("it is gone")},
                refused=(404,),
                path_parameters=one,
            ),
            Operation(
                *("POST", "/v1/optimize/messages/test", "tryTemplate", "Translate a payload", self.attempt),
                answered={200: Answered("the translation", schemas.TRANSLATION)},
                refused=(422,),
                body=schemas.TEMPLATE_TRIAL,
            ),
            Operation(
                *("GET", _SAVINGS, "getSavings", "Show what translating saved", self.report),
                answered={200: Answered("sums", schemas.SAVINGS)},
                query=(days, Parameter("iccid", schemas.ICCID, "of this device only")),
            ),
            Operation(
                *(
                    "GET",
                    f"{_SAVINGS}/days",
                    "getSavingsByDay",
                    "Show what each day saved",
                    self.by_day,
                ),
                answered={200: Answered("the days, the last first", schemas.SAVINGS_BY_DAY)},
                query=(days,),
            ),
            Operation(
                *("GET", f"{_SAVINGS}/devices", "getSavingsByDevice", "Show which devices saved most", self.by_device),
                answered={200: Answered("the devices, the best first", schemas.SAVINGS_BY_DEVICE)},
                query=(
                    days,
                    Parameter(
                        "limit",
                        {"type": "integer", "minimum": 1, "maximum": schemas.PAGE_LIMIT},
                        f"devices at most; {schemas.PAGE_DEFAULT} if absent",
                    ),
                ),
            ),
        )

    def list(self, call: Call) -> Reply:
        """Show every template."""
        return json_reply({"items": [template_json(template) for template in self._templates.list()]})

    def add(self, call: Call) -> Reply:
        """Keep a template."""
        wanted = call.body
        status = TemplateStatus(wanted.get("status", TemplateStatus.INACTIVE.value))
        new = self._templates.add(wanted["name"], wanted["template"], status)
        return json_reply(template_json(new), 201, ("Location", f"{_TEMPLATES}/{new.template_id}"))

    def get(self, call: Call) -> Reply:
        """Show one template."""
        return json_reply(template_json(self._templates.get(call.path["id"])))

    def change(self, call: Call) -> Reply:
        """Change a template."""
        wanted = call.body
        status = TemplateStatus(wanted["status"]) if "status" in wanted else None
        self._templates.update(call.path["id"], wanted.get("name"), wanted.get("template"), status)
        return Reply(204)

    def remove(self, call: Call) -> Reply:
        """Forget a template; if it was active, payloads are forwarded as they are from now on."""
        self._templates.remove(call.path["id"])
        return Reply(204)

    def attempt(self, call: Call) -> Reply:
        """Translate one payload with a template that need not be kept here."""
        template = parse_template(call.body["template"])
        payload = _decoded(call.body["payload"])
        return json_reply(translation_json(payload, template.translate(payload).document))

    def report(self, call: Call) -> Reply:
        """Show what a number of days saved."""
        now, before = self._savings.report(call.query.get("range", RANGE_DEFAULT), call.query.get("iccid"))
        figures, older = _figures(now), _figures(before)
        return json_reply(
            {name: {"value": value, "delta": round(value - older[name], 2)} for name, value in figures.items()}
        )

    def by_day(self, call: Call) -> Reply:
        """Show what each day saved."""
        found = self._savings.by_day(call.query.get("range", RANGE_DEFAULT))
        return json_reply({"items": [{"day": _day_text(day), **_figures(saved)} for day, saved in found]})

    def by_device(self, call: Call) -> Reply:
        """Show which devices saved most."""
        days, limit = call.query.get("range", RANGE_DEFAULT), call.query.get("limit", schemas.PAGE_DEFAULT)
        found = self._savings.by_device(days, limit)
        return json_reply({"items": [{"iccid": iccid, **_figures(saved)} for iccid, saved in found]})


def template_json(template: StoredTemplate) -> dict[str, Any]:
    """Return a template as JSON shows it, here and on the command line."""
    return {
        "id": template.template_id,
        "name": template.name,
        "template": template.text,
        "protocolFilter": [PROTOCOL],
        "status": template.status.value,
        "createdAt": time_text(template.created_at),
        "updatedAt": time_text(template.updated_at),
    }


def translation_json(payload: bytes, document: bytes) -> dict[str, Any]:
    """Return what became of a payload as JSON shows it, here and on the command line (PRODUCT section 8)."""
    return {
        "translatedPayload": document.decode(),
        "reducedBytes": len(document) - len(payload),
        "energyUsageReduction": energy_saved_percent(len(payload), len(document)),
    }


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestInvalid([Mistake("payload", "is no base64 (RFC 4648 section 4)")]) from None


def _figures(saved: Saved) -> dict[str, int | float]:
    reduced = saved.document_bytes - saved.payload_bytes
    return {
        "messagesTranslated": saved.messages,
        "averageBytesReducedPerMessage": round(reduced / saved.messages, 2) if saved.messages else 0,
        "bytesSaved": reduced,
    }


def _day_text(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_SECONDS, UTC).date().isoformat()


__all__ = ["TemplateOperations", "template_json", "translation_json"]
