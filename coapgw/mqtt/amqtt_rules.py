"""A plugin of aMQTT: the users and rules of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session


class AccessPlugin(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]  # aMQTT ships no types
    """Asks the gateway's access list; who a client is was found out before aMQTT heard of it."""

    @dataclass
    class Config:
        """What aMQTT hands over: an ``AccessList``, and whom to tell of a client that has connected."""

        access: Any  # aMQTT checks types by itself, but not such
        connected: Any

    async def authenticate(self, *, session: Session) -> bool:
        """Let in everybody who comes this far."""
        return True

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
