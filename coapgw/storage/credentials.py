"""What DTLS asks about devices, answered from memory: keys stay sealed there and are unsealed for a handshake."""

from __future__ import annotations

import secrets
from typing import Final

from twisted.logger import Logger
from zope.interface import implementer

from coapgw.errors import StorageError
from coapgw.interfaces import ICredentials
from coapgw.model import ICCID_DIGITS, Credential, DeviceKey, DeviceStatus, KeyFormat
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.key_image import image_of, parts_of, serial_of
from coapgw.storage.keys import GENERATED_CHARACTERS
from coapgw.storage.sealing import KeySeal

_DECOY: Final = "00000000000000000000"  # whose key is unsealed when nobody's is: looking one up takes the same time
FAILURES_LOGGED: Final = 20  # devices, per run: a handshake can cause one, and a flood must not fill a disk


@implementer(ICredentials)
class DeviceCredentials:
    """The keys of active devices; all calls from the reactor's thread.

    A key that cannot be unsealed counts as none, and is logged once.

    Args:
        directory: follows the registry.
        seal: unseals its keys.
    """

    _log = Logger()

    def __init__(self, directory: DeviceDirectory, seal: KeySeal) -> None:
        """Answer from *directory*."""
        self._directory = directory
        self._seal = seal
        self._logged: set[str] = set()
        sealed = seal.seal(secrets.token_bytes(GENERATED_CHARACTERS), _DECOY, KeyFormat.STRING, 0)
        self._decoy = image_of(0, KeyFormat.STRING.value, sealed)

    def credential(self, identity: bytes) -> Credential | None:
        """Return what the active device with this PSK identity (its ICCID) has to prove; None if there is none.

        It takes as long for an ICCID that is not served, or one could measure which ones are.
        """
        if len(identity) not in ICCID_DIGITS or not identity.isdigit():
            return None
        iccid = identity.decode("ascii")
        device = self._directory.by_iccid(iccid)
        image = self._directory.key_image(iccid)
        is_served = device is not None and image is not None and device.status is DeviceStatus.ACTIVE
        owner, used = (iccid, image) if is_served and image is not None else (_DECOY, self._decoy)
        serial, key_format, sealed = parts_of(used)
        try:
            credential = Credential(owner, self._seal.unseal(sealed, owner, key_format, serial), serial)
        except StorageError as failed:
            self._log_once(owner, failed)
            return None
        return credential if is_served else None

    def is_current(self, iccid: str, serial: int) -> bool:
        """Return whether the device is active and its key still is the one with this serial."""
        device = self._directory.by_iccid(iccid)
        image = self._directory.key_image(iccid)
        if device is None or image is None:
            return False
        return device.status is DeviceStatus.ACTIVE and serial_of(image) == serial

    def learn(self, key: DeviceKey) -> None:
        """Know a key that was stored a moment ago: its device may begin a handshake before the directory looks."""
        sealed = self._seal.seal(key.secret, key.iccid, key.format, key.serial)
        self._directory.take_key(key.iccid, image_of(key.serial, key.format.value, sealed))

    def _log_once(self, iccid: str, failed: StorageError) -> None:
        if iccid in self._logged or len(self._logged) >= FAILURES_LOGGED:
            return
        self._logged.add(iccid)
        self._log.error("{reason}: that device cannot connect over DTLS", reason=str(failed))
