"""A small client on Scandium, Californium's DTLS (``scandium/Client.java``); a machine may be without Java."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.interop.clients.client import INSTALLED, ClientAbsent, first_number, nothing, post_by_lines, program
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import SUITES, Suite

NAMES = {
    "PSK-AES128-CCM8": "TLS_PSK_WITH_AES_128_CCM_8",
    "PSK-AES128-CCM": "TLS_PSK_WITH_AES_128_CCM",
    "PSK-AES256-CCM8": "TLS_PSK_WITH_AES_256_CCM_8",
    "PSK-AES256-CCM": "TLS_PSK_WITH_AES_256_CCM",
    "PSK-AES128-GCM-SHA256": "TLS_PSK_WITH_AES_128_GCM_SHA256",
    "PSK-AES256-GCM-SHA384": "TLS_PSK_WITH_AES_256_GCM_SHA378",  # as Scandium spells it
    "PSK-AES128-CBC-SHA256": "TLS_PSK_WITH_AES_128_CBC_SHA256",
    "ECDHE-PSK-AES128-CBC-SHA256": "TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256",
}


class ScandiumClient:
    """The client of ``scandium/Client.java``."""

    name = "Californium Scandium"
    suites: Sequence[Suite] = tuple(suite for suite in SUITES if suite.name in NAMES)
    lacks = "Scandium does not have them"

    def __init__(self, connection_id_bytes: int | None = None) -> None:
        """Ask for a Connection ID, and want one of so many bytes; None: ask for none."""
        self._connection_id_bytes = -1 if connection_id_bytes is None else connection_id_bytes

    def version(self) -> str:
        """Return the version that it was built with."""
        _command()
        return first_number(next((INSTALLED / "scandium" / "lib").glob("scandium-*.jar")).stem)

    def with_cid(self, size: int | None) -> ScandiumClient:
        """Return one that wants a Connection ID of so many bytes; None: that asks for none."""
        return ScandiumClient(size)

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association; raises ConnectionError with what Scandium said."""
        return self.post_between(server, suite, payloads, nothing)

    def post_between(
        self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes], between: Callable[[], None]
    ) -> list[str]:
        """POST over one association, calling *between* between two; raises ConnectionError with what Scandium said."""
        about = [server.host, str(server.port), server.identity, server.key, NAMES[suite.name] if suite else "any"]
        return post_by_lines([*_command(), *about, str(self._connection_id_bytes)], payloads, between)


def _command() -> list[str]:
    place = INSTALLED / "scandium"
    if not (place / "classes" / "Client.class").exists():
        raise ClientAbsent("Scandium needs Java (apt-get install default-jdk-headless maven) and clients/install")
    java = program("java", "default-jdk-headless")
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
    return [java, *quick, "-cp", f"{place}/classes:{place}/lib/*", "Client"]
