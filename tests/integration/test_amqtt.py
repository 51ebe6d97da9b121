"""The gateway with aMQTT as its embedded broker: a process of twistd's on asyncio's reactor, and real clients."""

from __future__ import annotations

import base64
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from coapgw.mqtt.packets import Connect, Will, encode
from tests.integration.certificates import Authority
from tests.integration.gateway_process import ROOT, Device, GatewayProcess, Subscriber, coapgw, until

AMQTT = "mqtt.embedded.engine=amqtt"
FREE = "['127.0.0.1:0']"
ICCID = "8988280666000000017"
ADDRESS = "127.0.0.7"
CHANGED = 0x44  # CoAP 2.04
SECONDS = 30
USERS = (
    "mqtt.embedded.users=[{name='page',password='secret-of-page',publish=['allowed/#'],subscribe=['allowed/#']},"
    "{name='other',password='secret-of-other',publish=['#'],subscribe=['#']}]"
)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """Start gateways with aMQTT; in the end they stop in order, and their log holds no traceback and no secret."""
    running: list[GatewayProcess] = []

    def start(*settings: str) -> GatewayProcess:
        coapgw(tmp_path / "data", "device", "add", ICCID, "--ip", ADDRESS)
        running.append(GatewayProcess(tmp_path / "data", AMQTT, *settings, reactor="asyncio").start())
        return running[-1]

    yield start
    for one in running:
        assert one.stop() in (0, -signal.SIGTERM)  # some versions of Twisted end by the signal they got
        log = one.log.read_text()
        assert "Server Shut Down" in log
        assert "Traceback" not in log
        assert "never retrieved" not in log
        assert "was destroyed" not in log
        assert "secret" not in log


def new_client(client_id: str = "", *, clean: bool = True, **more: Any) -> Client:
    return Client(CallbackAPIVersion.VERSION2, client_id, clean_session=clean, reconnect_on_failure=False, **more)


def code_of(client: Client, port: int) -> str:
    """Connect; return what the broker says."""
    answers: queue.Queue[ReasonCode] = queue.Queue()
    client.on_connect = lambda _c, _d, _f, reason, _p: answers.put(reason)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        return str(answers.get(timeout=SECONDS))
    finally:
        client.disconnect()
        client.loop_stop()


def values(subscriber: Subscriber) -> list[bytes]:
    return [base64.b64decode(document["payload"]["value"]) for document in subscriber.documents()]


def post(gateway: GatewayProcess, *payloads: bytes) -> None:
    with Device(ADDRESS, gateway.coap) as device:
        for payload in payloads:
            answer = device.post(payload)
            assert answer is not None
            assert answer[1] == CHANGED


def metric(gateway: GatewayProcess, name: str) -> float:
    host, port = gateway.http
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"coapgw_{name} "))


def test_an_uplink_reaches_its_subscribers_and_leaves_the_spool(gateway: Callable[..., GatewayProcess]) -> None:
    running = gateway()
    one, another = Subscriber(running.mqtt), Subscriber(running.mqtt, [(f"{ICCID}/#", 2)])
    sent = [b"%d" % number for number in range(500)]
    post(running, *sent)
    until(lambda: len(values(one)) == len(values(another)) == len(sent))
    assert values(one) == values(another) == sent
    until(lambda: metric(running, "spool_messages") == 0)
    assert metric(running, "mqtt_delivered_total") == 1001  # the lifecycle event went to one of them
    one.close()
    another.close()


@pytest.mark.parametrize("acknowledge", ["stored", "published"])
def test_what_waited_while_nobody_acknowledged_is_there_after_kill_9(
    gateway: Callable[..., GatewayProcess], acknowledge: str
) -> None:
    """The client takes nothing off its socket: what it was sent stays in the spool, and comes again."""
    running = gateway(f"uplink.acknowledge={acknowledge}")
    received: list[bytes] = []
    stuck = new_client("keeper", clean=False, manual_ack=True)
    there = threading.Event()
    stuck.on_connect = lambda client, *_: client.subscribe("#", 1)
    stuck.on_subscribe = lambda *_: there.set()
    stuck.on_message = lambda _c, _d, message: received.append(bytes(message.payload))
    stuck.connect("127.0.0.1", running.mqtt)
    stuck.loop_start()
    assert there.wait(SECONDS)
    sent = [b"%d" % number for number in range(100)]
    post(running, *sent)
    until(lambda: len(received) >= 50)  # as many as are in flight at a time
    time.sleep(1.5)  # who is there is written down once a second
    running.kill()
    stuck.loop_stop()
    running.start()
    subscriber = Subscriber(running.mqtt, client_id="keeper", clean=False)
    until(lambda: len(values(subscriber)) >= len(sent))
    assert values(subscriber) == sent
    until(lambda: metric(running, "spool_messages") == 0)
    subscriber.close()


