"""The name by which another broker knows this gateway: made once, the same ever after."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

FILE_NAME: Final = "bridge-client-id"
RANDOM_BYTES: Final = 8


def kept_client_id(data: Path, random: Callable[[int], bytes]) -> str:
    """Return the client id kept in the directory *data*; make one if there is none.

    It has 22 letters and digits: every server takes up to 23 (MQTT 3.1.1 section 3.1.3.1).  Raises OSError.
    """
    path = data / FILE_NAME
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if kept.isascii() and kept.isalnum():
        return kept
    made = "coapgw" + random(RANDOM_BYTES).hex()
    new = path.with_suffix(".new")
    with new.open("w") as file:
        file.write(made + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return made
