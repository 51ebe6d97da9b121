"""mosquitto_sub and mosquitto_pub against the embedded broker, both as processes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.interop.conftest import BrokerStart

SECONDS = 20  # before a client that should end has failed


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: apt-get install mosquitto-clients")
    return found


class Subscriber:
    """A mosquitto_sub that is subscribed; ``lines`` waits for what it prints."""

    def __init__(self, port: int, *arguments: str) -> None:
        command = [program("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(port), "-d", "-F", "> %t %q %r %p"]
        self.process = subprocess.Popen(
            ["stdbuf", "-oL", *command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def subscribed(self) -> Subscriber:
        assert self._wait_for("Subscribed (mid") is not None
        return self

    def _wait_for(self, beginning: str) -> str | None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(beginning):
                return line.rstrip("\n")
        return None

    def message(self) -> str | None:
        """Return topic, QoS, retain bit and payload of the next message; None when the client has ended."""
        line = self._wait_for("> ")
        return line and line[2:]

    def rest(self) -> list[str]:
        """Return the messages until the client ends by itself."""
        output, _ = self.process.communicate(timeout=SECONDS)
        return [line[2:] for line in output.splitlines() if line.startswith("> ")]


SubscriberStart = Callable[..., Subscriber]


@pytest.fixture
def subscribe() -> Iterator[SubscriberStart]:
    running: list[Subscriber] = []

    def start(port: int, *arguments: str) -> Subscriber:
        running.append(Subscriber(port, *arguments))
        return running[-1]

    yield start
    for subscriber in running:
        subscriber.process.kill()
        subscriber.process.communicate()


def publish(port: int, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [program("mosquitto_pub"), "-h", "127.0.0.1", "-p", str(port), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_messages_arrive_at_every_qos(start_broker: BrokerStart, subscribe: SubscriberStart, qos: str) -> None:
    port = start_broker().port
    subscriber = subscribe(port, "-t", "a/#", "-q", qos, "-C", "3").subscribed()
    assert publish(port, "-t", "a/b", "-q", qos, "-l", stdin="one\ntwo\nthree\n").returncode == 0
    assert subscriber.rest() == [f"a/b {qos} 0 {word}" for word in ("one", "two", "three")]


def test_a_retained_message_is_kept_and_removed(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker().port
    assert publish(port, "-t", "r", "-m", "kept", "-r", "-q", "1").returncode == 0
    assert subscribe(port, "-t", "#", "-q", "1", "-C", "1").rest() == ["r 1 1 kept"]
    assert publish(port, "-t", "r", "-n", "-r", "-q", "1").returncode == 0
    after = subscribe(port, "-t", "#", "-C", "1").subscribed()
    publish(port, "-t", "x", "-m", "fresh")
    assert after.rest() == ["x 0 0 fresh"]


def test_a_will_is_published_for_a_killed_client(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker().port
    watcher = subscribe(port, "-t", "will/#", "-q", "1", "-C", "1").subscribed()
    will = ("--will-topic", "will/x", "--will-payload", "gone", "--will-qos", "1")
    subscribe(port, "-t", "t", *will).subscribed().process.kill()
    assert watcher.rest() == ["will/x 1 0 gone"]


def test_a_persistent_session_keeps_messages(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker().port
    session = ("-t", "t", "-q", "1", "-c", "-i", "keeper")
    first = subscribe(port, *session, "-C", "1").subscribed()
    publish(port, "-t", "t", "-m", "0", "-q", "1")
    assert first.rest() == ["t 1 0 0"]
    for number in "123":
        assert publish(port, "-t", "t", "-m", number, "-q", "1").returncode == 0
    assert subscribe(port, *session, "-C", "3").rest() == ["t 1 0 1", "t 1 0 2", "t 1 0 3"]


USERS: list[dict[str, object]] = [
    {"name": "app", "password": "pw"},
    {"name": "sensor", "password": "s", "publish": ["s/#"], "subscribe": []},
]


def test_a_wrong_password_is_refused_and_disturbs_nobody(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker(USERS).port
    owner = subscribe(port, "-t", "#", "-i", "owner", "-u", "app", "-P", "pw", "-C", "1").subscribed()
    for wrong in (["-u", "app", "-P", "no"], ["-u", "nobody", "-P", "pw"], ["-u", "sensor", "-P", "s"], []):
        assert publish(port, "-i", "owner", "-t", "t", "-m", "x", *wrong).returncode != 0
    assert publish(port, "-t", "t", "-m", "right", "-u", "app", "-P", "pw").returncode == 0
    assert owner.rest() == ["t 0 0 right"]


def test_rules_hold_for_a_real_client(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker(USERS).port
    owner = subscribe(port, "-t", "#", "-q", "1", "-u", "app", "-P", "pw", "-C", "1").subscribed()
    sensor = ("-u", "sensor", "-P", "s", "-q", "1")
    assert publish(port, "-t", "forbidden", "-m", "x", *sensor).returncode == 0
    assert publish(port, "-t", "s/1", "-m", "y", *sensor).returncode == 0
    assert owner.rest() == ["s/1 1 0 y"]
    refused = subscribe(port, "-t", "s/#", "-u", "sensor", "-P", "s")
    assert "All subscription requests were denied" in refused.process.communicate(timeout=SECONDS)[0]


def test_an_oversized_message_ends_only_its_publisher(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker(max_packet=1000).port
    watcher = subscribe(port, "-t", "#", "-C", "1").subscribed()
    assert publish(port, "-t", "t", "-q", "1", "-s", stdin="x" * 2000).returncode != 0
    assert publish(port, "-t", "t", "-q", "1", "-s", stdin="x" * 900).returncode == 0
    message = watcher.message()
    assert message is not None
    assert len(message) > 900


FIVE = ("-V", "5")


def test_mqtt_5_properties_come_through(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker().port
    subscriber = subscribe(port, *FIVE, "-t", "t", "-q", "2", "-C", "1", "-F", "> %t %q %r %C %R %D %P %p").subscribed()
    said = [("content-type", "text/plain"), ("response-topic", "answer"), ("correlation-data", "77")]
    options = [word for name, value in said for word in ("-D", "publish", name, value)]
    options += ["-D", "publish", "user-property", "key", "value", "-D", "publish", "payload-format-indicator", "1"]
    assert publish(port, *FIVE, "-t", "t", "-q", "2", "-m", "x", *options).returncode == 0
    assert subscriber.rest() == ["t 2 0 text/plain answer 77 key:value x"]


def test_a_shared_subscription_shares(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker().port
    members = [
        subscribe(port, *FIVE, "-t", "$share/group/t", "-q", "1", "-C", "10", "-i", name).subscribed() for name in "ab"
    ]
    lines = "".join(f"{number}\n" for number in range(20))
    assert publish(port, *FIVE, "-t", "t", "-q", "1", "-l", stdin=lines).returncode == 0
    got = [line.split()[-1] for member in members for line in member.rest()]
    assert sorted(got, key=int) == [str(number) for number in range(20)]


def test_a_session_of_mqtt_5_ends_when_it_said(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker().port
    kept = (*FIVE, "-t", "t", "-q", "1", "-i", "kept", "-c", "-x", "60")
    subscribe(port, *kept, "-E").process.communicate(timeout=SECONDS)
    assert publish(port, *FIVE, "-t", "t", "-q", "1", "-m", "waits").returncode == 0
    assert subscribe(port, *kept, "-C", "1").rest() == ["t 1 0 waits"]
    ended = (*FIVE, "-t", "t", "-q", "1", "-i", "ended", "-c", "-x", "0")
    subscribe(port, *ended, "-E").process.communicate(timeout=SECONDS)
    assert publish(port, *FIVE, "-t", "t", "-q", "1", "-m", "lost").returncode == 0
    assert subscribe(port, *ended, "-W", "1").rest() == []


def test_a_refusal_says_why(start_broker: BrokerStart) -> None:
    user = {"name": "sensor", "password": "s", "publish": ["s/#"], "subscribe": []}
    port = start_broker([user]).port
    sensor = (*FIVE, "-u", "sensor", "-q", "1", "-m", "x")
    refused = publish(port, *sensor, "-P", "wrong", "-t", "s/1")
    assert "not authorised" in (refused.stderr + refused.stdout).lower() or refused.returncode != 0
    forbidden = publish(port, *sensor, "-P", "s", "-t", "forbidden")
    assert "not authorized" in (forbidden.stderr + forbidden.stdout).lower()


def test_the_broker_says_how_it_is(start_broker: BrokerStart, subscribe: SubscriberStart) -> None:
    port = start_broker().port
    (line,) = subscribe(port, "-t", "$SYS/broker/version", "-C", "1").rest()
    assert line.startswith("$SYS/broker/version 0 0 coapgw version ")
