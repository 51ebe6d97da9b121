"""Every seam of coapgw, as zope.interface interfaces: what may raise, what may block, who calls whom.

Unless a method says otherwise it is called from the reactor's thread, returns at once and raises nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import attrs
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
    WireBytes,
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


class IWireBytes(Interface):
    """What devices sent and were sent."""

    def of(iccid: str) -> WireBytes | None:
        """Return what was counted of a device since the gateway started, None if nothing was."""


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
    """What is remembered of an MQTT client.

    Args:
        user: who it authenticated as; None for anonymous.
        expiry: seconds that the session outlives its connection; 0: not at all, 0xFFFFFFFF: for ever.
        subscriptions: filter, options as SUBSCRIBE has them, subscription identifier or 0.
        expires: when it ends if the client does not come back, seconds since the epoch; None while it is connected.
    """

    client_id: str
    user: str | None
    expiry: int
    subscriptions: Sequence[tuple[str, int, int]]
    expires: float | None = None


class StoredMessage(NamedTuple):
    """A message that an MQTT session is owed, or that is retained.

    Args:
        number: unique, ascending; 0 for retained ones.
        properties: those of MQTT 5 that are passed on, encoded.
        expires: seconds since the epoch.
        origin: id of the device's message, for the gateway's own.
    """

    number: int
    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    properties: bytes
    expires: float | None = None
    origin: str | None = None


class StoredClaim(NamedTuple):
    """That a client is owed a message.

    Args:
        serial: unique, in the order of delivery.
        number: of the message; None if the client has received it, QoS 2, and PUBCOMP is to come.
        retain: keep the publisher's retain flag.
        identifiers: subscription identifiers.
        packet_id: under which it was sent, QoS 2; None before.
    """

    serial: int
    client_id: str
    number: int | None
    qos: int
    retain: bool
    identifiers: tuple[int, ...] = ()
    packet_id: int | None = None


class StoredState(NamedTuple):
    """All that the broker remembers; *received* are packet identifiers of unreleased QoS 2 messages, by client."""

    sessions: Sequence[StoredSession] = ()
    messages: Sequence[StoredMessage] = ()
    claims: Sequence[StoredClaim] = ()
    received: Sequence[tuple[str, int]] = ()
    retained: Sequence[StoredMessage] = ()


@attrs.define(eq=False)
class SessionChanges:
    """Changes that belong in one transaction, in this order.

    Args:
        ended: clients whose sessions go, with all that they are owed.
        sessions: by client, in place of what was known.
        messages, claims: new ones, by number and serial.
        sent: packet identifiers, by serial.
        half_done: serials whose message was received.
        paid: serials of claims that are no more.
        dropped: numbers of messages that nobody is owed any more.
        received: whether (client, packet identifier) is unreleased.
        retained: by topic; None: no longer.
    """

    ended: dict[str, None] = attrs.Factory(dict)
    sessions: dict[str, StoredSession] = attrs.Factory(dict)
    messages: dict[int, StoredMessage] = attrs.Factory(dict)
    claims: dict[int, StoredClaim] = attrs.Factory(dict)
    sent: dict[int, int] = attrs.Factory(dict)
    half_done: dict[int, None] = attrs.Factory(dict)
    paid: dict[int, None] = attrs.Factory(dict)
    dropped: list[int] = attrs.Factory(list)
    received: dict[tuple[str, int], bool] = attrs.Factory(dict)
    retained: dict[bytes, StoredMessage | None] = attrs.Factory(dict)

    def __bool__(self) -> bool:
        """Return whether there is anything to write."""
        return bool(
            self.ended
            or self.sessions
            or self.messages
            or self.claims
            or self.sent
            or self.half_done
            or self.paid
            or self.dropped
            or self.received
            or self.retained
        )


class Written(enum.Enum):
    """What became of changes."""

    YES = enum.auto()  # they are on disk
    REFUSED = enum.auto()  # not all of them, and no other attempt would do better: a mistake of our own
    LOST = enum.auto()  # they are not, nor is anything from before: the file was damaged, and another one is empty


class ISessionStore(Interface):
    """Remembers over a restart which MQTT clients have which subscriptions, and what they are owed."""

    def load() -> StoredState:
        """Return everything.  May block; called once, at start.  Raises StorageError."""

    def write(changes: SessionChanges, done: Callable[[Written], None]) -> None:
        """Write *changes* in one transaction and then call *done*, in the reactor's thread.

        There is one write at a time.  A disk that fails is tried again for as long as it takes.
        """


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
    "SessionChanges",
    "StoredClaim",
    "StoredMessage",
    "StoredSession",
    "StoredState",
    "Written",
]
