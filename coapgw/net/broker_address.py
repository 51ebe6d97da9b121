"""Where the bridge's broker is and how to get there: TCP or TLS, and what proves who we are.

Files are read for every attempt, so that a certificate or password that was renewed is used without a restart.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NoReturn

import attrs
from twisted.internet import ssl
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectionClosed,
    ConnectionDone,
    DNSLookupError,
)
from twisted.internet.error import (
    ConnectionRefusedError as Refused,
)
from twisted.internet.error import (
    TimeoutError as TimedOut,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from coapgw.errors import CoapgwError

TCP_PORT: Final = 1883
TLS_PORT: Final = 8883
CONNECT_SECONDS: Final = 20.0
PASSWORD_LIMIT: Final = 65_535  # bytes; MQTT 3.1.1 section 3.1.3.5
FILE_LIMIT: Final = 4 << 20  # bytes of a file of certificates; all public CAs are 0.2 MB
SENTENCE_LIMIT: Final = 200  # characters of what others say
_PEM: Final = 1  # OpenSSL's FILETYPE_PEM
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class CredentialsUnusable(CoapgwError):
    """A file of a password, key or certificates that cannot be used; says which, and never what is in it."""


@attrs.frozen
class BrokerAddress:
    """A broker to connect to.

    Args:
        host: name or IP address; the certificate has to be for it.
        port: TCP port.
        tls: whether to speak TLS.
        inline_password: of the URL, if it holds one.
        password_file: its first line is the password.
        ca_file: PEM certificates to trust instead of the system's.
        cert_file: PEM, our certificate and what leads from it to a CA.
        key_file: PEM, its key; if None it is in *cert_file* too.
        verify: False takes any certificate, for any name.
    """

    host: str
    port: int
    tls: bool = False
    inline_password: str | None = attrs.field(default=None, repr=False)
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    verify: bool = True

    @classmethod
    def at(cls, url: str, **more: Any) -> BrokerAddress:
        """Return the address that a checked *url* names; *more* are arguments of the class."""
        parts = urllib.parse.urlsplit(url)
        tls = parts.scheme == "mqtts"
        password = urllib.parse.unquote(parts.password) if parts.password is not None else None
        port = parts.port or (TLS_PORT if tls else TCP_PORT)
        return cls(parts.hostname or "", port, tls, password, **more)

    def __str__(self) -> str:
        """Return a URL without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    def password(self) -> bytes | None:
        """Return the password, None for none.  Raises CredentialsUnusable."""
        if self.password_file is None:
            return None if self.inline_password is None else self.inline_password.encode()
        lines = _content(self.password_file).splitlines()
        if not lines or not lines[0] or len(lines[0]) > PASSWORD_LIMIT:
            raise CredentialsUnusable(f"the first line of {self.password_file} is no password")
        return lines[0]

    def mistakes(self) -> list[str]:
        """Return a sentence for each file that cannot be used."""
        found = []
        for use in (self.password, self._tls_options) if self.tls else (self.password,):
            try:
                use()
            except CredentialsUnusable as unusable:
                found.append(f"mqtt.bridge: {unusable}")
        return found

    def endpoint(self, reactor: Any) -> IStreamClientEndpoint:
        """Return what connects.  Raises CredentialsUnusable."""
        plain = HostnameEndpoint(reactor, self.host, self.port, CONNECT_SECONDS)
        return wrapClientTLS(self._tls_options(), plain) if self.tls else plain

    def _tls_options(self) -> Any:
        ours = self._own_certificate()
        if not self.verify:
            return ssl.CertificateOptions(verify=False, **ours)
        trusted = ssl.platformTrust()
        if self.ca_file is not None:
            trusted = ssl.trustRootFromCertificates(_certificates(self.ca_file))
        return ssl.optionsForClientTLS(self.host, trusted, extraCertificateOptions=ours)

    def _own_certificate(self) -> dict[str, Any]:
        """Return our certificate, as arguments of CertificateOptions."""
        if self.cert_file is None:
            return {}
        first, *rest = _certificates(self.cert_file)
        key_file = self.key_file or self.cert_file
        pem = _content(key_file)
        if b"ENCRYPTED" in pem:
            raise CredentialsUnusable(f"the key in {key_file} is encrypted: OpenSSL would ask for its passphrase")
        try:
            key = ssl.KeyPair.load(pem, _PEM)
            if not ssl.PrivateCertificate.fromCertificateAndKeyPair(first, key):
                raise CredentialsUnusable(f"{key_file} is not the key of {self.cert_file}")
        except CredentialsUnusable:
            raise
        except Exception:  # noqa: BLE001 - whatever OpenSSL and cryptography raise
            raise CredentialsUnusable(f"{key_file} holds no key in PEM form, or not that of {self.cert_file}") from None
        return {
            "privateKey": key.original,
            "certificate": first.original,
            "extraCertChain": [one.original for one in rest],
        }

    def sentence(self, failure: Failure) -> str:
        """Return why there is no connection, or none any more, for an operator: one line, no secrets."""
        error = failure.value
        assert error is not None
        match error:
            case ConnectionDone():
                return "the broker closed the connection"
            case Refused():
                return "nobody listens there"
            case TimedOut():
                return f"no connection within {CONNECT_SECONDS:.0f} s"
            case DNSLookupError():
                return "there is no such host"
            case ssl.VerificationError():
                return f"its certificate is not for {self.host}"
            case ConnectError() | ConnectionClosed():
                reason = error.osError if isinstance(error, ConnectError) and error.osError else error
                return _line(str(reason))
        return _line(_tls_sentence(error.args) or str(error) or type(error).__name__)


def _tls_sentence(args: tuple[object, ...]) -> str:
    """Return what OpenSSL said: pyOpenSSL's errors hold lists of (library, function, reason)."""
    if args and isinstance(args[0], Iterable) and not isinstance(args[0], str):
        reasons = [str(one[-1]) for one in args[0] if isinstance(one, tuple) and one]
        if reasons:
            return "TLS: " + ", ".join(reasons)
    return ""


def _line(said: str) -> str:
    return " ".join(said.split())[:SENTENCE_LIMIT]


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT + 1)
    except OSError as refused:
        raise CredentialsUnusable(f"{path} cannot be read: {refused.strerror}") from None
    if len(content) > FILE_LIMIT:
        raise CredentialsUnusable(f"{path} is larger than {FILE_LIMIT >> 20} MiB")
    return content


def _certificates(path: Path) -> list[ssl.Certificate]:
    def wrong() -> NoReturn:
        raise CredentialsUnusable(f"{path} holds no certificates in PEM form")

    found = _CERTIFICATE.findall(_content(path))
    try:
        return [ssl.Certificate.loadPEM(one) for one in found] or wrong()
    except CredentialsUnusable:
        raise
    except Exception:  # noqa: BLE001 - whatever OpenSSL and cryptography raise
        wrong()


def user_of(url: str) -> str | None:
    """Return the user that a checked *url* names, None for none."""
    user = urllib.parse.urlsplit(url).username
    return None if user is None else urllib.parse.unquote(user)
