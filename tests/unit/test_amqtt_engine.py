"""The engine without a socket: what it tells aMQTT, and what it keeps of what aMQTT says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from twisted.logger import capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from coapgw.interfaces import IBrokerLink, IDelivery
from coapgw.metrics import AmqttCounters
from coapgw.model import Spooled
from coapgw.mqtt.access import AccessList, BrokerUser
from coapgw.mqtt.amqtt_complaints import Complaints
from coapgw.mqtt.amqtt_connection import AmqttConnection
from coapgw.mqtt.amqtt_engine import AmqttEngine, AmqttLink
from coapgw.mqtt.amqtt_rules import plugin_mistake
from coapgw.mqtt.broker import BrokerLimits
from coapgw.mqtt.connection import Closing
from coapgw.mqtt.packets import ConnAck, Connect, Packet, PubAck, Publish, SubAck, Subscribe, encode
from coapgw.mqtt.parser import Parser
from coapgw.mqtt.publication import Publication

pytestmark = pytest.mark.filterwarnings("ignore:`BrokerSysPlugin`:DeprecationWarning")


class Client:
    """One client, as the glue sees it."""

    def __init__(self, engine: AmqttEngine, connect: Connect | None = None) -> None:
        connection = engine.open_connection("somewhere", True, 0.0)
        assert connection is not None
        self.connection: AmqttConnection = connection
        self._parser = Parser(1 << 20)
        if connect is not None:
            self.say(connect)

    def say(self, packet: Packet) -> None:
        self.connection.receive_data(encode(packet), 0.0)

    async def hear(self, count: int = 1) -> list[Packet]:
        """Return the next packets."""
        packets: list[Packet] = []
        for _ in range(2000):
            packets += self._parser.packets(self.connection.data_to_send())
            if len(packets) >= count:
                return packets
            await asyncio.sleep(0.001)
        raise AssertionError(packets)

    def leave(self) -> None:
        self.connection.connection_lost(0.0)


@implementer(IDelivery)
class Deliveries:
    """The publisher's side."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.done: list[int] = []
        self.resumed = 0

    def accepted(self, place: int) -> None:
        self.taken.append(place)

    def settled(self, place: int) -> None:
        self.done.append(place)

    def refused(self, message: Spooled, reason: str) -> None:
        raise AssertionError(reason)

    def resume(self) -> None:
        self.resumed += 1


async def until(holds: Callable[[], object]) -> None:
    """Give the loop time until something holds."""
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError


USERS = [BrokerUser("page", "secret", ("allowed/#",), ("allowed/#",))]


def running(
    scenario: Callable[[AmqttEngine], Coroutine[Any, Any, None]],
    access: AccessList | None = None,
    plugins: dict[str, dict[str, object]] | None = None,
    **limits: Any,
) -> None:
    """Run a scenario with an engine that has begun, and end it in order."""

    async def run() -> None:
        engine = AmqttEngine(access or AccessList(USERS), BrokerLimits(**limits), lambda: 0.0, plugins)
        engine.begin()
        while not engine.is_running:
            await asyncio.sleep(0)
        await scenario(engine)
        engine.stop()
        for connection in list(engine._connections):
            connection.connection_lost(0.0)
        await engine.finished().asFuture(asyncio.get_running_loop())
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(run())


def spooled(place: int) -> Spooled:
    return Spooled(place, 1, "8988280666000000017", f"id-{place}", b"a/topic", b"%d" % place)


