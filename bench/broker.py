"""What the embedded broker costs: CPU of the broker's process per message, QoS 1 on TCP; and memory of idle clients.

    python bench/broker.py [--messages N] [--payload BYTES] [--broker NAME:PORT:PID …] [--many]

Two ways in: messages published in the broker's own process, as the gateway does it, 64 at a time; and messages from a
publisher's socket, also for a persistent subscriber, whose messages are on disk before their publisher is answered.
``--broker`` measures others by socket, in turn with ours.  ``--many``: one message to 1,000 subscribers, 1,000
publishers to one, and 10,000 idle clients.  The load runs in processes of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from coapgw.mqtt.access import AccessList
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.client import MqttClient
from coapgw.mqtt.packets import Connect, Publish
from coapgw.mqtt.publication import Publication
from coapgw.net.mqtt import BrokerPump, MqttServerFactory
from coapgw.storage.sessions import SqliteSessionStore

BATCH = 64  # messages a turn, what a group commit brings at a fair load
WINDOW = 800  # unacknowledged messages of the publishers
TOPIC = b"8988280666000000017/greetings"
TICKS = os.sysconf("SC_CLK_TCK")


class Load:
    """A client on a blocking socket: subscribes or publishes until it has seen *messages*."""

    def __init__(self, port: int, client_id: str, messages: int, clean: bool = True) -> None:
        """Connect."""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = MqttClient(Connect(client_id, clean), self, lambda: None)
        self.left = messages
        self.is_ready = self.is_subscribed = False
        self.client.start(0.0)

    def turn(self) -> None:
        """Write what there is, wait for something to read."""
        self.flush()
        received = self.socket.recv(262_144)
        if not received:
            raise SystemExit("the broker closed the connection")
        self.client.receive_data(received)

    def flush(self) -> None:
        """Write what there is."""
        data = self.client.data_to_send(0.0)
        if data:
            self.socket.sendall(data)

    def connected(self, session_present: bool) -> None:
        """Go on."""
        self.is_ready = True

    def refused(self, code: int) -> None:
        """Give up."""
        raise SystemExit(f"refused: {code}")

    def received(self, message: Publish) -> None:
        """Count."""
        self.left -= 1

    def acknowledged(self, packet_id: int, reason: int) -> None:
        """Count."""
        self.left -= 1

    def subscribed(self, packet_id: int, codes: Sequence[int]) -> None:
        """Go on."""
        self.is_subscribed = True


def subscribe(port: int, messages: int) -> None:
    """Receive *messages*."""
    load = Load(port, "subscriber", messages)
    load.client.subscribe([(b"#", 1)])
    while not load.is_subscribed:
        load.turn()
    print("subscribed", flush=True)
    while load.left > 0:
        load.turn()
    load.flush()


def relay(port: int, messages: int, payload: bytes, clean: bool = True) -> None:
    """Publish *messages* and receive them; at most ``WINDOW`` are on the way, so that no broker drops any."""
    publisher, subscriber = Load(port, "publisher", messages), Load(port, "subscriber", messages, clean)
    subscriber.client.subscribe([(b"#", 1)])
    while not (publisher.is_ready and subscriber.is_subscribed):
        publisher.turn() if not publisher.is_ready else subscriber.turn()
    to_send = messages
    while publisher.left > 0 or subscriber.left > 0:
        for _ in range(min(to_send, WINDOW - max(publisher.left, subscriber.left) + to_send)):
            publisher.client.publish(TOPIC, payload, 1)
            to_send -= 1
        publisher.flush()
        subscriber.flush()
        readable, _, _ = select.select([publisher.socket, subscriber.socket], [], [])
        for load in (publisher, subscriber):
            if load.socket in readable:
                load.turn()
    subscriber.flush()


def fan(port: int, messages: int, payload: bytes, publishers: int, subscribers: int) -> None:
    """Publish *messages*, one after the other in turn, and receive each as often as there are subscribers."""
    sources = [Load(port, f"p{number}", messages // publishers) for number in range(publishers)]
    sinks = [Load(port, f"s{number}", messages) for number in range(subscribers)]
    for load in (*sources, *sinks):
        if load in sinks:
            load.client.subscribe([(b"#", 1)])
        while not (load.is_subscribed if load in sinks else load.is_ready):
            load.turn()
    by_socket = {load.socket.fileno(): load for load in (*sources, *sinks)}
    poll = select.epoll()
    for number in by_socket:
        poll.register(number, select.EPOLLIN)
    room = max(1, WINDOW // max(publishers, subscribers))
    to_send = dict.fromkeys(sources, messages // publishers)
    while any(load.left > 0 for load in (*sources, *sinks)):
        behind = max(load.left for load in sinks) - sum(to_send.values())
        for load in sources:
            if to_send[load] and load.left - to_send[load] < room and behind < WINDOW:
                load.client.publish(TOPIC, payload, 1)
                to_send[load] -= 1
                behind += 1
                load.flush()
        for number, _ in poll.poll(1.0):
            by_socket[number].turn()
            by_socket[number].flush()


def idle(port: int, clients: int) -> None:
    """Connect *clients*, each with a subscription, tell the parent, and wait for its end."""
    loads = []
    for number in range(clients):
        load = Load(port, f"idle-{number}", 0)
        load.client.subscribe([(b"idle/%d" % number, 1)])
        load.flush()
        loads.append(load)
    for load in loads:
        while not load.is_subscribed:
            load.turn()
    print("connected", flush=True)
    sys.stdin.read()


class InProcess:
    """The gateway's way: publishes in the broker's process, a batch a turn."""

    def __init__(self, broker: Broker, reactor: Any, messages: int, payload: bytes) -> None:
        """Wait for ``start``."""
        self.broker, self.reactor, self.payload = broker, reactor, payload
        self.to_send = self.unsettled = messages
        self.began = 0.0

    def start(self) -> None:
        """Wait for the subscriber."""
        if not self.broker.has_subscribers(["subscriber"]):
            self.reactor.callLater(0.05, self.start)
            return
        self.began = time.process_time()
        self.turn()

    def turn(self) -> None:
        """Publish a batch if the window has room for it."""
        if self.unsettled - self.to_send <= WINDOW:
            for _ in range(min(BATCH, self.to_send)):
                self.to_send -= 1
                self.broker.publish(Publication(TOPIC, self.payload, 1, False, self.settled, self.to_send))
        if self.to_send:
            self.reactor.callLater(0, self.turn)

    def settled(self, place: object) -> None:
        """Count; tell the parent at the end."""
        self.unsettled -= 1
        if not self.unsettled:
            print(json.dumps(time.process_time() - self.began), flush=True)


def serve(messages: int, payload: bytes) -> None:
    """Run a broker; with *messages*, publish that many in its process."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    directory = tempfile.TemporaryDirectory()
    store = SqliteSessionStore(Path(directory.name) / "broker.db", reactor.callFromThread)
    limits = BrokerLimits(max_connections=12_000)
    broker = Broker(AccessList(), limits, store=store, epoch=time.time() - time.monotonic())
    port = reactor.listenTCP(0, MqttServerFactory(BrokerPump(broker, reactor), True), 1000, "127.0.0.1")
    print(port.getHost().port, flush=True)
    if messages:
        InProcess(broker, reactor, messages, payload).start()
    reactor.run()


