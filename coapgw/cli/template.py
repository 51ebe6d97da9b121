"""``coapgw template …``: Energy Saver templates, from a file on one's desk to the one that is active."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final

from coapgw.cli.output import Output, read_stdin
from coapgw.config import Config
from coapgw.energysaver.template import TEXT_LIMIT, Template, TemplateInvalid, parse_template
from coapgw.errors import CoapgwError
from coapgw.http.device_json import time_text
from coapgw.http.templates import template_json, translation_json
from coapgw.json_text import JsonInvalid, parse_json
from coapgw.model import NAME_LIMIT, StoredTemplate
from coapgw.storage.database import open_registry
from coapgw.storage.templates import TemplateRegistry

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1


class FileUnreadable(CoapgwError):
    """A file that is not there, or not for us."""


class NotValues(CoapgwError):
    """A text that is no JSON object."""


class NotHexadecimal(CoapgwError):
    """A payload that is no pairs of hexadecimal digits."""


def add_verbs(parser: argparse.ArgumentParser, leaf: argparse.ArgumentParser) -> None:
    """Add the verbs to the *parser* of ``coapgw template``; *leaf* has the options that each of them takes."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, about: str, **how: Callable[..., int]) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=about, description=about, parents=[leaf], allow_abbrev=False)
        made.set_defaults(**how)
        return made

    def file(of: argparse.ArgumentParser) -> None:
        of.add_argument("file", metavar="FILE", help="a template (JSON); - is stdin")

    file(verb("check", "Tell every mistake of a template.", run_alone=check))
    testing = verb("test", "Translate a payload with a template.", run_alone=attempt)
    file(testing)
    testing.add_argument("payload", metavar="HEX", help="hexadecimal digits; blanks and colons are ignored")
    encoding = verb("encode", "Write values as the payload that the template turns into them.", run_alone=encode)
    file(encoding)
    encoding.add_argument("values", metavar="JSON", help="an object")
    verb("schema", "Print the JSON Schema of templates, for editors.", run_alone=schema)
    activating = verb("activate", "Translate every payload with this template from now on.", run=activate)
    file(activating)
    activating.add_argument("--name", metavar="TEXT", help="what it is called; without it, its own name or the file's")
    verb("deactivate", "Forward payloads as they are from now on.", run=deactivate)
    verb("list", "List the templates that are kept.", run=show_list)
    verb("show", "Print a template that is kept.", run=show).add_argument("id", metavar="ID", help="as listed")
    verb("remove", "Forget a template.", run=remove).add_argument("id", metavar="ID")


@contextmanager
def templates_of(config: Config) -> Iterator[TemplateRegistry]:
    """Open the registry for a while.  Raises StorageError."""
    database = open_registry(config.registry.url, config.data)
    try:
        yield TemplateRegistry(database, lambda: time.time_ns() // 1_000_000)
    finally:
        database.close()


def check(asked: argparse.Namespace, output: Output) -> int:
    """Tell every mistake; exit 0 if there is none."""
    try:
        template = parse_template(_read(asked.file))
    except TemplateInvalid as invalid:
        return _told(invalid, asked.file, output)
    output.result([f"{asked.file}: a template"], {"valid": True, "name": template.name, "version": template.version})
    return EXIT_OK


def attempt(asked: argparse.Namespace, output: Output) -> int:
    """Print the JSON that a payload becomes."""
    payload = _payload(asked.payload)
    try:
        template = parse_template(_read(asked.file))
    except TemplateInvalid as invalid:
        return _told(invalid, asked.file, output)
    translated = translation_json(payload, template.translate(payload).document)
    output.result([translated["translatedPayload"]], translated)
    return EXIT_OK


def encode(asked: argparse.Namespace, output: Output) -> int:
    """Print the payload that values are made of.  Raises ValuesDoNotFit."""
    try:
        values = parse_json(asked.values.encode("utf-8", "surrogatepass"))
    except JsonInvalid as invalid:
        raise NotValues(f"JSON: {invalid.reason}") from None
    if not isinstance(values, dict):
        raise NotValues("JSON: values are an object")
    try:
        template = parse_template(_read(asked.file))
    except TemplateInvalid as invalid:
        return _told(invalid, asked.file, output)
    payload = template.encode(values)
    output.result([payload.hex()], {"payload": payload.hex(), "bytes": len(payload)})
    return EXIT_OK


def schema(asked: argparse.Namespace, output: Output) -> int:
    """Print the schema, as the package has it."""
    print(files("coapgw.energysaver").joinpath("schema.json").read_text(encoding="utf-8"), end="")
    return EXIT_OK


def activate(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Make a template the active one; one of the same name is replaced."""
    text = _read(asked.file)
    try:
        template = parse_template(text)
    except TemplateInvalid as invalid:
        return _told(invalid, asked.file, output)
    with templates_of(config) as templates:
        active = templates.activate(asked.name or _name_of(template, asked.file), text.decode())
    output.result([f"{active.name} is active ({active.template_id})"], template_json(active))
    return EXIT_OK


def deactivate(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Have no active template; none there is all right."""
    with templates_of(config) as templates:
        was = templates.deactivate()
    line = "no template was active" if was is None else f"{was.name} is not active any more"
    output.result([line], {"deactivated": None if was is None else was.template_id})
    return EXIT_OK


def show_list(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """List the templates, the oldest first."""
    with templates_of(config) as templates:
        kept = templates.list()
    output.result([_line(template) for template in kept], {"items": [template_json(template) for template in kept]})
    return EXIT_OK


def show(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Print the text of a template.  Raises TemplateNotFound."""
    with templates_of(config) as templates:
        found = templates.get(asked.id)
    output.result([found.text.rstrip("\n")], template_json(found))
    return EXIT_OK


def remove(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Forget a template.  Raises TemplateNotFound."""
    with templates_of(config) as templates:
        templates.remove(asked.id)
    output.result([f"removed {asked.id}"], {"removed": asked.id})
    return EXIT_OK


def _line(template: StoredTemplate) -> str:
    fields = (template.template_id, f"{template.status.value:<8}", time_text(template.updated_at), template.name)
    return "  ".join(fields)


def _read(file: str) -> bytes:
    """Return what is in a file, or as much of it as tells that it is too long.  Raises FileUnreadable."""
    try:
        if file == "-":
            return read_stdin()
        with Path(file).open("rb") as opened:
            return opened.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise FileUnreadable(f"{file}: {error.strerror}") from None


def _payload(written: str) -> bytes:
    """Return the bytes of hexadecimal digits.  Raises NotHexadecimal."""
    digits = re.sub(r"[\s:]", "", written)
    if not re.fullmatch("([0-9A-Fa-f]{2})*", digits):
        raise NotHexadecimal("HEX: a payload is written as pairs of hexadecimal digits, 001a003700")
    return bytes.fromhex(digits)


def _name_of(template: Template, file: str) -> str:
    """Return a name that can be one, for a template that is not given one."""
    own = template.name if template.name is not None else "template" if file == "-" else Path(file).stem
    return "".join(character for character in own if character.isprintable())[:NAME_LIMIT] or "template"


def _told(invalid: TemplateInvalid, file: str, output: Output) -> int:
    """Tell every mistake with its place; to a program as JSON pointers."""
    if output.json:
        mistakes = [{"path": one.path, "message": one.sentence} for one in invalid.mistakes]
        print(json.dumps({"error": str(invalid.mistakes[0]), "valid": False, "mistakes": mistakes}))
    else:
        output.errors([f"{file}: {one}" for one in invalid.mistakes])
    return EXIT_REFUSED