@pytest.mark.parametrize("clean", [True, False], ids=["clean session", "persistent session"])
def test_kill_9_under_load_loses_nothing_that_got_2_04(gateway: Callable[..., GatewayProcess], clean: bool) -> None:
    running = gateway()
    subscriber = Subscriber(running.mqtt, client_id="keeper", clean=clean)
    acknowledged: list[bytes] = []
    ended = threading.Event()

    def send() -> None:
        number = 0
        while not ended.is_set():
            with Device(ADDRESS, running.coap, timeout=0.3) as device:
                answer: bytes | None = b""
                while answer is not None and not ended.is_set():
                    number += 1
                    answer = device.post(b"%d" % number)
                    if answer is not None and answer[1] == CHANGED:
                        acknowledged.append(b"%d" % number)
            time.sleep(0.05)

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(1.5)  # who is there is written down once a second
    for seconds in (0.1, 0.7, 0.4):
        time.sleep(seconds)
        running.kill()
        running.start()
        before = len(subscriber.received)
        until(lambda: len(subscriber.received) > before, SECONDS)  # noqa: B023 - called within this round
    ended.set()
    sender.join()
    assert len(acknowledged) > 100
    until(lambda: set(acknowledged) <= set(values(subscriber)), SECONDS)
    firsts = list(dict.fromkeys(values(subscriber)))
    assert firsts == sorted(firsts, key=int)
    subscriber.close()


def test_a_client_that_was_away_gets_what_it_missed_and_one_that_does_not_acknowledge_is_cut(
    gateway: Callable[..., GatewayProcess],
) -> None:
    running = gateway()
    away = Subscriber(running.mqtt, client_id="away", clean=False)
    away.close()
    lazy = new_client("lazy", clean=False, manual_ack=True)
    there, gone = threading.Event(), threading.Event()
    lazy.on_connect = lambda client, *_: client.subscribe("#", 1)
    lazy.on_subscribe = lambda *_: there.set()
    lazy.on_disconnect = lambda *_: gone.set()
    lazy.connect("127.0.0.1", running.mqtt)
    lazy.loop_start()
    assert there.wait(SECONDS)
    other = Subscriber(running.mqtt)
    sent = [b"%d" % number for number in range(120)]
    post(running, *sent)
    until(lambda: values(other) == sent)  # nobody waits for the lazy one
    assert gone.wait(SECONDS)
    lazy.loop_stop()
    assert metric(running, "mqtt_unacknowledged_total") >= 1
    for client_id in ("away", "lazy"):
        back = Subscriber(running.mqtt, client_id=client_id, clean=False)
        until(lambda: len(values(back)) >= len(sent))  # noqa: B023 - called within this round
        assert values(back) == sent
        back.close()
    until(lambda: metric(running, "spool_messages") == 0)
    other.close()


