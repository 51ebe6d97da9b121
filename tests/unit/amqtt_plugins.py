"""Plugins of aMQTT as somebody may write them."""

from __future__ import annotations

from dataclasses import dataclass

from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin
from amqtt.session import Session


class OneWord(BaseAuthPlugin):  # type: ignore[misc]  # aMQTT ships no types
    """Lets in who knows a word."""

    @dataclass
    class Config:
        """The word."""

        word: str

    async def authenticate(self, *, session: Session) -> bool:
        return bool(session.password == self.config.word)


class NoOdd(BaseTopicPlugin):  # type: ignore[misc]  # the same
    """Keeps topics that end in an odd figure from subscribers."""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        return not (action is Action.RECEIVE and topic is not None and topic[-1:] in "13579")


class Broken(BasePlugin):  # type: ignore[misc]  # the same
    """Cannot be made."""

    def __init__(self, context: object) -> None:
        raise RuntimeError("secret")
