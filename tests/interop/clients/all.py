"""Every client, in the order of the table."""

from __future__ import annotations

from collections.abc import Sequence

from tests.interop.clients.aiocoap_tinydtls import TinydtlsClient
from tests.interop.clients.client import CidClient, CoapsClient
from tests.interop.clients.gnutls import GnutlsClient
from tests.interop.clients.libcoap import LibcoapClient
from tests.interop.clients.mbedtls import Mbedtls3Client, MbedtlsClient
from tests.interop.clients.node import NodeCoapClient, NodeDtlsClient
from tests.interop.clients.openssl import OpensslClient
from tests.interop.clients.pion import PionClient
from tests.interop.clients.scandium import ScandiumClient
from tests.interop.clients.wolfssl import WolfsslClient

CLIENTS: Sequence[CoapsClient] = (
    LibcoapClient("openssl"),
    LibcoapClient("gnutls"),
    OpensslClient(),
    GnutlsClient(),
    MbedtlsClient(),
    Mbedtls3Client(),
    WolfsslClient(),
    TinydtlsClient(),
    PionClient(),
    ScandiumClient(),
    NodeCoapClient("1.0.9"),
    NodeCoapClient("latest"),
    NodeDtlsClient("1.0.9"),
    NodeDtlsClient("latest"),
)

CID_CLIENTS: Sequence[CidClient] = (Mbedtls3Client(), PionClient(), ScandiumClient())
"""Those with Connection IDs."""