def test_every_listener_takes_clients(tmp_path: Path, gateway: Callable[..., GatewayProcess]) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    running = gateway(
        f"mqtt.embedded.tls_listen={FREE}",
        f"mqtt.embedded.websocket_listen={FREE}",
        f"mqtt.embedded.websocket_tls_listen={FREE}",
        f"mqtt.embedded.cert_file={certificate}",
        f"mqtt.embedded.key_file={key}",
        USERS,
    )
    received: queue.Queue[tuple[int, bytes]] = queue.Queue()
    clients: list[Client] = []
    ways = zip(running.ports["mqtt"], ("tcp", "tcp", "websockets", "websockets"), (False, True) * 2, strict=True)
    for at, (port, transport, tls) in enumerate(ways):
        client = new_client(f"c{at}", transport=transport)
        client.username_pw_set("page", "secret-of-page")
        if tls:
            client.tls_set(str(authority.file), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        there = threading.Event()
        client.on_connect = lambda client, *_: client.subscribe("allowed/all", 1)
        client.on_subscribe = lambda *_, there=there: there.set()
        client.on_message = lambda _c, _d, message, at=at: received.put((at, bytes(message.payload)))
        client.connect("127.0.0.1", port)
        client.loop_start()
        assert there.wait(SECONDS), (transport, tls)
        clients.append(client)
    large = bytes(200_000)
    for client in clients:
        client.publish("allowed/all", large, 1)
    got = [received.get(timeout=SECONDS) for _ in range(16)]
    assert sorted(at for at, _ in got) == sorted([0, 1, 2, 3] * 4)
    assert {payload for _, payload in got} == {large}
    for client in clients:
        client.disconnect()
        client.loop_stop()


def test_a_wrong_password_is_refused_and_disturbs_nobody(gateway: Callable[..., GatewayProcess]) -> None:
    running = gateway(USERS)
    victim = new_client("victim", clean=False)
    victim.username_pw_set("page", "secret-of-page")
    lost, there, got = threading.Event(), threading.Event(), threading.Event()
    victim.on_connect = lambda client, *_: client.subscribe("allowed/#", 1)
    victim.on_subscribe = lambda *_: there.set()
    victim.on_message = lambda *_: got.set()
    victim.on_disconnect = lambda *_: lost.set()
    victim.connect("127.0.0.1", running.mqtt)
    victim.loop_start()
    assert there.wait(SECONDS)
    for clean in (True, False):
        thief = new_client("victim", clean=clean)
        thief.username_pw_set("page", "wrong-secret")
        assert code_of(thief, running.mqtt) == "Bad user name or password"
        neighbour = new_client("victim", clean=clean)
        neighbour.username_pw_set("other", "secret-of-other")
        assert code_of(neighbour, running.mqtt) == "Client identifier not valid"
    victim.publish("allowed/x", b"x", 1)
    assert got.wait(SECONDS)
    assert not lost.is_set()
    victim.disconnect()
    victim.loop_stop()


def test_rules_hold_for_subscriptions_messages_wills_and_what_is_retained(
    gateway: Callable[..., GatewayProcess],
) -> None:
    running = gateway(USERS, "mqtt.embedded.anonymous=no")
    other = new_client("other")
    other.username_pw_set("other", "secret-of-other")
    received: list[tuple[str, bytes]] = []
    granted: queue.Queue[list[int]] = queue.Queue()
    other.on_connect = lambda client, *_: client.subscribe("#", 1)
    other.on_subscribe = lambda *_: granted.put([])
    other.on_message = lambda _c, _d, message: received.append((message.topic, bytes(message.payload)))
    other.connect("127.0.0.1", running.mqtt)
    other.loop_start()
    granted.get(timeout=SECONDS)
    other.publish("hidden", b"retained", 1, retain=True).wait_for_publish(SECONDS)

    seen: list[str] = []
    page = new_client("page")
    page.username_pw_set("page", "secret-of-page")
    page.on_connect = lambda client, *_: client.subscribe([("#", 1), ("allowed/#", 1)])
    page.on_subscribe = lambda _c, _d, _m, codes, _p: granted.put([code.value for code in codes])
    page.on_message = lambda _c, _d, message: seen.append(message.topic)
    page.connect("127.0.0.1", running.mqtt)
    page.loop_start()
    assert granted.get(timeout=SECONDS) == [0x80, 1]
    page.publish("hidden", b"forbidden", 1).wait_for_publish(SECONDS)
    page.publish("allowed/1", b"may be", 1).wait_for_publish(SECONDS)
    for number, topic in enumerate((b"hidden", b"allowed/will")):
        with socket.create_connection(("127.0.0.1", running.mqtt)) as dying:
            will = Will(topic, b"will")
            dying.sendall(encode(Connect(f"d{number}", user="page", password=b"secret-of-page", will=will)))
            assert dying.recv(4) == b"\x20\x02\x00\x00"
    until(lambda: ("allowed/will", b"will") in received and "allowed/will" in seen)
    assert [payload for topic, payload in received if topic == "hidden"] == [b"retained"]
    assert "hidden" not in seen  # aMQTT shows a new client what others have asked for
    assert code_of(new_client("nobody"), running.mqtt) == "Not authorized"
    for client in (page, other):
        client.disconnect()
        client.loop_stop()


def test_users_come_and_go_while_it_runs(gateway: Callable[..., GatewayProcess], tmp_path: Path) -> None:
    running = gateway()
    password = tmp_path / "password"
    password.write_text("a-secret\n")
    arguments = ("dashboard", "--password-file", str(password))
    coapgw(running.data, "mqtt-user", "add", *arguments, "--subscribe", "#")

    def new() -> Client:
        client = new_client("board")
        client.username_pw_set("dashboard", "a-secret")
        return client

    until(lambda: code_of(new(), running.mqtt) == "Success")
    client, lost = new(), threading.Event()
    client.on_disconnect = lambda *_: lost.set()
    client.connect("127.0.0.1", running.mqtt)
    client.loop_start()
    coapgw(running.data, "mqtt-user", "remove", "dashboard")
    assert lost.wait(SECONDS)
    client.loop_stop()
    assert code_of(new(), running.mqtt) == "Bad user name or password"


WRONG = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x10\xff\xff\xff\x7f",
    b"\xf0\x00",
    encode(Connect("bad")) + b"\x30\xff\xff\xff\x7f",
    encode(Connect("bad")) + b"\x82\x03\x00\x01\x00",
    encode(Connect("bad")) + b"\x32\x07\x00\x01\xff\x00\x01xx",
    encode(Connect("bad")) + encode(Connect("bad")),
    encode(Connect("bad")) + b"\x30\x05\x00\x02$Sx",
]


