"""A device with nothing but its SIM asks for its key, and where to go with it (PRODUCT section 3)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from coapgw.errors import CoapgwError, DeviceNotFound, DeviceUnknown, PeerError, StorageError
from coapgw.gateway.rate import DeviceRates, OverRate
from coapgw.interfaces import IDeviceKeys
from coapgw.metrics import BootstrapCounters
from coapgw.model import Device, DeviceKey
from coapgw.threads import NotCalled

ASKING_LIMIT: Final = 1000  # devices whose keys are being written or wait for that: a second or two
JOINED_LIMIT: Final = 16  # calls of one device that get the answer to the one under way
CALLS_PER_SECOND: Final = 10.0  # of one device, on the average
CALLS_AT_ONCE: Final = 500
PATIENCE_SECONDS: Final = 30.0  # a call that has waited for so long is not made: its device has repeated itself by then
FAILURES_LOGGED: Final = 100  # per run: one key that cannot be unsealed among good ones must not fill a disk

CallInThread: TypeAlias = "Callable[[Callable[[], DeviceKey]], Deferred[DeviceKey]]"
"""Calls a function that blocks somewhere else; the Deferred fires here."""

Told: TypeAlias = Callable[["bytes | Exception"], None]
"""Told once: the line ``iccid,psk,coaps-url``, or why there is none."""

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


class SourceRefused(PeerError):
    """A call from a network that may not bootstrap."""


class TermsNotAccepted(PeerError):
    """A call although the terms are not accepted."""


class TooManyAsking(CoapgwError):
    """So many keys wait to be written already that no further one does."""


class OwnAddressUnknown(CoapgwError):
    """There is no URL to send a device to: none is configured, and the system did not say which address was asked."""


@attrs.frozen
class BootstrapSettings:
    """The part of the configuration that bootstrap follows; *public_url* is empty if it is to be derived."""

    networks: Sequence[Network] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))
    terms_accepted: bool = True
    rotate_after_seconds: int = 300
    public_url: str = ""


class Bootstrap:
    """Answers bootstrap calls; a key is stored before it is in an answer.

    Args:
        keys: blocks, and is called where *call_in_thread* has it; one call at a time for a device.
        coaps_port: the number of the port that a derived URL names.
        monotonic: seconds; called from threads too.
        learn: given every key, after it was told: whoever has it may use it now.
    """

    _log = Logger()

    def __init__(
        self,
        keys: IDeviceKeys,
        call_in_thread: CallInThread,
        settings: BootstrapSettings,
        coaps_port: Callable[[], int],
        monotonic: Callable[[], float],
        *,
        learn: Callable[[DeviceKey], object] = lambda _: None,
        counters: BootstrapCounters | None = None,
    ) -> None:
        """Ask *keys*."""
        self._keys = keys
        self._call_in_thread = call_in_thread
        self._settings = settings
        self._coaps_port = coaps_port
        self._monotonic = monotonic
        self._learn = learn
        self.counters = counters or BootstrapCounters()
        self._rates = DeviceRates(CALLS_PER_SECOND, CALLS_AT_ONCE - CALLS_PER_SECOND, monotonic)
        self._asking: dict[str, list[tuple[str, Told]]] = {}
        self._failing = False
        self._failures_logged = 0

    def ask(self, device: Device | None, source: str | None, local_host: str, told: Told) -> None:
        """Answer a call, now or later.

        Args:
            device: who asks; None for a stranger.
            source: the address it asks from, in figures; None over a transport on which it has proved who it is.
            local_host: the address of ours that was asked, in figures.
            told: gets a PeerError if this device may not know, StorageError if no key could be stored, TooManyAsking,
                OverRate, or OwnAddressUnknown.
        """
        try:
            iccid = self._checked(device, source)
            self._expect_calm(iccid)
            url = self._settings.public_url or self._derived_url(local_host)
            self._join(iccid, url, told)
        except CoapgwError as refusal:
            told(refusal)

    def _checked(self, device: Device | None, source: str | None) -> str:
        """Return the ICCID of a device that may know its key.  Raises PeerError."""
        if source is not None and not self._is_trusted(source):
            self.counters.from_elsewhere += 1
            raise SourceRefused(source)
        if device is None or not self._settings.terms_accepted:
            self.counters.unauthorised += 1
            raise DeviceUnknown(source) if device is None else TermsNotAccepted(device.iccid)
        return device.iccid

    def _expect_calm(self, iccid: str) -> None:
        """Count a call of this device.  Raises OverRate: each is a commit, and what loops is no firmware that works."""
        try:
            self._rates.take(iccid)
        except OverRate:
            self.counters.over_rate += 1
            raise

    def _is_trusted(self, source: str) -> bool:
        """Return whether a call from this address may be answered over plain CoAP."""
        address = ipaddress.ip_address(source.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._settings.networks)

    def _derived_url(self, local_host: str) -> str:
        if not local_host:
            self.counters.failed += 1
            raise OwnAddressUnknown("coaps.public_url is needed")
        host = f"[{local_host}]" if ":" in local_host else local_host
        return f"coaps://{host}:{self._coaps_port()}"

    def _join(self, iccid: str, url: str, told: Told) -> None:
        """Have the device's key read or made, unless that is under way: then wait with the others."""
        joined = self._asking.get(iccid)
        if len(self._asking) >= ASKING_LIMIT if joined is None else len(joined) >= JOINED_LIMIT:
            self.counters.refused_busy += 1
            raise TooManyAsking
        if joined is not None:
            joined.append((url, told))
            return
        self._asking[iccid] = [(url, told)]
        call = partial(self._key_of, iccid, self._monotonic() + PATIENCE_SECONDS)
        self._call_in_thread(call).addCallbacks(self._stored, partial(self._refused, iccid))

    def _key_of(self, iccid: str, until: float) -> DeviceKey:
        """Return the key of a device, unless it is too late; blocks.  Raises DeviceNotFound, StorageError."""
        if self._monotonic() > until:
            raise StorageError(f"calls wait for more than {PATIENCE_SECONDS:.0f} s")
        return self._keys.bootstrap(iccid, self._settings.rotate_after_seconds)

    def _stored(self, key: DeviceKey) -> None:
        if self._failing:
            self._failing = False
            self._log.info("devices can bootstrap again")
        for url, told in self._asking.pop(key.iccid):
            self.counters.answered += 1
            told(f"{key.iccid},{key.written},{url}".encode("ascii"))
        self._learn(key)

    def _refused(self, iccid: str, failure: Failure) -> None:
        error: Exception
        if failure.check(DeviceNotFound):  # removed a moment ago
            error = DeviceUnknown(iccid)
        else:
            error = failure.value if isinstance(failure.value, StorageError) else StorageError("unexpected")
            if not failure.check(NotCalled):  # the gateway is stopping
                self._say_once(failure)
        for _, told in self._asking.pop(iccid):
            if isinstance(error, PeerError):
                self.counters.unauthorised += 1
            else:
                self.counters.failed += 1
            told(error)

    def _say_once(self, failure: Failure) -> None:
        if self._failing or self._failures_logged >= FAILURES_LOGGED:
            return
        self._failing = True
        self._failures_logged += 1
        if failure.check(StorageError):
            self._log.error("devices cannot bootstrap, they get 5.00: {reason}", reason=failure.getErrorMessage())
        else:
            self._log.failure("devices cannot bootstrap, they get 5.00", failure)
