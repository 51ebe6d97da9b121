"""A bare aiocoap server: POST / is answered 2.04 and forgotten.

Its argument is its port; it prints it once it listens.
"""

from __future__ import annotations

import asyncio
import sys

import aiocoap
from aiocoap import resource


class Root(resource.Resource):
    """Takes anything, keeps nothing."""

    async def render_post(self, request: aiocoap.Message) -> aiocoap.Message:
        """Answer 2.04."""
        return aiocoap.Message(code=aiocoap.CHANGED)


async def serve(port: int) -> None:
    """Serve on 127.0.0.1 until killed."""
    site = resource.Site()
    site.add_resource((), Root())
    await aiocoap.Context.create_server_context(site, bind=("127.0.0.1", port), transports=["udp6"])
    print(port, flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
