"""Templates in the registry, the active one in memory, and counts of what translating came to."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from coapgw.energysaver.template import TemplateInvalid
from coapgw.errors import StorageError, TemplateConflict, TemplateNotFound, TemplateRefused
from coapgw.interfaces import ISavings, ITemplates, ITranslator
from coapgw.model import Saved, Savings, TemplateStatus
from coapgw.storage.database import RegistryDatabase
from coapgw.storage.savings import DAY_MS, KEPT_DAYS, TranslationCounts
from coapgw.storage.templates import ActiveTemplate, TemplateRegistry
from tests.unit.registries import START_MS, iccid, registry_in

ONE = '{"sense":[{"asset":"t","value":{"byte":0,"type":"uint"}}]}'
OTHER = '{"sense":[{"asset":"h","value":{"byte":0,"type":"uint"}}]}'
ACTIVE, INACTIVE = TemplateStatus.ACTIVE, TemplateStatus.INACTIVE


@pytest.fixture
def database(tmp_path: Path) -> Iterator[RegistryDatabase]:
    with registry_in(tmp_path) as opened:
        yield opened.database


@pytest.fixture
def templates(database: RegistryDatabase) -> TemplateRegistry:
    clock = itertools.count(START_MS, 1000)
    return TemplateRegistry(database, lambda: next(clock))


class Translating:
    """What the uplink translates with."""

    def __init__(self, database: RegistryDatabase) -> None:
        self.told: list[ITranslator | None] = []
        self.active = ActiveTemplate(database, self.told.append)
        self.active.load()

    def look(self) -> None:
        found = self.active.read()
        if found is not None:
            self.active.apply(found)

    def document(self, payload: bytes) -> bytes:
        (*_, translator) = self.told
        assert translator is not None
        return translator.translate(payload).document


# ---------------------------------------------------------------------- what is kept


def test_registry_is_what_it_says(templates: TemplateRegistry, database: RegistryDatabase) -> None:
    assert verifyObject(ITemplates, templates)
    assert verifyObject(ISavings, TranslationCounts(database, lambda: 0))


def test_templates_are_kept_in_the_order_they_came(templates: TemplateRegistry) -> None:
    first = templates.add("one", ONE, INACTIVE)
    second = templates.add("one", OTHER, ACTIVE)  # names are for people
    assert templates.list() == [first, second]
    assert templates.get(first.template_id) == first
    templates.remove(first.template_id)
    assert templates.list() == [second]


def test_template_is_changed_field_by_field(templates: TemplateRegistry) -> None:
    kept = templates.add("one", ONE, INACTIVE)
    changed = templates.update(kept.template_id, name="two")
    assert (changed.name, changed.text, changed.status) == ("two", ONE, INACTIVE)
    assert changed.updated_at > kept.updated_at == kept.created_at == changed.created_at
    assert templates.update(kept.template_id, text=OTHER, status=ACTIVE).text == OTHER
    assert templates.get(kept.template_id).status is ACTIVE
    templates.update(kept.template_id, status=ACTIVE)  # it is already


def test_second_active_one_is_refused_and_nothing_changes(templates: TemplateRegistry) -> None:
    active = templates.add("one", ONE, ACTIVE)
    other = templates.add("two", ONE, INACTIVE)
    with pytest.raises(TemplateConflict, match="'one' is active"):
        templates.add("three", ONE, ACTIVE)
    with pytest.raises(TemplateConflict):
        templates.update(other.template_id, name="new name", status=ACTIVE)
    assert templates.list() == [active, other]


@pytest.mark.parametrize("text", ["", "{}", "no", '{"sense":1}', "[" * 60_000, '{"sense":[{"asset":""}]}', "\ud800"])
def test_what_is_no_template_is_never_kept(templates: TemplateRegistry, text: str) -> None:
    kept = templates.add("one", ONE, ACTIVE)
    for attempt in (
        lambda: templates.add("x", text, INACTIVE),
        lambda: templates.update(kept.template_id, text=text),
        lambda: templates.activate("one", text),
    ):
        with pytest.raises(TemplateInvalid):
            attempt()
    assert templates.list() == [kept]


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\x00"])
def test_what_is_no_name_is_refused(templates: TemplateRegistry, name: str) -> None:
    with pytest.raises(TemplateRefused, match="name: a name has 1 to 64"):
        templates.add(name, ONE, INACTIVE)
    assert templates.list() == []


@pytest.mark.parametrize("template_id", ["", "nobody", "\x00", "x" * 1000, "'; DROP TABLE templates"])
def test_id_of_nobody_is_told(templates: TemplateRegistry, template_id: str) -> None:
    for attempt in (templates.get, templates.remove, templates.update):
        with pytest.raises(TemplateNotFound):
            attempt(template_id)


def test_activation_takes_the_place_of_what_was_active(templates: TemplateRegistry) -> None:
    first = templates.activate("one", ONE)
    second = templates.activate("two", OTHER)
    assert [one.status for one in templates.list()] == [INACTIVE, ACTIVE]
    again = templates.activate("one", OTHER)
    assert (again.template_id, again.text, again.created_at) == (first.template_id, OTHER, first.created_at)
    assert [one.status for one in templates.list()] == [ACTIVE, INACTIVE]
    assert templates.deactivate() is not None
    assert templates.deactivate() is None
    assert templates.get(second.template_id).status is INACTIVE


# ---------------------------------------------------------------------- what translates


def test_active_template_follows_the_registry(templates: TemplateRegistry, database: RegistryDatabase) -> None:
    translating = Translating(database)
    assert translating.told == []
    translating.look()
    templates.add("idle", OTHER, INACTIVE)
    translating.look()
    assert translating.told == []
    templates.activate("one", ONE)
    translating.look()
    assert translating.document(b"\x05") == b'{"t":5}'
    templates.activate("one", OTHER)  # the same id, another text
    translating.look()
    assert translating.document(b"\x05") == b'{"h":5}'
    templates.deactivate()
    translating.look()
    assert translating.told[-1] is None
    assert len(translating.told) == 3


def test_active_template_is_there_at_the_start(templates: TemplateRegistry, database: RegistryDatabase) -> None:
    templates.activate("one", ONE)
    assert Translating(database).document(b"\x07") == b'{"t":7}'


def test_changes_elsewhere_do_not_parse_the_template_again(
    templates: TemplateRegistry, database: RegistryDatabase
) -> None:
    templates.activate("one", ONE)
    translating = Translating(database)
    templates.add("two", OTHER, INACTIVE)
    found = translating.active.read()
    assert found is not None
    assert found.template is None
    translating.active.apply(found)
    assert len(translating.told) == 1


def test_text_that_this_version_cannot_read_is_logged_once_and_changes_nothing(
    templates: TemplateRegistry, database: RegistryDatabase, tmp_path: Path
) -> None:
    kept = templates.activate("one", ONE)
    translating = Translating(database)
    connection = sqlite3.connect(tmp_path / "registry.db")
    connection.execute("UPDATE templates SET text = '{}', version = version + 1")
    connection.execute("UPDATE registry_version SET n = n + 1")
    connection.commit()
    connection.close()
    with capturedLogs() as logged:
        translating.look()
        translating.look()
    (line,) = logged
    assert line["id"] == kept.template_id
    assert translating.document(b"\x05") == b'{"t":5}'


# ---------------------------------------------------------------------- what it came to


class Counting:
    """Counts of which the test says what day it is."""

    def __init__(self, database: RegistryDatabase) -> None:
        self.now = START_MS
        self.counts = TranslationCounts(database, lambda: self.now)

    def write(self) -> None:
        self.counts.write(self.counts.take())


@pytest.fixture
def counting(database: RegistryDatabase) -> Counting:
    return Counting(database)


def test_counts_are_the_same_before_and_after_they_are_written(counting: Counting) -> None:
    for number, days_ago in ((1, 0), (1, 0), (2, 0), (1, 6), (1, 7), (2, 13), (1, 14)):
        counting.counts.count(iccid(number), START_MS - days_ago * DAY_MS, 5, 25)
    before = [
        counting.counts.report(7),
        counting.counts.report(1, iccid(1)),
        counting.counts.by_day(7),
        counting.counts.by_device(30, 10),
    ]
    assert before[0] == Savings(Saved(4, 20, 100), Saved(2, 10, 50))
    assert before[1] == Savings(Saved(2, 10, 50), Saved())
    today = START_MS // DAY_MS
    days = {today: Saved(3, 15, 75)} | {today - ago: Saved() for ago in range(1, 6)} | {today - 6: Saved(1, 5, 25)}
    assert before[2] == list(days.items())
    assert before[3] == [(iccid(1), Saved(5, 25, 125)), (iccid(2), Saved(2, 10, 50))]
    counting.write()
    assert [
        counting.counts.report(7),
        counting.counts.report(1, iccid(1)),
        counting.counts.by_day(7),
        counting.counts.by_device(30, 10),
    ] == before


def test_counts_add_up_on_disk(counting: Counting, database: RegistryDatabase) -> None:
    for _ in range(3):
        for number in range(1200):  # more than one statement takes
            counting.counts.count(iccid(number), START_MS, 1, 10)
        counting.write()
    assert TranslationCounts(database, lambda: START_MS).report(1).now == Saved(3600, 3600, 36000)
    assert counting.counts.by_device(1, 2) == [(iccid(0), Saved(3, 3, 30)), (iccid(1), Saved(3, 3, 30))]


def test_counts_that_could_not_be_written_are_not_lost(counting: Counting, database: RegistryDatabase) -> None:
    counting.counts.count(iccid(1), START_MS, 1, 10)
    taken = counting.counts.take()
    counting.counts.count(iccid(1), START_MS, 1, 10)
    connection = sqlite3.connect(database._engine.url.database or "")
    connection.execute("ALTER TABLE translations RENAME TO away")
    with pytest.raises(StorageError):
        counting.counts.write(taken)
    connection.execute("ALTER TABLE away RENAME TO translations")
    connection.close()
    counting.counts.put_back()
    assert counting.counts.report(1).now == Saved(2, 2, 20)
    counting.write()
    assert counting.counts.report(1).now == Saved(2, 2, 20)


def test_old_days_are_forgotten(counting: Counting) -> None:
    counting.counts.count(iccid(1), START_MS, 1, 10)
    counting.write()
    counting.now += (KEPT_DAYS + 1) * DAY_MS
    counting.counts.count(iccid(1), counting.now, 1, 10)
    counting.write()
    counting.now -= (KEPT_DAYS + 1) * DAY_MS
    assert counting.counts.report(1).now == Saved()
