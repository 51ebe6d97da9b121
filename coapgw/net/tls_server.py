"""The certificate of a TLS listener, read again when its files change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from twisted.internet import ssl
from twisted.logger import Logger

from coapgw.net.pem_files import CredentialsUnusable, own_certificate

LOOK_SECONDS: Final = 10.0  # from one look at the files to the next, at least


class ServerCertificate(ssl.ContextFactory):
    """Makes the contexts of a listener; TLS 1.2 and 1.3, no client certificates.

    A certificate that was renewed serves new connections within ``LOOK_SECONDS``; one that cannot be used is logged,
    and the one before stays.  Raises CredentialsUnusable when made.
    """

    log = Logger()

    def __init__(self, cert_file: Path, key_file: Path | None, monotonic: Callable[[], float]) -> None:
        """Read the files."""
        self._cert_file = cert_file
        self._key_file = key_file
        self._monotonic = monotonic
        self._seen = self._stamp()
        self._looked = monotonic()
        self._options = self._read()

    def getContext(self) -> Any:
        """Return the context for a new connection."""
        now = self._monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._renew()
        return self._options.getContext()

    def _renew(self) -> None:
        try:
            self._options = self._read()
        except CredentialsUnusable as unusable:
            self.log.error("the MQTT listeners keep their old certificate: {reason}", reason=str(unusable))
        else:
            self.log.info("the MQTT listeners use the certificate that is now in {file}", file=str(self._cert_file))

    def _read(self) -> ssl.CertificateOptions:
        ours = own_certificate(self._cert_file, self._key_file)
        return ssl.CertificateOptions(raiseMinimumTo=ssl.TLSVersion.TLSv1_2, **ours)

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        """Return what changes when the files do."""
        found = []
        for path in (self._cert_file, self._key_file):
            if path is not None:
                try:
                    status = path.stat()
                except OSError:
                    continue
                found.append((status.st_mtime_ns, status.st_ino))
        return tuple(found)
