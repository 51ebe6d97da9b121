"""JSON bodies of requests and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coapgw import json_text
from coapgw.http.refusals import Mistake, RequestInvalid
from coapgw.json_text import Json, JsonInvalid


def parse_json(data: bytes) -> Json:
    """Return what *data* says.  Raises RequestInvalid, whatever the bytes are."""
    try:
        return json_text.parse_json(data)
    except JsonInvalid as invalid:
        raise RequestInvalid([Mistake("", invalid.reason)]) from None


def write_json(value: Json | Mapping[str, Any]) -> bytes:
    """Return *value* as ASCII JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
