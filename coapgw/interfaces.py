"""Every seam of coapgw, as zope.interface interfaces: what may raise, what may block, who calls whom.

Unless a method says otherwise it is called from the reactor's thread, returns at once and raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from coapgw.errors import DeviceNotFound, KeyRefused
from coapgw.model import (
    Credential,
    Device,
    DeviceKey,
    Introduction,
    KeyFormat,
    Outgoing,
    Saved,
    Savings,
    Spooled,
    StoredTemplate,
    TemplateStatus,
    Translated,
    WrittenKey,
)

Answer: TypeAlias = "Callable[[Exception | None], None]"
"""Told once what became of a message: None, or the error that kept us from keeping our promise."""


class IDeviceDirectory(Interface):
    """The memory image of the registry that the message path reads."""

    generation: int = Attribute("grows whenever any device changed; what was looked up before may be stale")

    def by_address(ip: str) -> Device | None:
        """Return the device with this source address (canonical text form), whatever its status."""

    def by_iccid(iccid: str) -> Device | None:
        """Return the device with this ICCID, whatever its status."""


class IDeviceRegistry(Interface):
    """The durable list of devices.  Every call may block: the command line and worker threads use it.

    All raise StorageError if the database fails.
    """

    def add(device: Device) -> Device:
        """Store a new device; return it with its times.  Raises DeviceRefused, DeviceExists."""

    def update(iccid: str, changes: dict[str, object]) -> Device:
        """Change the named fields of a device; None empties one.

        Raises DeviceRefused, DeviceExists, DeviceNotFound.
        """

    def remove(iccid: str) -> None:
        """Forget a device.  Raises DeviceNotFound."""

    def get(iccid: str) -> Device:
        """Return one device.  Raises DeviceNotFound."""

    def list(limit: int, after: str | None = None, status: str | None = None, q: str | None = None) -> list[Device]:
        """Return up to *limit* devices in the order of their ICCIDs, from behind the ICCID *after*.

        *q* is part of an ICCID, IMSI, address or name.
        """

    def import_all(devices: Iterable[Device]) -> int:
        """Add many devices in one transaction, or none of them.  Raises DeviceRefused, DeviceExists."""


class IDeviceKeys(Interface):
    """The durable keys of devices.  Every call may block, like those of IDeviceRegistry.

    All raise StorageError if the database or the file that unseals keys fails.
    """

    def get(iccid: str) -> DeviceKey:
        """Return a device's key.  Raises DeviceNotFound, KeyNotFound."""

    def set(iccid: str, written: str, key_format: KeyFormat) -> DeviceKey:
        """Give a device the key that a person has chosen, as *written* in *key_format*; return it.

        Raises DeviceNotFound, KeyRefused.
        """

    def set_all(wanted: Iterable[WrittenKey]) -> Sequence[DeviceKey | DeviceNotFound | KeyRefused]:
        """Give many devices the keys that a person has chosen, in one transaction.

        Returns, in the order of *wanted*, the key of each device or what is wrong with that item; the others are
        stored.  With StorageError none is.
        """

    def rotate(iccid: str) -> DeviceKey:
        """Give a device a new generated key, whoever chose the old one.  Raises DeviceNotFound."""

    def bootstrap(iccid: str, rotate_after_seconds: int) -> DeviceKey:
        """Return the key that a device which asks for it gets, stored before this returns.

        None there: one is generated.  One that a person set is returned.  Another one is replaced if the device's last
        call was *rotate_after_seconds* ago or more.  Every call counts as the last.  Raises DeviceNotFound.
        """


class ILastSeen(Interface):
    """When devices were last heard."""

    def of(devices: Sequence[Device]) -> dict[str, int]:
        """Return, by ICCID, when the last message of each device arrived, in milliseconds since the epoch.

        Devices that were not heard in this life of theirs are left out.  May block.  Raises StorageError.
        """


class ICredentials(Interface):
    """The memory image of active devices' keys, for DTLS."""

    def credential(identity: bytes) -> Credential | None:
        """Return what the active device with this PSK identity (its ICCID) has to prove; None if there is none."""

    def is_current(iccid: str, serial: int) -> bool:
        """Return whether the device is active and its key still is the one with this serial."""


