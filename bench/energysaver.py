"""Measure translating payloads: ``python bench/energysaver.py``.  CPU seconds of this process, best of some rounds.

Beside it the same templates walked by a straightforward interpreter, which looks into the template's dictionaries for
every message, as one would write it first.
"""

from __future__ import annotations

import argparse
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from report import write_block

from coapgw.energysaver.cbor import decode_cbor
from coapgw.energysaver.template import parse_template

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7
SECONDS = 0.3
BLOCK = (
    "<!-- bench-energysaver: begin; `python bench/energysaver.py --write FILE` replaces what follows -->",
    "<!-- bench-energysaver: end -->",
)
_FORMATS = {
    "int": {1: "b", 2: "h", 4: "i", 8: "q"},
    "uint": {1: "B", 2: "H", 4: "I", 8: "Q"},
    "float": {4: "f", 8: "d"},
}


def interpret(template: dict[str, Any], payload: bytes) -> bytes:
    """Return the JSON of a payload, by walking through the template."""
    document: dict[str, Any] = {}
    _walk(template["sense"], payload, document)
    return json.dumps(document, separators=(",", ":")).encode()


def _walk(block: list[Any], payload: bytes, document: dict[str, Any]) -> None:
    for statement in block:
        if isinstance(statement, list):
            _walk(statement, payload, document)
        elif "asset" in statement:
            value = statement["value"]
            *outer, name = statement["asset"].split(".")
            into = document
            for part in outer:
                into = into.setdefault(part, {})
            into[name] = value if isinstance(value, str) else _selected(value, payload)
        elif "switch" in statement:
            found = _selected(statement["switch"], payload)
            for case in statement["on"]:
                if case.get("case") == found or case.get("default"):
                    _walk(case["do"], payload, document)
                    break


def _selected(selector: dict[str, Any], payload: bytes) -> Any:
    length = selector.get("bytelength", 1)
    start = selector["byte"] if "byte" in selector else len(payload) + selector["endbyte"]
    end = len(payload) + selector["endbyte"] if "endbyte" in selector and "byte" in selector else start + length
    if not 0 <= start <= end <= len(payload):
        raise ValueError(f"can't extract [{start}:{end}] from {len(payload)} bytes")
    data, kind = payload[start:end], selector["type"]
    if kind == "boolean":
        return any(data)
    if kind == "string":
        return data.decode()
    if kind == "hex":
        return data.hex()
    order = "<" if selector.get("byteorder") == "little" else ">"
    return struct.unpack(order + _FORMATS[kind][len(data)], data)[0]


def rates(work: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return how often a CPU second each can be done, once a round, all of them in each round."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, act in work.items():
            times, begun = 0, time.process_time()
            while (spent := time.process_time() - begun) < SECONDS:
                for _ in range(500):
                    act()
                times += 500
            found[name].append(times / spent)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure translating payloads.", prog="bench/energysaver.py")
    parser.add_argument("--write", type=Path, metavar="FILE", help="rewrite the marked block of this file")
    options = parser.parse_args()
    cases = {case["name"].split()[0]: case for case in json.loads((ROOT / "tests/data/energysaver.json").read_text())}
    sensors = {case["template"]: case for case in json.loads((ROOT / "tests/data/sensors.json").read_text())}
    work: dict[str, Callable[[], object]] = {}
    for name, title in (("P1", "5 bytes, three values"), ("P7", "11 bytes, nested, a switch")):
        template, payload = cases[name]["template"], bytes.fromhex(cases[name]["payload_hex"])
        one = parse_template(json.dumps(template))
        two = parse_template(json.dumps(_without_unknown(template) | {"version": "2"}))
        work[f"{title}: interpreted"] = lambda template=template, payload=payload: interpret(template, payload)  # type: ignore[misc]
        work[f"{title}: version 1"] = lambda one=one, payload=payload: one.translate(payload)  # type: ignore[misc]
        work[f"{title}: the same as version 2"] = lambda two=two, payload=payload: two.translate(payload)  # type: ignore[misc]
    for name, title in (
        ("dragino-lht65", "11 bytes, bits and calculations"),
        ("elsys-ers", "16 bytes, six values by type"),
    ):
        template = parse_template((ROOT / f"etc/templates/{name}.json").read_text())
        payload = bytes.fromhex(sensors[name]["payload_hex"])
        values = sensors[name]["expected"]
        work[f"{title}: version 2"] = lambda template=template, payload=payload: template.translate(payload)  # type: ignore[misc]
        work[f"{title}: encode"] = lambda template=template, values=values: template.encode(values)  # type: ignore[misc]
    work["CBOR, 8 bytes"] = lambda: decode_cbor(bytes.fromhex("a26161016162820203"))
    found = rates(work)
    lines = ["| | a CPU second |", "| --- | ---: |"]
    lines += [f"| {name} | {median(all_):,.0f} ({min(all_):,.0f}-{max(all_):,.0f}) |" for name, all_ in found.items()]
    text = "\n".join(lines)
    print(text)
    if options.write:
        write_block(options.write, text, BLOCK)


def _without_unknown(template: dict[str, Any]) -> dict[str, Any]:
    """Return a template without the names that version 2 refuses: the published examples have some."""
    known = {"asset", "value", "custom_type", "comment", "switch", "on", "case", "default", "do", "sense", "name"}
    known |= {"byte", "endbyte", "bytelength", "byteorder", "type"}

    def kept(part: Any) -> Any:
        if isinstance(part, list):
            return [kept(item) for item in part]
        if isinstance(part, dict):
            return {name: kept(item) for name, item in part.items() if name in known}
        return part

    cleaned: dict[str, Any] = kept(template)
    return cleaned


if __name__ == "__main__":
    main()