def test_what_is_no_mqtt_ends_its_connection_and_no_other(gateway: Callable[..., GatewayProcess]) -> None:
    running = gateway("mqtt.embedded.connect_timeout=1")
    subscriber = Subscriber(running.mqtt)
    for sent in WRONG:
        with socket.create_connection(("127.0.0.1", running.mqtt)) as stranger:
            stranger.settimeout(SECONDS)
            with suppress(ConnectionResetError):
                stranger.sendall(sent)
                while stranger.recv(1000):
                    pass
    post(running, b"still here")
    until(lambda: values(subscriber) == [b"still here"])
    assert metric(running, "mqtt_clients") == 1
    subscriber.close()


def test_mqtt_5_is_refused_in_its_own_words(gateway: Callable[..., GatewayProcess]) -> None:
    running = gateway()
    with socket.create_connection(("127.0.0.1", running.mqtt)) as client:
        client.sendall(b"\x10\x10\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x03abc")
        assert client.recv(100) == b"\x20\x03\x00\x84\x00"
        assert client.recv(100) == b""


def test_a_client_that_reads_nothing_is_cut_and_others_go_on(gateway: Callable[..., GatewayProcess]) -> None:
    running = gateway()
    with socket.create_connection(("127.0.0.1", running.mqtt)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(encode(Connect("deaf")) + b"\x82\x06\x00\x01\x00\x01#\x00")
        other = Subscriber(running.mqtt, [("flood", 1)])
        flood = new_client("flood")
        flood.connect("127.0.0.1", running.mqtt)
        flood.loop_start()
        for _ in range(200):
            flood.publish("flood", bytes(100_000), 0)
        until(lambda: metric(running, "mqtt_timeouts_total") >= 1, 60)
        before = len(other.received)
        flood.publish("flood", b"last", 1)
        until(lambda: len(other.received) > before and other.received[-1][1] == b"last", 60)
        flood.disconnect()
        flood.loop_stop()
        other.close()


def test_a_plugin_that_cannot_be_made_ends_the_gateway(tmp_path: Path) -> None:
    plugins = "mqtt.embedded.plugins=[{name='tests.unit.amqtt_plugins.Broken'}]"
    running = GatewayProcess(tmp_path / "data", AMQTT, plugins, reactor="asyncio")
    with suppress(AssertionError):  # it may have been ready for a moment
        running.start()
    until(lambda: "aMQTT does not start, so the gateway ends: PluginInitError" in running.log.read_text())
    until(lambda: "Server Shut Down" in running.log.read_text())
    running.stop()
    assert "Traceback" not in running.log.read_text()


def test_status_topics_are_amqtts(gateway: Callable[..., GatewayProcess]) -> None:
    running = gateway()
    subscriber = Subscriber(running.mqtt, [("$SYS/#", 0)])
    until(lambda: any(topic == "$SYS/broker/clients/connected" for topic, _ in subscriber.received), 30)
    assert any(topic == "$SYS/broker/version" and b"aMQTT" in payload for topic, payload in subscriber.received)
    subscriber.close()


# ---------------------------------------------------------------------- where it cannot run


def refused(*options: str, without: bool = False, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Start twistd where that must fail; *without* the package amqtt, as far as anybody can tell."""
    hide = "import importlib.metadata as m; sys.modules['amqtt'] = None; real = m.version\n"
    hide += "def version(name):\n    if name == 'amqtt': raise m.PackageNotFoundError(name)\n    return real(name)\n"
    code = f"import sys\n{hide + 'm.version = version' if without else ''}\nsys.argv[0] = 'twistd'\n"
    code += "from twisted.scripts.twistd import run; run()"
    command = [sys.executable, "-c", code, *options, "-n", "--pidfile=", "coapgw", "--set", AMQTT]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_wrong_reactor_is_a_sentence(tmp_path: Path) -> None:
    done = refused(cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        'mqtt.embedded.engine: "amqtt" needs asyncio\'s reactor, this is EPollReactor; '
        "start the gateway with: twistd --reactor=asyncio coapgw …"
    ]
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_a_sentence(tmp_path: Path) -> None:
    done = refused("--reactor=asyncio", without=True, cwd=tmp_path)
    assert done.returncode == 2
    (told,) = done.stderr.splitlines()
    assert "not installed" in told
    assert "pip install 'coapgw[amqtt]'" in told


def test_an_address_in_use_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"mqtt.embedded.listen=['127.0.0.1:{taken.getsockname()[1]}']"
        command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--reactor=asyncio", "-n"]
        command += ["--pidfile=", "coapgw", "--data", str(tmp_path / "data"), "--set", AMQTT, "--set", listen]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "coapgw cannot start" in done.stderr
    assert "Traceback" not in done.stderr
