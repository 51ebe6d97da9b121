"""The embedded broker alone: ``python -m tests.interop.broker_process '<JSON of the users>' [LIMIT=N …]``.

Prints the port it listens on, on 127.0.0.1; ends with SIGTERM.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet import reactor as installed_reactor

from coapgw.mqtt.access import AccessList, BrokerUser
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.net.mqtt import BrokerPump, MqttServerFactory


def main(users: str, *limits: str) -> None:
    """Serve until told to end."""
    reactor: Any = installed_reactor  # the module is replaced by the reactor
    named = {name: int(value) for name, _, value in (limit.partition("=") for limit in limits)}
    access = AccessList([BrokerUser(**user) for user in json.loads(users)])
    pump = BrokerPump(Broker(access, BrokerLimits(**named)), reactor)
    port = reactor.listenTCP(0, MqttServerFactory(pump, loopback=True), 100, "127.0.0.1")
    print(port.getHost().port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
