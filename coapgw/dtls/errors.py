"""What a DTLS machine refuses to do."""

from __future__ import annotations

from coapgw.errors import CoapgwError


class DtlsError(CoapgwError):
    """Anything the DTLS machines raise on purpose; what a peer sends never makes them raise."""


class PlaintextTooLarge(DtlsError):
    """More bytes than a record may carry."""

    def __init__(self, size: int, limit_bytes: int) -> None:
        """Both sizes in bytes."""
        super().__init__(f"{size} bytes for one record, which carries {limit_bytes} at most")
        self.size = size
        self.limit_bytes = limit_bytes


class SequenceExhausted(DtlsError):
    """An association that has no sequence number left: with another record, a nonce would repeat."""


class SavedRefused(DtlsError):
    """Saved associations that cannot be used."""


class SavedDamaged(SavedRefused):
    """Saved associations that are cut, or not as they were saved."""


class SavedWithAnotherKey(SavedRefused):
    """Saved associations that were sealed with another key."""


class SavedByAnother(SavedRefused):
    """What was saved is not what this version of coapgw saves."""


class SavedTooOld(SavedRefused):
    """Associations that were saved too long ago, or in the future."""
