"""A bare txThings server: POST / is answered 2.04 and forgotten.

Its argument is its port; it prints it once it listens.
"""

from __future__ import annotations

import sys

from twisted.internet import defer, reactor
from txthings import coap, resource


class Root(resource.CoAPResource):
    """Takes anything, keeps nothing."""

    def render_POST(self, request: coap.Message) -> defer.Deferred[coap.Message]:
        """Answer 2.04."""
        return defer.succeed(coap.Message(code=coap.CHANGED))


if __name__ == "__main__":
    port = reactor.listenUDP(int(sys.argv[1]), coap.Coap(resource.Endpoint(Root())), interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    reactor.run()
