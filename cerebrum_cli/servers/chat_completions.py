"""Chat completions, which any other server has: messages go out, text and function calls come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.conversation import Conversation, Message, Turn
from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.messages import wire_message
from cerebrum_cli.core.settings import DEFAULT
from cerebrum_cli.core.text import foreign_line, well_formed
from cerebrum_cli.core.tools import ToolCalls, read_call
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.bodies import DONE
from cerebrum_cli.servers.endpoint import ServerInfo
from cerebrum_cli.servers.faults import LostServerError, RefusedRequestError, failure, stated_problem
from cerebrum_cli.servers.kind import (
    ANY_CONTEXT,
    Likeliest,
    ReplyChunk,
    ServerKind,
    StopReason,
    stated_count,
)
from cerebrum_cli.servers.openai_servers import SHARED_PARAMS

CHAT_SLOTS = 4  # requests at a time, since a server of chat completions does not state how many it takes
LENIENT_OWNERS = ("library", "organization_owner", "llamacpp", "vllm", "sglang")  # the first: Ollama, LM Studio
ENDS: Mapping[str, StopReason] = {"stop": "eos", "tool_calls": "eos", "length": "limit"}
WITHHELD = ("content_filter", "error")  # reasons for which a server withholds the rest of a reply


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
            is_strict=entry.get("owned_by") not in LENIENT_OWNERS,
        )

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> JsonDict:  # noqa: ARG002
        """A strict server may refuse seeds and efforts, so it gets only those that the user has set."""
        conversation, settings = request.ask.conversation, request.ask.settings
        params = request.params
        assert conversation, "prompts of token ids are refused before"
        optional: JsonDict = {"max_tokens": params.max_tokens, "stop": request.stop_anywhere}
        optional["tools"] = [tool.openai for tool in conversation.tools]
        if not info.is_strict or settings.origin("think") != DEFAULT:
            optional["reasoning_effort"] = "none" if conversation.thinks is False else conversation.effort
        if request.ask.grammar:
            schema = {"name": "answer", "strict": True, "schema": request.ask.grammar.value}
            optional["response_format"] = {"type": "json_schema", "json_schema": schema}
        optional |= {"logprobs": request.likeliest > 0, "top_logprobs": request.likeliest}
        body = {
            "model": info.model,
            "messages": [chat_message(turn) for turn in chat_turns(conversation)],
            **{name: getattr(params, name) for name in SHARED_PARAMS},
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in optional.items() if value},
        }
        if not info.is_strict or settings.origin("seed") != DEFAULT:
            body["seed"] = seed
        return body

    async def read_stream(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        reader = ChoiceReader()
        async for event in events:
            yield reader.read(event)
        reader.require_reply()
        yield reader.end()


class ChoiceReader:
    """Reads the choice of a reply, whole or from its events."""

    def __init__(self) -> None:
        self._is_complete = False
        self._finish = ""
        self._usage = JsonDict()
        self._calls: list[JsonObject] = []
        self._parts = 0
        self._other: JsonObject | None = None  # the last event without choices

    def read(self, event: JsonObject) -> ReplyChunk:
        """What is new, with a `total` if anything is. Raises RefusedRequestError for content that is no text."""
        self._is_complete = self._is_complete or event is DONE
        self._usage = event.get("usage") or self._usage
        if "choices" not in event:
            self._other = event or self._other
        choices = [choice for choice in event.get("choices") or () if not choice.get("index")]
        choice: JsonObject = choices[0] if choices else {}
        self._finish = choice.get("finish_reason") or self._finish
        message = choice.get("delta") or choice.get("message") or {}
        calls = message.get("tool_calls") or ()
        self._calls += calls
        reasoning = _text(message.get("reasoning_content") or message.get("reasoning"))  # the latter of Ollama
        text = _text(message.get("content") or message.get("refusal"))
        likeliest = _likeliest(choice)
        if not (reasoning or text or calls or likeliest):
            return ReplyChunk()
        self._parts += 1
        return ReplyChunk(total=self._parts, text=text, reasoning=reasoning, likeliest=likeliest)

    def require_reply(self) -> None:
        """Raise an error, in the server's words, if the reply is missing or incomplete."""
        if self._finish:
            return
        if problem := stated_problem(self._other):
            raise failure(500, problem)
        if not self._parts:
            raise LostServerError("the server sent an empty reply: its context may be too small for the prompt")
        if not self._is_complete:
            raise LostServerError("the reply is incomplete")

    def end(self) -> ReplyChunk:
        """The last part of the reply, with its calls. Without usage, a part is taken for a token."""
        return ReplyChunk(
            total=stated_count(self._usage.get("completion_tokens")) or self._parts,
            end=ENDS.get(self._finish, "unstated"),
            calls=read_calls(self._calls),
            prompt_tokens=stated_count(self._usage.get("prompt_tokens")),
            withheld=self._finish if self._finish in WITHHELD else "",
        )


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return well_formed(content or "")
    problem = f"the server sent content of the type {type(content).__name__} instead of text"
    raise RefusedRequestError(EndpointError(problem, "use another server for this model"))


def _likeliest(choice: JsonObject) -> Likeliest:
    """Log probabilities of the likeliest first tokens, by their texts."""
    first: JsonObject = next(iter((choice.get("logprobs") or {}).get("content") or ()), {})
    return {str(entry["token"]): float(entry["logprob"]) for entry in first.get("top_logprobs") or ()}


# Messages.


def chat_turns(conversation: Conversation) -> list[Turn]:
    """The turns that a server gets, with the calls of the reply in progress last."""
    turns = conversation.turns
    if conversation.prefill:
        *turns, _ = conversation.add(conversation.prefill).turns  # the rest of the reply is still to come
    return turns


def chat_message(turn: Turn) -> JsonDict:
    """A turn as a server takes it, its pictures before its text."""
    message = wire_message(turn)
    if isinstance(turn.value, Message) and turn.value.pictures:
        parts = [{"type": "image_url", "image_url": {"url": picture.url}} for picture in turn.value.pictures]
        message["content"] = [*parts, {"type": "text", "text": turn.content}]
    return message


# Function calls.


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
