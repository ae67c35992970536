"""Chat completions, which any other server has: messages go out, text and function calls come back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.messages import wire_message
from cerebrum_cli.core.text import foreign_line, well_formed
from cerebrum_cli.core.tools import ToolCalls, read_call
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.client import DONE
from cerebrum_cli.servers.endpoint import ServerInfo
from cerebrum_cli.servers.faults import LostServerError, RefusedRequestError
from cerebrum_cli.servers.kind import ANY_CONTEXT, ReplyChunk, ServerKind, stated_count
from cerebrum_cli.servers.openai_servers import ENDS, SHARED_PARAMS

CHAT_SLOTS = 4  # requests at a time, since a server of chat completions does not state how many it takes
# Parts of reasons for which the reply is none, or is withheld. The reply is kept if the reason is unknown.
FAILURES = re.compile(
    "(?<!un)(?:error|fail(?!.?safe)|abort|cancel|filter|safety|refus|blocked|blocklist|prohibit|recitation|spii"
    "|sensitive|guardrail)"
)


class OpenAIServer(ServerKind):
    """Any other server of chat completions, such as Ollama; each sample is a request."""

    name = "OpenAI-compatible server"
    samplers = SHARED_PARAMS
    completion_path = "/v1/chat/completions"

    def read_info(self, entry: JsonObject, answer: Any) -> ServerInfo:  # noqa: ARG002
        model = str(entry["id"])
        return ServerInfo(
            self.name,
            build="unknown",
            model=model,
            weights=foreign_line(model),
            context_size=ANY_CONTEXT,
            context_option="context",
            slots=CHAT_SLOTS,
            takes_messages=True,
        )

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> JsonDict:  # noqa: ARG002
        conversation = request.ask.conversation
        params = request.params
        assert conversation, "prompts of token ids are refused before"
        optional: JsonDict = {"max_tokens": params.max_tokens, "stop": request.stop_anywhere}
        optional["tools"] = [tool.openai for tool in conversation.tools]
        optional["reasoning_effort"] = conversation.effort
        if conversation.thinks is False:
            optional["reasoning_effort"] = "none"
        if request.ask.grammar:
            schema = {"name": "answer", "strict": True, "schema": request.ask.grammar.value}
            optional["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.ask.stream:
            optional["stream_options"] = {"include_usage": True}
        return {
            "model": info.model,
            "messages": chat_messages(conversation),
            **{name: getattr(params, name) for name in SHARED_PARAMS},
            "seed": seed,
            "stream": request.ask.stream,
            **{name: value for name, value in optional.items() if value},
        }

    def read_replies(self, answer: Any) -> Sequence[ReplyChunk]:
        [choice] = answer["choices"]
        message = choice["message"]
        calls = read_calls(message.get("tool_calls") or ())
        end = _chat_end(choice.get("finish_reason"), answer.get("usage") or {}, calls)
        return [replace(end, reasoning=_reasoning(message), text=_content(message))]

    async def read_stream(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        finish, usage, parts = None, JsonDict(), 0
        pieces: list[JsonObject] = []
        async for event in events:
            if event == DONE and parts:
                finish = finish or "unstated"
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                finish = choice.get("finish_reason") or finish
                delta = choice.get("delta") or {}
                reasoning, text = _reasoning(delta), _content(delta)
                called = delta.get("tool_calls") or ()
                pieces += called
                if reasoning or text or called:
                    parts += 1
                    yield ReplyChunk(total=parts, text=text, reasoning=reasoning)
        if finish:  # without usage, a part is taken for a token
            yield _chat_end(finish, {"completion_tokens": parts, **usage}, read_calls(pieces))
        elif not parts:
            raise LostServerError("the server sent an empty reply: its context may be too small for the prompt")


def _reasoning(message: JsonObject) -> str:
    """The reasoning in a message or a part of one, by either of its names."""
    return well_formed(message.get("reasoning_content") or message.get("reasoning") or "")


def _content(message: JsonObject) -> str:
    return well_formed(message.get("content") or "")


def _chat_end(finish: Any, usage: JsonObject, calls: ToolCalls) -> ReplyChunk:
    """The last part of a reply. Raises RefusedRequestError if the server has withheld the rest."""
    reason = str(finish).lower().removeprefix("finish_reason_")  # of Gemini
    if FAILURES.search(reason):
        problem = f"the server ended the reply: {foreign_line(str(finish))}"
        raise RefusedRequestError(EndpointError(problem, "rephrase the question, or check the server's log"))
    return ReplyChunk(
        total=stated_count(usage.get("completion_tokens")),
        end=ENDS.get(reason, "unstated"),
        calls=calls,
        prompt_tokens=stated_count(usage.get("prompt_tokens")),
    )


# Function calls.


def chat_messages(conversation: Conversation) -> list[JsonDict]:
    """OpenAI's messages as servers take them, with the calls of the reply in progress last."""
    turns = conversation.turns
    if conversation.prefill:
        *turns, _ = conversation.add(conversation.prefill).turns  # the rest of the reply is still to come
    return [wire_message(turn) for turn in turns]


@dataclass(slots=True)
class PartialCall:
    """A call of which more pieces may follow."""

    id: Any
    name: str
    arguments: str = ""


def read_calls(pieces: Iterable[JsonObject]) -> ToolCalls:
    """The calls in a reply, from pieces, one call after the other. Raises one of `DAMAGE` if they are malformed.

    A piece with a name begins a call, unless it repeats the id: servers disagree on the index.
    """
    calls: list[PartialCall] = []
    for piece in pieces:
        id, function = piece.get("id"), piece["function"]
        if function.get("name") and not (id and calls and id == calls[-1].id):
            calls.append(PartialCall(id, function["name"]))
        calls[-1].arguments += function.get("arguments") or ""
    return tuple(read_call(call.name, call.arguments or "{}") for call in calls)
