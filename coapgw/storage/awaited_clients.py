"""Which MQTT clients had subscribed when the gateway ended, where the broker itself forgets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from twisted.logger import Logger

FILE_NAME: Final = "amqtt-clients.json"
SIZE_LIMIT: Final = 16 << 20  # bytes that are read


class AwaitedClients:
    """A file of client ids, replaced as a whole when they change.

    It is of use for some seconds after a restart only, so nothing is lost with it but those seconds: a file that cannot
    be read is as good as none, one that cannot be written is logged once.
    """

    log = Logger()

    def __init__(self, data: Path) -> None:
        """Keep the file in the directory *data*."""
        self._path = data / FILE_NAME
        self._written: set[str] | None = None
        self._is_failing = False

    def read(self) -> set[str]:
        """Return the clients that there were."""
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(SIZE_LIMIT))
        except (OSError, ValueError):
            return set()
        return {one for one in found if isinstance(one, str)} if isinstance(found, list) else set()

    def write(self, clients: set[str]) -> None:
        """Write what clients there are, if they are others than before; may block for a moment."""
        if clients == self._written:
            return
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps(sorted(clients)))
            new.replace(self._path)
        except OSError as refused:
            if not self._is_failing:
                self._is_failing = True
                self.log.warn("{file} cannot be written: {reason}", file=str(self._path), reason=refused.strerror)
        else:
            self._is_failing = False
            self._written = set(clients)
