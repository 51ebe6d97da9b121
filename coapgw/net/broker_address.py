"""Where the bridge's broker is and how to get there: TCP or TLS, and what proves who we are.

Files are read for every attempt, so that a certificate or password that was renewed is used without a restart.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

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

from coapgw.net.pem_files import CredentialsUnusable, certificates, content, own_certificate

TCP_PORT: Final = 1883
TLS_PORT: Final = 8883
CONNECT_SECONDS: Final = 20.0
PASSWORD_LIMIT: Final = 65_535  # bytes; MQTT 3.1.1 section 3.1.3.5
SENTENCE_LIMIT: Final = 200  # characters of what others say


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
        lines = content(self.password_file).splitlines()
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
        ours = {} if self.cert_file is None else own_certificate(self.cert_file, self.key_file)
        if not self.verify:
            return ssl.CertificateOptions(verify=False, **ours)
        trusted = ssl.platformTrust()
        if self.ca_file is not None:
            trusted = ssl.trustRootFromCertificates(certificates(self.ca_file))
        return ssl.optionsForClientTLS(self.host, trusted, extraCertificateOptions=ours)

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


def user_of(url: str) -> str | None:
    """Return the user that a checked *url* names, None for none."""
    user = urllib.parse.urlsplit(url).username
    return None if user is None else urllib.parse.unquote(user)
