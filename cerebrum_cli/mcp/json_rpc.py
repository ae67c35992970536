"""Messages of JSON-RPC, in which MCP is written: a JSON object on each line. Pure."""

from __future__ import annotations

import json

from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import well_formed

METHOD_NOT_FOUND = -32601


class RpcError(Exception):
    """The error that a server answered with."""


def request(number: int, method: str, params: JsonObject) -> JsonDict:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def notification(method: str, params: JsonObject) -> JsonDict:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def answer_to(message: JsonObject) -> JsonDict | None:
    """The answer of a client that can do nothing for a server but answer its pings; None to a notification."""
    if "id" not in message:
        return None
    answer = {"jsonrpc": "2.0", "id": message["id"]}
    if message["method"] == "ping":
        return {**answer, "result": {}}
    return {**answer, "error": {"code": METHOD_NOT_FOUND, "message": "Method not found"}}


def result_of(message: JsonObject) -> JsonDict:
    """The result in an answer. Raises RpcError."""
    result = message.get("result")
    if isinstance(result, dict):
        return result
    error = message.get("error")
    problem = error.get("message") if isinstance(error, dict) else None
    raise RpcError(str(problem or "the answer has no result"))


def written(message: JsonObject) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"


def messages_in(line: bytes) -> list[JsonDict]:
    """The messages in a line, several in a batch of version 2025-03-26; none in anything else, such as a log."""
    try:
        value = json.loads(line)
        if rb"\ud" in line.lower():  # of a character, or half of one
            value = json.loads(well_formed(json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return []
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict) and item.get("jsonrpc") == "2.0"]
