"""The durable list of Energy Saver templates, and the one that is active as the message path sees it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

import attrs
from sqlalchemy import Connection, delete, insert, select, update
from twisted.logger import Logger
from zope.interface import implementer

from coapgw.energysaver.template import Template, TemplateInvalid, parse_template
from coapgw.errors import DeviceRefused, TemplateConflict, TemplateNotFound, TemplateRefused
from coapgw.interfaces import ITemplates, ITranslator
from coapgw.model import StoredTemplate, TemplateStatus, checked_name
from coapgw.storage.database import RegistryDatabase
from coapgw.storage.tables import registry_version, templates

_COLUMNS: Final = (
    *(templates.c.id, templates.c.name, templates.c.text),
    *(templates.c.status, templates.c.created_at, templates.c.updated_at),
)
_IS_ACTIVE: Final = templates.c.status == TemplateStatus.ACTIVE.value


@implementer(ITemplates)
class TemplateRegistry:
    """The templates in the registry's database; every call may block, any thread may call.

    Nothing that is no template is ever stored.

    Args:
        now_ms: milliseconds since the epoch.
    """

    def __init__(self, database: RegistryDatabase, now_ms: Callable[[], int]) -> None:
        """Work on *database*."""
        self._database = database
        self._now_ms = now_ms

    def add(self, name: str, text: str, status: TemplateStatus) -> StoredTemplate:
        """Store a new template."""
        _check(name, text)
        now = self._now_ms()
        new = StoredTemplate(str(uuid.uuid4()), name, text, status, now, now)
        with self._database.writing() as (connection, version):
            if status is TemplateStatus.ACTIVE:
                _expect_none_active(connection, but=new.template_id)
            _insert(connection, new, version)
        return new

    def list(self) -> list[StoredTemplate]:
        """Return every template, the oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(select(*_COLUMNS).order_by(templates.c.created_at, templates.c.id))
            return [_stored(row) for row in rows]

    def get(self, template_id: str) -> StoredTemplate:
        """Return one."""
        with self._database.reading() as connection:
            return _found(connection, template_id)

    def update(
        self, template_id: str, name: str | None = None, text: str | None = None, status: TemplateStatus | None = None
    ) -> StoredTemplate:
        """Change what is not None."""
        _check(name, text)
        given = {"name": name, "text": text, "status": status}
        with self._database.writing() as (connection, version):
            old = _found(connection, template_id)
            if status is TemplateStatus.ACTIVE:
                _expect_none_active(connection, but=template_id)
            changes: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
            new = attrs.evolve(old, **changes, updated_at=self._now_ms())
            _write(connection, new, version)
        return new

    def remove(self, template_id: str) -> None:
        """Forget one."""
        with self._database.writing() as (connection, _):
            _found(connection, template_id)
            connection.execute(delete(templates).where(templates.c.id == template_id))

    def activate(self, name: str, text: str) -> StoredTemplate:
        """Make this the active template, in place of the one that was and of what had this name."""
        _check(name, text)
        now = self._now_ms()
        with self._database.writing() as (connection, version):
            inactive = {"status": TemplateStatus.INACTIVE.value, "updated_at": now, "version": version}
            # The one that was active comes first: if it has this name, it is the one that is replaced.
            called = select(*_COLUMNS).where(templates.c.name == name).order_by(templates.c.status, templates.c.id)
            row = connection.execute(called).first()
            connection.execute(update(templates).where(_IS_ACTIVE).values(**inactive))
            if row is None:
                new = StoredTemplate(str(uuid.uuid4()), name, text, TemplateStatus.ACTIVE, now, now)
                _insert(connection, new, version)
            else:
                new = attrs.evolve(_stored(row), text=text, status=TemplateStatus.ACTIVE, updated_at=now)
                _write(connection, new, version)
        return new

    def deactivate(self) -> StoredTemplate | None:
        """Have no active template; return the one that was, None if none was."""
        with self._database.writing() as (connection, version):
            row = connection.execute(select(*_COLUMNS).where(_IS_ACTIVE)).first()
            if row is None:
                return None
            new = attrs.evolve(_stored(row), status=TemplateStatus.INACTIVE, updated_at=self._now_ms())
            _write(connection, new, version)
        return new


