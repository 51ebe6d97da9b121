"""What watches the gateway asks: is it alive, does it take messages, what has it counted; and the text at ``/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coapgw import __version__
from coapgw.http import schemas
from coapgw.http.operations import Access, Answered, Call, Operation, Reply, json_reply
from coapgw.http.refusals import NotReady

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
WELCOME = f"coapgw {__version__}\n\nThe management API is described at /v1/openapi.json; see also docs/api.md.\n"


class HealthOperations:
    """What needs no token and costs nothing: no database is asked.

    Args:
        unready: returns what keeps the gateway from taking messages, a sentence each; nothing if nothing does.
        metrics: returns the text that Prometheus reads.
    """

    def __init__(self, unready: Callable[[], Sequence[str]], metrics: Callable[[], bytes]) -> None:
        """Ask these whenever we are asked."""
        self._unready = unready
        self._metrics = metrics

    def operations(self) -> Sequence[Operation]:
        """Return the rows of the table."""
        return (
            Operation(
                *("GET", "/healthz", "isAlive", "Is the gateway alive", self.alive),
                answered={200: Answered("it is", schemas.HEALTH)},
                access=Access.OPEN,
                blocking=False,
            ),
            Operation(
                *("GET", "/readyz", "isReady", "Does the gateway take messages", self.ready),
                answered={200: Answered("it does", schemas.HEALTH)},
                access=Access.OPEN,
                blocking=False,
            ),
            Operation(
                *("GET", "/metrics", "getMetrics", "What the gateway has counted, for Prometheus", self.metrics),
                answered={200: Answered("text format of Prometheus", content_type="text/plain")},
                access=Access.OPEN,
                blocking=False,
            ),
            Operation(
                *("GET", "/", "getWelcome", "Where to read on", self.welcome),
                answered={200: Answered("a short text", content_type="text/plain")},
                access=Access.OPEN,
                blocking=False,
            ),
        )

    def alive(self, call: Call) -> Reply:
        """Answer: the reactor turns."""
        return json_reply({"status": "ok"})

    def ready(self, call: Call) -> Reply:
        """Answer 200, or say what is in the way."""
        reasons = self._unready()
        if reasons:
            raise NotReady(reasons)
        return json_reply({"status": "ready"})

    def metrics(self, call: Call) -> Reply:
        """Show the counters."""
        return Reply(200, self._metrics(), METRICS_TYPE)

    def welcome(self, call: Call) -> Reply:
        """Say where the document is."""
        return Reply(200, WELCOME.encode(), TEXT)
