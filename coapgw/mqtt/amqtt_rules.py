"""Plugins of aMQTT: one with the users and rules of the gateway, and what is wrong with those that are configured."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin
from amqtt.session import Session
from amqtt.utils import import_string
from dacite import Config, DaciteError, from_dict

from coapgw.mqtt.access import Permissions

EVERYBODY: Final = Permissions()


class OthersDecide:
    """Stands for an access list where plugins of aMQTT's decide who a client is."""

    def authenticate(
        self, user: str | None, password: bytes | None, loopback: bool, host: str = "", now: float = 0.0
    ) -> Permissions:
        """Let everybody come as far as aMQTT."""
        return EVERYBODY

    def permissions_of(self, user: str | None) -> Permissions:
        """Leave rules to the plugins."""
        return EVERYBODY


def plugin_mistake(name: str, options: Mapping[str, object]) -> str | None:
    """Return what is wrong with a plugin, its options left out; None if it can be loaded."""
    try:
        plugin: Any = import_string(name)
    except Exception as wrong:  # noqa: BLE001 - a module that is not ours may raise anything
        return f"{name} cannot be imported: {type(wrong).__name__}"
    if not inspect.isclass(plugin) or not issubclass(plugin, BasePlugin):
        return f"{name} is no plugin of aMQTT's"
    shape: Any = getattr(plugin, "Config", None)
    try:
        from_dict(shape, dict(options), Config(strict=True))
    except (DaciteError, TypeError, AttributeError) as wrong:
        return f"the options of {name} are not what it takes: {type(wrong).__name__}"
    return None


def authenticates(name: str) -> bool:
    """Return whether a plugin that can be loaded decides who a client is."""
    return issubclass(import_string(name), BaseAuthPlugin)


def filters_topics(name: str) -> bool:
    """Return whether a plugin that can be loaded decides about topics."""
    return issubclass(import_string(name), BaseTopicPlugin)


class AccessPlugin(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]  # aMQTT ships no types
    """Asks the gateway's access list; who a client is was found out before aMQTT heard of it."""

    @dataclass
    class Config:
        """What aMQTT hands over: an ``AccessList``, and whom to tell of a client that has connected."""

        access: Any  # aMQTT checks types by itself, but not such
        connected: Any

    async def authenticate(self, *, session: Session) -> bool | None:
        """Let in everybody who comes this far, unless other plugins decide about that: None counts for nothing."""
        return None if isinstance(self.config.access, OthersDecide) else True

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Return whether a client may publish or subscribe; it may have what it was allowed to subscribe to."""
        if session is None or topic is None:
            return False
        if action is Action.RECEIVE:
            return True
        permissions = self.config.access.permissions_of(session.username)
        if permissions is None:
            return False
        if action is Action.PUBLISH:
            return bool(permissions.may_publish(topic.encode()))
        return bool(permissions.may_subscribe(topic.encode()))

    async def on_broker_client_connected(self, *, client_id: str, client_session: Session) -> None:
        """Go on with what the client is owed."""
        self.config.connected(client_id)