def test_a_message_of_the_spool_is_settled_by_its_acknowledgement() -> None:
    async def scenario(engine: AmqttEngine) -> None:
        deliveries = Deliveries()
        link = AmqttLink(engine, deliveries, lambda: 0.0, lambda: 0.0)
        assert verifyObject(IBrokerLink, link)
        client = Client(engine, Connect("one"))
        assert await client.hear() == [ConnAck(False, 0)]
        client.say(Subscribe(1, ((b"a/#", 1),)))
        assert await client.hear() == [SubAck(1, (1,))]
        assert engine.subscribers() == {"one"}
        assert engine.has_subscribers({"one"})
        assert not engine.has_subscribers({"one", "another"})
        assert link.ready()
        link.deliver(spooled(7))
        (got,) = await client.hear()
        assert isinstance(got, Publish)
        assert (got.topic, got.payload, got.qos, got.retain) == (b"a/topic", b"7", 1, False)
        assert (deliveries.taken, deliveries.done) == ([7], [])
        client.say(PubAck(got.packet_id))
        await until(lambda: deliveries.done == [7])

    running(scenario)


def test_before_it_has_begun_nothing_is_delivered_and_clients_wait() -> None:
    async def run() -> None:
        engine = AmqttEngine(AccessList(), BrokerLimits(), lambda: 0.0)
        deliveries = Deliveries()
        link = AmqttLink(engine, deliveries, lambda: 0.0, lambda: 0.0)
        early = Client(engine, Connect("early"))
        assert not link.ready()
        assert early.connection.data_to_send() == b""
        engine.begin()
        assert await early.hear() == [ConnAck(False, 0)]
        assert link.ready()
        assert deliveries.resumed == 1
        engine.stop()
        assert not link.ready()
        early.leave()
        await engine.finished().asFuture(asyncio.get_running_loop())

    asyncio.run(run())


def test_an_engine_that_never_began_is_finished_at_once() -> None:
    engine = AmqttEngine(AccessList(), BrokerLimits(), lambda: 0.0)
    engine.stop()
    assert engine.finished().called
    engine.begin()
    assert engine.open_connection("somewhere", True, 0.0) is None


def test_the_second_client_of_an_id_ends_the_first() -> None:
    async def scenario(engine: AmqttEngine) -> None:
        for clean in (True, False):
            first = Client(engine, Connect("same", clean))
            await first.hear()
            second = Client(engine, Connect("same", clean))
            await until(lambda: first.connection.closing is Closing.ABORT)  # noqa: B023 - called within this round
            assert (await second.hear())[0] == ConnAck(not clean, 0)
            first.leave()
            await until(lambda: engine.is_online("same"))
            second.leave()
            await until(lambda: not engine.is_online("same") and not engine.connected_clients)

    running(scenario)


def test_there_are_no_more_connections_than_the_limit() -> None:
    async def scenario(engine: AmqttEngine) -> None:
        Client(engine)
        assert engine.open_connection("somewhere", True, 0.0) is None
        assert engine.counters.refused_connections == 1

    running(scenario, max_connections=1)


def test_the_silent_and_those_that_read_nothing_are_cut() -> None:
    async def scenario(engine: AmqttEngine) -> None:
        silent, mute, deaf, fine = (Client(engine) for _ in range(4))
        mute.say(Connect("mute", keepalive=2))
        deaf.say(Connect("deaf"))
        fine.say(Connect("fine"))
        for client in (mute, deaf, fine):
            await client.hear()
        deaf.connection.pause()
        engine.handle_timer(10.5)
        assert [one.connection.closing for one in (silent, mute, deaf, fine)] == [Closing.ABORT] * 3 + [Closing.NO]
        assert engine.counters.timeouts == 3

    running(scenario)


def test_what_aMQTT_keeps_for_absent_clients_is_bounded() -> None:
    async def scenario(engine: AmqttEngine) -> None:
        away = Client(engine, Connect("away", clean_session=False))
        await away.hear()
        away.say(Subscribe(1, ((b"allowed/#", 1),)))
        await away.hear()
        away.leave()
        other = Client(engine, Connect("other"))
        await other.hear()
        for number in range(1, 31):
            other.say(Publish(b"allowed/x", b"%d" % number, 1, packet_id=number))
        await other.hear(30)
        assert engine._broker is not None
        session, _ = engine._broker.sessions["away"]
        await until(lambda: session.retained_messages.qsize() == 30)
        engine.handle_timer(0.0)
        assert engine.counters.dropped == 20

    running(scenario, max_queue=10)


