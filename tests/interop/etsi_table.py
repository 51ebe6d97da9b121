"""The table of ETSI cases in docs/interop.md: written from the lists of cases, which are what the tests run."""

from __future__ import annotations

import os

from tests.interop.etsi import LINKS, Case
from tests.interop.etsi_foreign import FOREIGN, ONCE_ONLY
from tests.interop.interop_table import PAGE, WRITE

BEGIN, END = "<!-- ETSI cases -->\n", "<!-- end of ETSI cases -->\n"
HEADER = "| case | what it checks | wire, UDP and DTLS | aiocoap | coap-client | node coap | coap-client, DTLS |"
ALL = ", ".join(LINKS)
GOOD = next(iter(LINKS))


def table(cases: list[Case]) -> str:
    """Return it as Markdown."""
    lines = [HEADER, "|---|---|---|---|---|---|---|"]
    for case in cases:
        if case.name in FOREIGN:
            ways = GOOD if case.name in ONCE_ONLY else ALL
            foreign = [ways, ways, ways, GOOD]
        else:
            foreign = [""] * 4
        lines.append(f"| {' | '.join([case.name, case.title, ALL, *foreign])} |")
    return "\n".join(lines) + "\n"


def check_table(cases: list[Case]) -> None:
    """Compare the page with the cases, or write it if WRITE_INTEROP_TABLE=1 is in the environment."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if os.environ.get(WRITE):
        PAGE.write_text(before + BEGIN + table(cases) + END + after)
    else:
        assert rest.startswith(table(cases)), f"docs/interop.md is not what is run: {WRITE}=1 writes it"
