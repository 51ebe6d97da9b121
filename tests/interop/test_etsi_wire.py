"""Every case of the ETSI CoAP test descriptions for servers, over UDP and DTLS, with 0, 10 and 30 % of all datagrams

lost, doubled and overtaken each.  The cases are in etsi_core.py and etsi_transfer.py; docs/interop.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.etsi import LINKS, TRANSPORTS, Case, Conversations, running_etsi_gateway
from tests.interop.etsi_core import core, link
from tests.interop.etsi_table import check_table
from tests.interop.etsi_transfer import block, observe

CASES = [*core, *link, *block, *observe]
ROOMS = len(CASES) * len(TRANSPORTS) * len(LINKS)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversations]:
    """All of them, under way."""
    with running_etsi_gateway(
        tmp_path_factory.mktemp("etsi"), ROOMS, "coap.trusted_networks=['127.0.0.0/8']"
    ) as server:
        yield Conversations(server, CASES, 0)


@pytest.mark.parametrize("way", LINKS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.title}")
def test_case(conversations: Conversations, case: Case, transport: str, way: str) -> None:
    conversations.end(case, transport, way)


def test_the_table_of_cases_is_that_of_what_is_run() -> None:
    check_table(CASES)
