"""An MCP server made with the SDK, over its standard streams, or over HTTP: python mcp_sdk_server.py [PORT]."""

import asyncio
import json
import os
import sys
from pathlib import Path

from mcp.server.mcpserver import Context, Image, MCPServer
from pydantic import BaseModel

server = MCPServer("sdk", version="1")
count = 0  # of calls, which a server that starts again has forgotten


class Weather(BaseModel):
    city: str
    degrees: float


@server.tool()
def weather(city: str, days: int = 1) -> Weather:
    """Forecast for a city."""
    return Weather(city=city, degrees=4.5 * days)


@server.tool()
def poem() -> str:
    return "  ä € \U0001f600\n\n\tend "


@server.tool()
def picture() -> Image:
    return Image(data=b"\x89PNG" * 5, format="png")


@server.tool()
def counted() -> int:
    global count
    count += 1
    return count


@server.tool()
def surroundings() -> str:
    return json.dumps([str(Path.cwd()), dict(os.environ)])


@server.tool()
def authorization(context: Context) -> str:
    return (context.headers or {}).get("authorization", "none")


@server.tool()
def crash() -> str:
    os._exit(3)


@server.tool()
async def endless(marker: str) -> str:
    Path(marker).touch()
    await asyncio.sleep(600)
    return "late"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
