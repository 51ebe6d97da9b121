"""Devices from a CSV file: a header row that names the columns, then a device a row."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from coapgw.errors import DeviceRefused
from coapgw.model import Device, DeviceStatus, checked_iccid, checked_imsi, checked_ip, checked_name, checked_status

COLUMNS: Final = ("iccid", "ip", "imsi", "name", "status")


@attrs.frozen
class CsvRow:
    """A device and the line (from 1) of the file that it begins on."""

    line: int
    device: Device


class CsvInvalid(Exception):
    """Every mistake of a file, each with its line."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        """Take one finished sentence a mistake, without the name of the file."""
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


def read_devices(data: bytes) -> list[CsvRow]:
    """Return the devices of a CSV file: RFC 4180, UTF-8 with or without BOM, any line ends, empty lines left out.

    Raises CsvInvalid.
    """
    rows: list[CsvRow] = []
    mistakes: list[str] = []
    lines = _records(data)
    _, names = next(lines, (1, []))
    columns = _columns(names)
    for line, cells in lines:
        if len(cells) != len(columns):
            mistakes.append(f"line {line}: {len(cells)} cells, but the header has {len(columns)}")
            continue
        values = dict(zip(columns, cells, strict=True))
        wrong = [f"line {line}: {refusal}" for refusal in _refusals(values)]
        mistakes += wrong
        if not wrong:
            rows.append(CsvRow(line, _device(values)))
    if mistakes:
        raise CsvInvalid(mistakes)
    return rows


def _records(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield the line each record begins on, and its cells, without the spaces around them."""
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CsvInvalid([f"line {line}: not UTF-8"]) from None
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    begins = 1
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if any(cells):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise CsvInvalid([f"line {begins}: {error}"]) from None


def _columns(names: list[str]) -> list[str]:
    """Return the columns of a header; raises CsvInvalid."""
    mistakes = [
        f"line 1: unknown column {name!r}, there are {', '.join(COLUMNS)}" for name in names if name not in COLUMNS
    ]
    mistakes += [f"line 1: column {name!r} is there twice" for name in COLUMNS if names.count(name) > 1]
    if "iccid" not in names:
        mistakes.append("line 1: a header with the column 'iccid' is missing")
    if mistakes:
        raise CsvInvalid(mistakes)
    return names


def _refusals(values: dict[str, str]) -> Iterator[DeviceRefused]:
    """Yield what is wrong with the cells of a device; an empty one is no value, except for the ICCID."""
    checks = {
        "iccid": checked_iccid,
        "ip": checked_ip,
        "imsi": checked_imsi,
        "name": checked_name,
        "status": checked_status,
    }
    for column, value in values.items():
        if value or column == "iccid":
            try:
                checks[column](value)
            except DeviceRefused as refusal:
                yield refusal


def _device(values: dict[str, str]) -> Device:
    given = {column: value or None for column, value in values.items()}
    status = checked_status(given.get("status") or DeviceStatus.ACTIVE.value)
    return Device(values["iccid"], given.get("imsi"), given.get("ip"), given.get("name"), status)
