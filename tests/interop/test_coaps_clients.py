"""Other people's DTLS clients, each with every suite it has: the table of docs/interop.md."""

from __future__ import annotations

import pytest

from tests.interop.clients.all import CLIENTS
from tests.interop.clients.client import ClientAbsent, CoapsClient
from tests.interop.coaps_server import CoapsServer
from tests.interop.dtls_wire import chosen_suites
from tests.interop.interop_table import ABSENT, CONNECTION_IDS, InteropTable, expected_rows, read_rows, suite_name
from tests.interop.relay import Relay
from tests.interop.suites import BY_NUMBER, Suite

CASES = [(client, suite) for client in CLIENTS for suite in (None, *client.suites)]
REQUESTS = [b"one", b"two"]


@pytest.mark.parametrize(("client", "suite"), CASES, ids=lambda case: getattr(case, "name", "own"))
def test_a_client_posts_over_one_association(
    client: CoapsClient, suite: Suite | None, coaps: CoapsServer, interop_table: InteropTable
) -> None:
    try:
        version = client.version()
    except ClientAbsent as absent:
        pytest.skip(f"NOT TESTED: {absent}")
    with interop_table.row(client.name, version, suite) as words, Relay(coaps.address) as relay:
        assert client.post(coaps.at(relay.address), suite, REQUESTS) == ["2.04"] * len(REQUESTS)
        [chosen] = chosen_suites(relay.to_client)  # one ServerHello: one association
        assert chosen in BY_NUMBER
        if suite is None:
            words.append(f"agrees on {BY_NUMBER[chosen].name}")
        else:
            assert chosen == suite.number
        words.append(f"{len(REQUESTS)} requests in one association")


def test_the_table_has_every_client_with_every_suite(interop_table: InteropTable) -> None:
    if interop_table.is_written:
        pytest.skip("the table is being written: run once more to check it")
    rows = read_rows()
    assert list(rows) == [(client, suite) for client, suite, _ in expected_rows()]
    for client, suite, lacks in expected_rows():
        if lacks:
            assert rows[client, suite].result == f"{ABSENT}: {lacks}"


def test_rows_are_named_alike() -> None:
    tried = [(client.name, suite_name(suite)) for client, suite in CASES]
    listed = [(client, suite) for client, suite, lacks in expected_rows() if not lacks and suite != CONNECTION_IDS]
    assert tried == listed