def spawn(*role: object) -> subprocess.Popen[str]:
    """Run this file in another role."""
    command = [sys.executable, __file__, "--role", *map(str, role)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line *process* prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def cpu_seconds(pid: int) -> float:
    """Return what a process has used, user and system (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def in_process(messages: int, size: int) -> float:
    """Return the CPU seconds that *messages* cost the broker's process, published inside it."""
    broker = spawn("serve", messages, size)
    subscriber = spawn("subscribe", int(line(broker)), messages)
    line(subscriber)
    seconds = float(line(broker))
    subscriber.wait()
    broker.terminate()
    broker.wait()
    return seconds


@contextlib.contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """Run our broker alone; yield its port and process."""
    broker = spawn("serve", 0, 0)
    try:
        yield int(line(broker)), broker.pid
    finally:
        broker.terminate()
        broker.wait()


def by_socket(port: int, pid: int, *role: object) -> float:
    """Return the CPU seconds that a *role* of the load costs a broker's process."""
    before = cpu_seconds(pid)
    spawn(role[0], port, *role[1:]).wait()
    return cpu_seconds(pid) - before


def resident(pid: int) -> int:
    """Return the resident bytes of a process (proc(5))."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


def idle_bytes(port: int, pid: int, clients: int) -> float:
    """Return what an idle client costs a broker's process."""
    before = resident(pid)
    load = spawn("idle", port, clients)
    line(load)
    used = resident(pid) - before
    load.terminate()
    load.wait()
    return used / clients


def measure(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    messages, size = chosen.messages, chosen.payload
    rows = [("ours, published in the process", messages, in_process(messages, size))]
    others = [one.split(":") for one in chosen.broker]
    idlers = []
    with serving() as (port, pid):
        rows.append(("ours, from socket to socket", messages, by_socket(port, pid, "relay", messages, size)))
        rows.append(("ours, for a persistent session", messages, by_socket(port, pid, "kept", messages, size)))
    brokers = [(name, int(port), int(pid)) for name, port, pid in others]
    rows += [
        (f"{name}, from socket to socket", few, by_socket(port, pid, "relay", few, size))
        for name, port, pid in brokers
        for few in [min(messages, 20_000) if name == "aMQTT" else messages]
    ]
    if chosen.many:
        with serving() as (port, pid):
            brokers.insert(0, ("ours", port, pid))
            for name, port_, pid_ in brokers:
                few = 20 if name == "aMQTT" else 200
                rows.append((f"{name}, 1 to 1,000, a delivery", 1000 * few, by_socket(port_, pid_, "out", few, size)))
                many = 5_000 if name == "aMQTT" else 50_000
                rows.append((f"{name}, 1,000 to 1", many, by_socket(port_, pid_, "in", many, size)))
        with serving() as (port, pid):
            brokers[0] = ("ours", port, pid)
            idlers = [(name, idle_bytes(port_, pid_, 10_000)) for name, port_, pid_ in brokers if name != "aMQTT"]
    print("| broker and way | µs of CPU a message | messages per CPU-second |\n|---|---|---|")
    for name, count, seconds in rows:
        print(f"| {name} | {seconds / count * 1e6:.2f} | {count / seconds:,.0f} |")
    for name, used in idlers:
        print(f"\n{name}: {used / 1000:.1f} kB for each of 10,000 idle clients with a subscription")


def main() -> None:
    """Measure, or play a role."""
    options = argparse.ArgumentParser(description="CPU of the embedded broker per message")
    options.add_argument("--messages", type=int, default=100_000)
    options.add_argument(
        "--payload", type=int, default=300, help="bytes; an envelope with 64 bytes in it has about 350"
    )
    options.add_argument(
        "--broker", metavar="NAME:PORT:PID", action="append", default=[], help="another broker to measure by socket"
    )
    options.add_argument("--many", action="store_true", help="also a thousand clients, and ten thousand idle ones")
    options.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if not chosen.role:
        measure(chosen)
        return
    role, *numbers = chosen.role[0], *map(int, chosen.role[1:])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    match role:
        case "serve":
            serve(numbers[0], bytes(numbers[1]))
        case "subscribe":
            subscribe(numbers[0], numbers[1])
        case "relay" | "kept":
            relay(numbers[0], numbers[1], bytes(numbers[2]), role == "relay")
        case "out":
            fan(numbers[0], numbers[1], bytes(numbers[2]), 1, 1000)
        case "in":
            fan(numbers[0], numbers[1], bytes(numbers[2]), 1000, 1)
        case "idle":
            idle(numbers[0], numbers[1])


if __name__ == "__main__":
    main()
