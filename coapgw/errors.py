"""The error tree: what the peer did wrong, what the operator did wrong, what we could not do.

Nothing here knows CoAP, HTTP or MQTT: ``gateway/resources.py`` alone turns these into CoAP codes.
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_VALUE = 100  # characters of a wrong value in a sentence; the longest right one is a name


class CoapgwError(Exception):
    """Anything coapgw raises on purpose."""


class PeerError(CoapgwError):
    """The other side is wrong; we are fine, and so is everybody else."""


class TopicRefused(PeerError):
    """A topic that is no topic."""

    def __init__(self, topic: bytes, reason: str) -> None:
        """Remember the *topic* as it was received, and a *reason* that can be shown to the device."""
        super().__init__(f"{reason}: {topic[:64]!r}")
        self.topic = topic
        self.reason = reason


class PayloadTooLarge(PeerError):
    """A payload over ``uplink.max_payload``."""

    def __init__(self, size: int, limit_bytes: int) -> None:
        """Both sizes in bytes."""
        super().__init__(f"payload of {size} bytes, at most {limit_bytes} are taken")
        self.size = size
        self.limit_bytes = limit_bytes


class DeviceUnknown(PeerError):
    """A peer that is no registered, active device."""


class DeviceRefused(CoapgwError):
    """A device record the registry will not take; *field* names the part that is wrong."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        """Say which *field* is wrong, its *value* and the *reason*, for an operator."""
        shown = repr(value)
        if len(shown) > SHOWN_VALUE:
            shown = shown[:SHOWN_VALUE] + "…"
        super().__init__(f"{field} {shown}: {reason}")
        self.field = field
        self.value = value
        self.reason = reason


class DeviceExists(DeviceRefused):
    """A device with this ICCID is there already, or another one has this address."""


class ImportRefused(DeviceRefused):
    """Devices of an import that the registry will not take, because of which it took none."""

    def __init__(self, refusals: Sequence[tuple[int, DeviceRefused]]) -> None:
        """Take every refusal (one at least) with the number of its row, the first row being 1."""
        row, first = refusals[0]
        super().__init__(first.field, first.value, first.reason)
        self.refusals = refusals
        self._sentence = f"row {row}: {first}" + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else "")

    def __str__(self) -> str:
        """Name the first row and what is wrong with it."""
        return self._sentence


class DeviceNotFound(CoapgwError):
    """No device has this ICCID."""

    def __init__(self, iccid: str) -> None:
        """Remember the *iccid* that was asked for."""
        super().__init__(f"no device {iccid!r}")
        self.iccid = iccid


class KeyRefused(CoapgwError):
    """A pre-shared key that cannot be one; the *reason* never holds the key."""

    def __init__(self, reason: str) -> None:
        """Say what is wrong with it."""
        super().__init__(f"the key: {reason}")
        self.reason = reason


class KeyNotFound(CoapgwError):
    """A device that has no key yet."""

    def __init__(self, iccid: str) -> None:
        """Remember the *iccid* that was asked for."""
        super().__init__(f"device {iccid} has no key yet")
        self.iccid = iccid


class TemplateNotFound(CoapgwError):
    """No template has this id."""

    def __init__(self, template_id: str) -> None:
        """Remember the *template_id* that was asked for."""
        super().__init__(f"no template {template_id!r}")
        self.template_id = template_id


class TemplateRefused(CoapgwError):
    """A template the registry will not take; *field* names the part that is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        """Say which *field* is wrong, and why."""
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class TemplateConflict(TemplateRefused):
    """Another template is active already."""


class Untranslatable(PeerError):
    """A payload that the active template cannot translate; *description* is for who reads the ERROR event."""

    def __init__(self, description: str) -> None:
        """Take the sentence."""
        super().__init__(description)
        self.description = description


class StorageError(CoapgwError):
    """Something that must survive could not be written or read."""


class SpoolFull(StorageError):
    """The spool holds ``spool.max_bytes``, or more waits to be written than memory may hold."""


class SpoolFailing(StorageError):
    """The disk refused a commit; the messages of that commit are not stored."""


class SpoolDamaged(SpoolFailing):
    """The spool's file is no database any more; what was in it is not to be had from here."""


class ConfigurationInvalid(CoapgwError):
    """Every mistake of a configuration at once, one line each, for an operator."""

    def __init__(self, mistakes: list[str]) -> None:
        """Take one finished sentence a mistake: file, line, key, what is wrong."""
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
