"""A DTLS front with a CoAP message layer behind it: together they are what a socket's pump drives."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from coapgw.coap.messaging import MessageLayer
from coapgw.dtls.front import Front


class SecureLayer:
    """What ``CoapPort`` needs of a layer: datagrams are the front's, what is in them the message layer's.

    The message layer's addresses are associations: its endpoints, and with them everything that is remembered of
    exchanges, begin and end with an association (RFC 7252 section 9.1.2).
    """

    def __init__(self, front: Front, messages: MessageLayer) -> None:
        """Drive both; *front* delivers to *messages* and has it forget."""
        self.front = front
        self.messages = messages
        self.receive_datagram: Callable[[bytes, Hashable, float], None] = front.receive_datagram

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Hashable]]:
        """Return what is to be sent, sealed."""
        self.front.seal(self.messages.datagrams_to_send(now))
        return self.front.datagrams_to_send()

    def crowd(self, *, crowded: bool) -> None:
        """Know whether more arrives than can be served."""
        self.messages.crowd(crowded=crowded)

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` is to be called, None if nothing can become due."""
        return min(
            (due for due in (self.front.next_timer(), self.messages.next_timer()) if due is not None), default=None
        )

    def handle_timer(self, now: float) -> None:
        """Do what is due in both."""
        self.front.handle_timer(now)
        self.messages.handle_timer(now)