def test_rules_that_change_end_subscriptions() -> None:
    access = AccessList(USERS)

    async def scenario(engine: AmqttEngine) -> None:
        client = Client(engine, Connect("c", False, user="page", password=b"secret"))
        await client.hear()
        client.say(Subscribe(1, ((b"allowed/#", 1), (b"#", 1))))
        assert await client.hear() == [SubAck(1, (1, 0x80))]
        engine.access_changed({"another"})
        assert engine.is_online("c")
        access.replace([])
        engine.access_changed({"page"})
        assert not client.connection.is_open
        assert engine.subscribers() == set()

    running(scenario, access)


WORD: dict[str, dict[str, object]] = {"tests.unit.amqtt_plugins.OneWord": {"word": "abracadabra"}}
NO_ODD: dict[str, dict[str, object]] = {"tests.unit.amqtt_plugins.NoOdd": {}}


def test_a_plugin_that_authenticates_decides_alone() -> None:
    async def scenario(engine: AmqttEngine) -> None:
        for user, word, code in (("any", b"abracadabra", 0), ("page", b"secret", 5)):
            client = Client(engine, Connect(user, False, user=user, password=word))
            assert await client.hear() == [ConnAck(False, code)]
            client.leave()
        await until(lambda: engine.session_count == 1)  # aMQTT looks once a second
        assert engine.owner_of("page") is None
        assert engine.owner_of("any") == ("any",)

    running(scenario, plugins=WORD)


def test_a_plugin_that_filters_topics_filters_the_gateways_too() -> None:
    async def scenario(engine: AmqttEngine) -> None:
        settled: list[object] = []
        client = Client(engine, Connect("one"))
        await client.hear()
        client.say(Subscribe(1, ((b"#", 1),)))
        await client.hear()
        for number in (1, 2):
            engine.publish(Publication(b"t/%d" % number, b"x", 1, False, settled.append, number))
        (got,) = await client.hear()
        assert isinstance(got, Publish)
        assert got.topic == b"t/2"
        assert settled == [1]

    running(scenario, plugins=NO_ODD)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("tests.unit.amqtt_plugins.OneWord", {"word": "secret"}, None),
        ("tests.unit.amqtt_plugins.OneWord", {}, "options"),
        ("tests.unit.amqtt_plugins.OneWord", {"word": "x", "secret": 1}, "options"),
        ("tests.unit.amqtt_plugins.Missing", {}, "cannot be imported"),
        ("no.such.module.Plugin", {}, "cannot be imported"),
        ("pathlib.Path", {}, "is no plugin"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_told_without_its_options(
    name: str, options: dict[str, object], told: str | None
) -> None:
    mistake = plugin_mistake(name, options)
    assert (mistake is None) == (told is None)
    if mistake is not None and told is not None:
        assert told in mistake
        assert "secret" not in mistake


def test_what_aMQTT_logs_is_counted_and_summed_up_without_its_words() -> None:
    counters = AmqttCounters()
    complaints = Complaints(counters)
    with capturedLogs() as said:
        loop = asyncio.new_event_loop()
        complaints.listen(loop)
        for _ in range(3):
            logging.getLogger("amqtt.broker").warning("a client said: %s", "secret")
        logging.getLogger("amqtt.broker").info("nothing")
        complaints.note("a connection", ValueError("secret"))
        complaints.report(0.0)
        logging.getLogger("amqtt.broker").warning("again")
        complaints.report(30.0)
        complaints.stop()
        loop.close()
    assert counters.complaints == 5
    (line,) = [event for event in said if "places" in event]
    assert line["count"] == 4
    assert "a connection: ValueError 1" in line["places"]
    assert "secret" not in str(line)
    assert complaints not in logging.getLogger("amqtt").handlers
