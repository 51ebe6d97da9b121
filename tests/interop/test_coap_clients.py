"""Other people's CoAP clients against a real gateway: libcoap's command line client and aiocoap."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator

import aiocoap
import pytest

from tests.integration.gateway_process import GatewayProcess, Subscriber, coapgw, until

ICCID = "8988280666000000017"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that knows 127.0.0.1."""
    data = tmp_path_factory.mktemp("interop") / "data"
    coapgw(data, "device", "add", ICCID, "--ip", "127.0.0.1")
    process = GatewayProcess(data).start()
    yield process
    process.stop()
    assert "Traceback" not in process.log.read_text()


@pytest.fixture(scope="module")
def subscriber(gateway: GatewayProcess) -> Iterator[Subscriber]:
    """A subscriber to everything."""
    made = Subscriber(gateway.mqtt)
    yield made
    made.close()


def _coap_client(gateway: GatewayProcess, *arguments: str, path: str = "/") -> str:
    """Run libcoap's client; return what it prints."""
    program = shutil.which("coap-client-notls")
    assert program is not None, "coap-client-notls is missing: apt-get install libcoap3-bin"
    url = f"coap://127.0.0.1:{gateway.coap[1]}{path}"
    done = subprocess.run([program, "-B", "5", *arguments, url], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout + done.stderr


def _await_message(subscriber: Subscriber, value: str, topic: str) -> None:
    def arrived() -> bool:
        return any(
            found == topic and json.loads(payload).get("payload", {}).get("value") == value
            for found, payload in subscriber.received
        )

    until(arrived)


@pytest.mark.parametrize("kind", [[], ["-N"]], ids=["CON", "NON"])
def test_libcoap_posts(gateway: GatewayProcess, subscriber: Subscriber, kind: list[str]) -> None:
    printed = _coap_client(gateway, "-v", "7", "-m", "post", "-e", "hello", *kind, path="/?t=greetings")
    assert "2.04" in printed
    _await_message(subscriber, "aGVsbG8=", f"{ICCID}/greetings")


def test_libcoap_is_told_what_is_wrong(gateway: GatewayProcess) -> None:
    assert "4.00 a topic has only" in _coap_client(gateway, "-m", "post", "-e", "x", path="/?t=hello-world")
    assert "4.04 Not Found" in _coap_client(gateway, "-m", "get", path="/nowhere")
    assert "4.04 Not Found" in _coap_client(gateway, "-m", "get", path="/")
    assert "4.05" in _coap_client(gateway, "-m", "get", path="/data")


def test_libcoap_reads_the_links(gateway: GatewayProcess) -> None:
    links = '</>;title="uplink",</bootstrap>;title="bootstrap",</data>;title="uplink"'
    assert links in _coap_client(gateway, "-m", "get", path="/.well-known/core")


def test_aiocoap_posts_and_pings(gateway: GatewayProcess, subscriber: Subscriber) -> None:
    host, port = gateway.coap

    async def talk() -> None:
        context = await aiocoap.Context.create_client_context()
        try:
            for number in range(20):
                request = aiocoap.Message(
                    code=aiocoap.POST, uri=f"coap://{host}:{port}/data?t=from/aiocoap", payload=b"%d" % number
                )
                response = await asyncio.wait_for(context.request(request).response, 10)
                assert response.code == aiocoap.CHANGED
            request = aiocoap.Message(code=aiocoap.GET, uri=f"coap://{host}:{port}/.well-known/core")
            response = await asyncio.wait_for(context.request(request).response, 10)
            assert response.opt.content_format == 40
        finally:
            await context.shutdown()

    asyncio.run(talk())
    _await_message(subscriber, "MTk=", f"{ICCID}/from/aiocoap")
