"""Replies of chat completions with function calls, as servers send them: whole, and in parts."""

import json
from typing import Any

Piece = dict[str, Any]


def piece(arguments: Any = None, name: str | None = None, **keys: Any) -> Piece:
    """A piece of a call, of which servers leave out what they do not know."""
    function = {"name": name, "arguments": arguments}
    return {**keys, "function": {key: value for key, value in function.items() if value is not None}}


def stream_of(*deltas: Piece, finish: str | None = "tool_calls") -> bytes:
    """Server-sent events with parts of a message."""
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    events = (json.dumps({"choices": [choice]}) for choice in choices)
    return "".join(f"data: {event}\n\n" for event in (*events, "[DONE]")).encode()


def whole(finish: str = "tool_calls", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}).encode()
