"""What the embedded broker costs: CPU of the broker's process per message, one QoS 1 subscriber on TCP.

    python bench/broker.py [--messages N] [--payload BYTES]

Two ways in: messages published in the broker's own process, as the gateway does it, 64 at a time; and messages from a
publisher's socket.  The load runs in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coapgw.mqtt.access import AccessList
from coapgw.mqtt.broker import Broker
from coapgw.mqtt.client import MqttClient
from coapgw.mqtt.packets import Connect, Publish
from coapgw.mqtt.session import Publication
from coapgw.net.mqtt import BrokerPump, MqttServerFactory

BATCH = 64  # messages a turn, what a group commit brings at a fair load
WINDOW = 800  # unacknowledged messages of the publishers
TOPIC = b"8988280666000000017/greetings"
TICKS = os.sysconf("SC_CLK_TCK")


class Load:
    """A client on a blocking socket: subscribes or publishes until it has seen *messages*."""

    def __init__(self, port: int, client_id: str, messages: int) -> None:
        """Connect."""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = MqttClient(Connect(client_id), self, lambda: None)
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
        """Tell the parent."""
        self.is_subscribed = True
        print("subscribed", flush=True)


def subscribe(port: int, messages: int) -> None:
    """Receive *messages*."""
    load = Load(port, "subscriber", messages)
    load.client.subscribe([(b"#", 1)])
    while load.left > 0:
        load.turn()
    load.flush()


def relay(port: int, messages: int, payload: bytes) -> None:
    """Publish *messages* and receive them; at most ``WINDOW`` are on the way, so that no broker drops any."""
    publisher, subscriber = Load(port, "publisher", messages), Load(port, "subscriber", messages)
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
    broker = Broker(AccessList())
    port = reactor.listenTCP(0, MqttServerFactory(BrokerPump(broker, reactor), True), 100, "127.0.0.1")
    print(port.getHost().port, flush=True)
    if messages:
        InProcess(broker, reactor, messages, payload).start()
    reactor.run()


def spawn(*role: object) -> subprocess.Popen[str]:
    """Run this file in another role."""
    command = [sys.executable, __file__, "--role", *map(str, role)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


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


def by_socket(messages: int, size: int, port: int = 0, pid: int = 0) -> float:
    """Return the CPU seconds that *messages* from a socket cost a broker's process, our own unless one is given."""
    broker = None
    if not port:
        broker = spawn("serve", 0, size)
        port, pid = int(line(broker)), broker.pid
    before = cpu_seconds(pid)
    spawn("relay", port, messages, size).wait()
    seconds = cpu_seconds(pid) - before
    if broker is not None:
        broker.terminate()
        broker.wait()
    return seconds


def main() -> None:
    """Measure, or play a role."""
    options = argparse.ArgumentParser(description="CPU of the embedded broker per message")
    options.add_argument("--messages", type=int, default=100_000)
    options.add_argument(
        "--payload", type=int, default=300, help="bytes; an envelope with 64 bytes in it has about 350"
    )
    options.add_argument("--broker", metavar="PORT:PID", help="another broker to measure by socket, e.g. mosquitto")
    options.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.role:
        role, *numbers = chosen.role[0], *map(int, chosen.role[1:])
        if role == "subscribe":
            subscribe(numbers[0], numbers[1])
        elif role == "relay":
            relay(numbers[0], numbers[1], bytes(numbers[2]))
        else:
            serve(numbers[0], bytes(numbers[1]))
        return
    ways = [("published in the process", in_process(chosen.messages, chosen.payload))]
    ways.append(("from socket to socket", by_socket(chosen.messages, chosen.payload)))
    if chosen.broker:
        port, _, pid = chosen.broker.partition(":")
        ways.append((f"the broker on port {port}", by_socket(chosen.messages, chosen.payload, int(port), int(pid))))
    print("| way | µs of CPU a message | messages per CPU-second |\n|---|---|---|")
    for name, seconds in ways:
        print(f"| {name} | {seconds / chosen.messages * 1e6:.2f} | {chosen.messages / seconds:,.0f} |")


if __name__ == "__main__":
    main()
