"""Templates: checked once, with every mistake told; then a function from a payload to a JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from zope.interface import implementer

from coapgw.energysaver.check import check
from coapgw.energysaver.check_2 import check_2
from coapgw.energysaver.encode import ValuesDoNotFit, encode
from coapgw.energysaver.errors import Mistake, PayloadDoesNotFit, TemplateInvalid
from coapgw.energysaver.program import Program
from coapgw.energysaver.program_2 import Program2
from coapgw.energysaver.syntax import Statement
from coapgw.interfaces import ITranslator
from coapgw.json_text import Json, JsonInvalid, parse_json
from coapgw.model import Translated

VERSION_2: Final = "2"
TEXT_LIMIT: Final = 65_536  # bytes of a template: what the management API takes


@implementer(ITranslator)
class Template:
    """A template without mistakes; ``parse_template`` makes it."""

    def __init__(self, text: str, name: str | None, version: str, statements: Sequence[Statement]) -> None:
        """Compile checked *statements*, and keep them with what was written."""
        self.text = text
        self.name = name
        self.version = version
        self._statements = statements
        self._program: Program | Program2 = Program2(statements) if version == VERSION_2 else Program(statements)

    def translate(self, payload: bytes) -> Translated:
        """Return the JSON for a payload.  Raises PayloadDoesNotFit."""
        document, location = self._program(payload)
        return Translated(document.encode(), location)

    def encode(self, values: Mapping[str, Json]) -> bytes:
        """Return a payload that becomes *values*, the other way round.  Raises ValuesDoNotFit."""
        return encode(self._statements, values, lambda payload: parse_json(self.translate(payload).document))


def parse_template(text: str | bytes) -> Template:
    """Return the template that *text* (JSON) is.

    Raises TemplateInvalid with every mistake, each with a JSON pointer to its place.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(data) > TEXT_LIMIT:
        raise TemplateInvalid([Mistake("", f"has {len(data)} bytes; {TEXT_LIMIT} are taken")])
    try:
        written = parse_json(data)
    except JsonInvalid as invalid:
        raise TemplateInvalid([Mistake("", invalid.reason)]) from None
    version = written.get("version") if isinstance(written, dict) else None
    statements = check_2(written) if version == VERSION_2 else check(written)
    assert isinstance(written, dict)
    name = written.get("name")
    return Template(
        data.decode(), name if isinstance(name, str) else None, version if isinstance(version, str) else "1", statements
    )


__all__ = ["Mistake", "PayloadDoesNotFit", "Template", "TemplateInvalid", "ValuesDoNotFit", "parse_template"]
