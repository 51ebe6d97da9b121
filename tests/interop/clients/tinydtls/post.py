"""POSTs to "/" over one association of tinydtls and prints the code of every answer: HOST PORT IDENTITY KEY PAYLOAD…

Runs in an environment of its own (``tests/interop/clients/install``), with nothing of coapgw in it.
"""

from __future__ import annotations

import asyncio
import sys

import aiocoap


async def post(host: str, port: str, identity: str, key: str, *payloads: str) -> None:
    """Print a code for each payload."""
    context = await aiocoap.Context.create_client_context(transports=["tinydtls"])
    dtls = {"psk": key.encode(), "client-identity": identity.encode()}
    context.client_credentials.load_from_dict({f"coaps://{host}:{port}/*": {"dtls": dtls}})
    for payload in payloads:
        request = aiocoap.Message(code=aiocoap.POST, uri=f"coaps://{host}:{port}/", payload=payload.encode())
        response = await asyncio.wait_for(context.request(request).response, 10)
        print(response.code.dotted, flush=True)
    await context.shutdown()


asyncio.run(post(*sys.argv[1:]))
