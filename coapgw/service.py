"""The wiring: what a gateway is made of and how a message passes through it, to be read from top to bottom.

``makeGateway`` gives a ``MultiService`` for any Twisted application.  Nothing is opened before it starts: twistd becomes
a daemon in between, and neither threads nor locks survive that.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import SystemRandom
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from txthings.resource import CoAPResource

from coapgw.coap.messaging import MessageLayer
from coapgw.coap.parameters import MessagingLimits
from coapgw.coap.site import ResourceSite
from coapgw.config import Config, Engine, MqttMode, PayloadForm
from coapgw.errors import ConfigurationInvalid
from coapgw.gateway.authorise import DevicesByAddress
from coapgw.gateway.envelope import MessageIds
from coapgw.gateway.resources import make_root
from coapgw.gateway.uplink import Uplink, UplinkSettings
from coapgw.mqtt.broker import Broker
from coapgw.mqtt.embedded import EmbeddedLink
from coapgw.mqtt.publisher import Publisher
from coapgw.net.udp import CoapPort
from coapgw.storage.database import open_registry
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.spool import Spool

TIMER_SECONDS: Final = 1.0


def makeGateway(
    config: Config, reactor: Any = None, *, mount: Mapping[str, CoAPResource] | None = None
) -> MultiService:
    """Return the gateway, not started.

    Args:
        config: as ``coapgw.config.load`` returns it.
        reactor: the reactor to run on; the installed one if None.
        mount: resources of the application's own by their path segment below ``/``.

    Raises:
        ConfigurationInvalid: the configuration asks for what this version cannot do.
    """
    if reactor is None:
        from twisted.internet import reactor
    return Gateway(config, reactor, mount or {})
