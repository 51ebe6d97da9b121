"""Certificates and keys in PEM files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NoReturn

from twisted.internet import ssl

from coapgw.errors import CoapgwError

FILE_LIMIT: Final = 4 << 20  # bytes of a file of certificates; all public CAs are 0.2 MB
_PEM: Final = 1  # OpenSSL's FILETYPE_PEM
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class CredentialsUnusable(CoapgwError):
    """A file of a password, key or certificates that cannot be used; says which, and never what is in it."""


def own_certificate(cert_file: Path, key_file: Path | None) -> dict[str, Any]:
    """Return our certificate and its key, as arguments of CertificateOptions.  Raises CredentialsUnusable.

    The key is in *cert_file* too if *key_file* is None.
    """
    first, *rest = certificates(cert_file)
    key_file = key_file or cert_file
    pem = content(key_file)
    if b"ENCRYPTED" in pem:
        raise CredentialsUnusable(f"the key in {key_file} is encrypted: OpenSSL would ask for its passphrase")
    try:
        key = ssl.KeyPair.load(pem, _PEM)
        if not ssl.PrivateCertificate.fromCertificateAndKeyPair(first, key):
            raise CredentialsUnusable(f"{key_file} is not the key of {cert_file}")
    except CredentialsUnusable:
        raise
    except Exception:  # noqa: BLE001 - whatever OpenSSL and cryptography raise
        raise CredentialsUnusable(f"{key_file} holds no key in PEM form, or not that of {cert_file}") from None
    return {
        "privateKey": key.original,
        "certificate": first.original,
        "extraCertChain": [one.original for one in rest],
    }


def content(path: Path) -> bytes:
    """Return what is in a small file.  Raises CredentialsUnusable."""
    try:
        with path.open("rb") as file:
            found = file.read(FILE_LIMIT + 1)
    except OSError as refused:
        raise CredentialsUnusable(f"{path} cannot be read: {refused.strerror}") from None
    if len(found) > FILE_LIMIT:
        raise CredentialsUnusable(f"{path} is larger than {FILE_LIMIT >> 20} MiB")
    return found


def certificates(path: Path) -> list[ssl.Certificate]:
    """Return the certificates in a file, at least one.  Raises CredentialsUnusable."""

    def wrong() -> NoReturn:
        raise CredentialsUnusable(f"{path} holds no certificates in PEM form")

    found = _CERTIFICATE.findall(content(path))
    try:
        return [ssl.Certificate.loadPEM(one) for one in found] or wrong()
    except CredentialsUnusable:
        raise
    except Exception:  # noqa: BLE001 - whatever OpenSSL and cryptography raise
        wrong()
