"""What aMQTT needs before it can be the embedded broker: its package, and asyncio's reactor."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

VERSIONS: Final = ((0, 12), (0, 13))  # from the first to before the second: we use what another may have changed
START: Final = "twistd --reactor=asyncio coapgw …"
_KEY: Final = 'mqtt.embedded.engine: "amqtt"'


def missing_package() -> str | None:
    """Return what has to be installed for aMQTT to run, in a sentence; None if nothing."""
    wanted = "pip install 'coapgw[amqtt]', or 'amqtt >= {}.{}, < {}.{}'".format(*VERSIONS[0], *VERSIONS[1])
    try:
        found = version("amqtt")
    except PackageNotFoundError:
        return f"{_KEY} needs the package amqtt, which is not installed: {wanted}"
    if not is_known(found):
        return f"{_KEY} does not work with the amqtt {found} that is installed: {wanted}"
    return None


def is_known(package_version: str) -> bool:
    """Return whether this version of aMQTT is one that the engine was written for."""
    numbers = tuple(int(part) for part in package_version.split(".")[:2] if part.isdecimal())
    return VERSIONS[0] <= numbers < VERSIONS[1]


def wrong_reactor(reactor: object) -> str | None:
    """Return how to start the gateway with the reactor that aMQTT needs; None if *reactor* is that one."""
    from twisted.internet.asyncioreactor import AsyncioSelectorReactor

    if isinstance(reactor, AsyncioSelectorReactor):
        return None
    return f"{_KEY} needs asyncio's reactor, this is {type(reactor).__name__}; start the gateway with: {START}"