def _check(name: str | None, text: str | None) -> None:
    """Raise TemplateRefused or TemplateInvalid for what cannot be stored."""
    if name is not None:
        try:
            checked_name(name)
        except DeviceRefused as refused:
            raise TemplateRefused("name", refused.reason) from None
    if text is not None:
        parse_template(text)


def _expect_none_active(connection: Connection, but: str) -> None:
    """Raise TemplateConflict if another template than *but* is active."""
    name = connection.execute(select(templates.c.name).where(_IS_ACTIVE, templates.c.id != but)).scalar()
    if name is not None:
        raise TemplateConflict("status", f"template {name!r} is active; one can be at a time")


def _found(connection: Connection, template_id: str) -> StoredTemplate:
    """Return the template with this id.  Raises TemplateNotFound."""
    if template_id.isprintable():  # nothing stored is otherwise, and not every database can be asked
        row = connection.execute(select(*_COLUMNS).where(templates.c.id == template_id)).first()
        if row is not None:
            return _stored(row)
    raise TemplateNotFound(template_id)


def _stored(row: Any) -> StoredTemplate:
    return StoredTemplate(row.id, row.name, row.text, TemplateStatus(row.status), row.created_at, row.updated_at)


def _values(template: StoredTemplate, version: int) -> dict[str, str | int]:
    return {
        "name": template.name,
        "text": template.text,
        "status": template.status.value,
        "created_at": template.created_at,
        "updated_at": template.updated_at,
        "version": version,
    }


def _insert(connection: Connection, template: StoredTemplate, version: int) -> None:
    connection.execute(insert(templates).values(id=template.template_id, **_values(template, version)))


def _write(connection: Connection, template: StoredTemplate, version: int) -> None:
    changed = update(templates).where(templates.c.id == template.template_id)
    connection.execute(changed.values(**_values(template, version)))


@attrs.frozen
class ActiveChange:
    """What a look at the registry found: the template that is active now, None if none is."""

    registry_version: int
    row: tuple[str, int] | None
    template: Template | None


class ActiveTemplate:
    """The active template, in memory; ``follow`` keeps it up to date.

    Args:
        changed: told of every other template, in the reactor's thread; None is none.
    """

    _log = Logger()

    def __init__(self, database: RegistryDatabase, changed: Callable[[ITranslator | None], None]) -> None:
        """Begin without a template."""
        self._database = database
        self._changed = changed
        self._version: int | None = None
        self._row: tuple[str, int] | None = None  # id and version of the one that is active

    def load(self) -> None:
        """Read what the registry has; blocks, so it is for the start.  Raises StorageError."""
        found = self.read()
        if found is not None:
            self.apply(found)

    def read(self) -> ActiveChange | None:
        """Return what ``apply`` has not seen yet; blocks, may be called from another thread.  Raises StorageError."""
        with self._database.reading() as connection:
            version: int = connection.execute(select(registry_version.c.n)).scalar_one()
            if version == self._version:
                return None
            wanted = select(templates.c.id, templates.c.version, templates.c.text).where(_IS_ACTIVE)
            active = connection.execute(wanted).first()
        if active is None:
            return ActiveChange(version, None, None)
        row = (active.id, active.version)
        if row == self._row:
            return ActiveChange(version, row, None)
        try:
            return ActiveChange(version, row, parse_template(active.text))
        except TemplateInvalid as invalid:  # of a newer version of coapgw, or written past us
            self._log.error(
                "the active template {id} is none for this version, payloads go on as before: {why}",
                id=active.id,
                why=invalid.mistakes[0],
            )
            return ActiveChange(version, row, None)

    def apply(self, found: ActiveChange) -> None:
        """Take in what ``read`` found."""
        self._version = found.registry_version
        if found.row == self._row:
            return
        self._row = found.row
        if found.row is None or found.template is not None:
            self._changed(found.template)


__all__ = ["ActiveTemplate", "TemplateRegistry"]
