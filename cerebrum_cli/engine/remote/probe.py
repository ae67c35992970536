"""Ask one server what it is, without a vocabulary, and without waiting for it."""

from __future__ import annotations

import asyncio

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.engine.remote.client import Client
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.failures import LostServerError
from cerebrum_cli.engine.remote.kind import ServerInfo
from cerebrum_cli.engine.remote.recognition import describe


def probe(endpoint: Endpoint) -> ServerInfo:
    """What a server is; for a thread without an event loop.

    Raises EndpointError if it cannot be used, BusyServerError if it cannot be used yet.
    """
    return asyncio.run(_describe(endpoint))


async def _describe(endpoint: Endpoint) -> ServerInfo:
    client = Client(endpoint)
    try:
        return await describe(client, endpoint)
    except LostServerError as lost:
        found = "that it is a llama-server, and its log" if lost.was_sent else "and start llama-server there"
        raise EndpointError(f"{endpoint.name}: {lost.reason}", f"check the URL, {found}") from lost
    finally:
        await client.close()