class ISpool(Interface):
    """Messages on their way to MQTT, on disk."""

    def append(
        message: Outgoing,
        stored: Answer | None,
        introduction: Introduction | None = None,
        event: Outgoing | None = None,
    ) -> int:
        """Take a message to be committed with the next group; return its place.

        *stored* is called once: with None when the commit is on disk, or with a StorageError when it failed, in which
        case nothing of it will be published.  With an *introduction*, its lifecycle event takes the place before the
        message's, in the same commit; an *event* of the message takes the one behind it.  Raises SpoolFull or
        SpoolFailing, in which case *stored* is not called.
        """

    def is_introduced(iccid: str, born: int) -> bool:
        """Return whether this life of the device has had its introduction (stored, or waiting to be)."""

    def follow(take: Callable[[Sequence[Spooled]], None]) -> None:
        """Hand every committed group to *take* from now on, in the order of places.

        It comes before the *stored* calls of the group's messages.
        """

    def read(after: int, limit: int) -> Deferred[list[Spooled]]:
        """Read up to *limit* committed messages from behind the place *after*, lowest first.

        Fails with StorageError.
        """

    def settle(places: Iterable[int]) -> None:
        """Delete messages that need not be sent again, soon, with the next commit."""

    def set_aside(message: Spooled, reason: str) -> None:
        """Keep a message that no broker takes as a dead letter, soon, with the next commit; it is not read again."""

    def last_place() -> int:
        """Return the highest place ever given, 0 before the first."""


class ITranslator(Interface):
    """Turns devices' payloads into JSON."""

    def translate(payload: bytes) -> Translated:
        """Return a payload as JSON.  Raises Untranslatable if it does not fit."""


class ITemplates(Interface):
    """The durable list of Energy Saver templates.  Every call may block, like those of IDeviceRegistry.

    All raise StorageError if the database fails.  At most one template is active.
    """

    def add(name: str, text: str, status: TemplateStatus) -> StoredTemplate:
        """Store a new template.  Raises TemplateRefused, TemplateConflict, TemplateInvalid (``energysaver``)."""

    def list() -> list[StoredTemplate]:
        """Return every template, the oldest first."""

    def get(template_id: str) -> StoredTemplate:
        """Return one.  Raises TemplateNotFound."""

    def update(
        template_id: str, name: str | None = None, text: str | None = None, status: TemplateStatus | None = None
    ) -> StoredTemplate:
        """Change what is not None.  Raises like ``add``, and TemplateNotFound."""

    def remove(template_id: str) -> None:
        """Forget one.  Raises TemplateNotFound."""

    def activate(name: str, text: str) -> StoredTemplate:
        """Make this the active template, in place of the one that was and of what had this name.  Raises like add."""


class ISavings(Interface):
    """What translating came to, by day (UTC) and device.  Every call may block, and raises StorageError."""

    def report(days: int, iccid: str | None = None) -> Savings:
        """Return the sums of the last so many *days*, today included, and of as many before; of all devices, or one."""

    def by_day(days: int) -> Sequence[tuple[int, Saved]]:
        """Return the sums of each of the last so many *days* (numbered from the epoch), the last first."""

    def by_device(days: int, limit: int) -> Sequence[tuple[str, Saved]]:
        """Return the devices (ICCIDs) that saved most in the last so many *days*, at most *limit*, the best first."""


class IDelivery(Interface):
    """The publisher's side of a broker link: told how its messages fare."""

    def accepted(place: int) -> None:
        """The broker has taken responsibility for a message."""

    def settled(place: int) -> None:
        """Nobody needs this message from us any more: it may leave the spool."""

    def refused(message: Spooled, reason: str) -> None:
        """The broker will not take a message, for a *reason* an operator can read: it must not stop the others."""

    def resume() -> None:
        """The link is ready for more after it was not."""


class IBrokerLink(Interface):
    """Where the publisher delivers: the embedded broker, or a bridge to another one."""

    def deliver(message: Spooled) -> None:
        """Publish at QoS 1, not retained.  Only while *ready*.

        ``IDelivery.accepted`` and ``settled`` may be called from inside.
        """

    def ready() -> bool:
        """Return whether *deliver* may be called now; when this turns True again, ``IDelivery.resume`` is called."""


class StoredSession(NamedTuple):
    """What is remembered of an MQTT client: *persistent* is "clean session 0"; *subscriptions* are (filter, QoS)."""

    client_id: str
    user: str | None
    persistent: bool
    subscriptions: Sequence[tuple[str, int]]


class ISessionStore(Interface):
    """Remembers which MQTT clients have which subscriptions over a restart."""

    def load() -> Sequence[StoredSession]:
        """Return every remembered session.  May block; called once, at start."""

    def save(session: StoredSession) -> None:
        """Remember a session, in place of what was known of its client; written soon, in order."""

    def forget(client_id: str) -> None:
        """Forget a session; written soon, in order."""


__all__ = [
    "Answer",
    "IBrokerLink",
    "ICredentials",
    "IDelivery",
    "IDeviceDirectory",
    "IDeviceKeys",
    "IDeviceRegistry",
    "ILastSeen",
    "ISavings",
    "ISessionStore",
    "ISpool",
    "ITemplates",
    "ITranslator",
    "StoredSession",
]
