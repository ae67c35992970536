"""Chat completions, which any other server has: messages go out, text and function calls come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any, ClassVar, Self

from cerebrum_cli.core.conversation import Conversation, Turn, wire_message
from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import DEFAULT
from cerebrum_cli.core.text import foreign_line, well_formed
from cerebrum_cli.core.tools import ToolCalls, read_call
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.faults import UnreadableReplyError, stated_problem
from cerebrum_cli.servers.kind import ANY_CONTEXT, ReplyChunk, ServerKind, StopReason, log_probability, stated_count

CHAT_SLOTS = 4  # requests at a time, since a server of chat completions does not state how many it takes
LENIENT_OWNERS = ("library", "organization_owner", "llamacpp", "vllm", "sglang")  # the first: Ollama, LM Studio
# Reasons for which a reply ends, in the words of several servers; after any other, it is not complete.
ENDS: Mapping[str, StopReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"), "eos"),
    **dict.fromkeys(("tool_calls", "function_call"), "eos"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), "limit"),
}
SHARED_PARAMS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")  # which have the same name here


@frozen
class ChatServer(ServerKind):
    """Any other server of chat completions, such as Ollama; each sample is a request."""

    kind: ClassVar[str] = "OpenAI-compatible server"
    takes_messages: ClassVar[bool] = True
    completion_path: ClassVar[str] = "/v1/chat/completions"
    samplers: ClassVar[Collection[str]] = SHARED_PARAMS

    is_strict: bool  # it may refuse fields that it does not know

    @classmethod
    def described(cls, entry: JsonObject, details: JsonObject) -> Self:  # noqa: ARG003
        return cls(
            build="unknown",
            model=str(entry["id"]),
            weights=foreign_line(str(entry["id"])),
            context_size=ANY_CONTEXT,
            slots=CHAT_SLOTS,
            is_strict=entry.get("owned_by") not in LENIENT_OWNERS,
        )

    def body(self, request: Request, seed: int, samples: int) -> JsonDict:  # noqa: ARG002
        """A strict server may refuse seeds and efforts, so it gets only those that the user has set."""
        conversation, settings, grammar = request.ask.conversation, request.ask.settings, request.ask.grammar
        optional: JsonDict = {
            "max_tokens": request.params.max_tokens,
            "stop": request.stop_anywhere,
            "tools": [tool.openai for tool in conversation.tools],
            "logprobs": request.likeliest > 0,
            "top_logprobs": request.likeliest,
        }
        if not self.is_strict or settings.origin("think") != DEFAULT:
            optional["reasoning_effort"] = "none" if conversation.thinks is False else conversation.effort
        if grammar:
            schema = {"name": "answer", "strict": True, "schema": grammar.value}
            optional["response_format"] = {"type": "json_schema", "json_schema": schema}
        body = {
            "model": self.model,
            "messages": [wire_message(turn) for turn in chat_turns(conversation)],
            **{name: getattr(request.params, name) for name in self.samplers},
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in optional.items() if value},
        }
        if not self.is_strict or settings.origin("seed") != DEFAULT:
            body["seed"] = seed
        return body

    async def read(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        """Yield parts with a number of tokens: without usage, a part is taken for one."""
        finish, usage, other, likeliest = "", JsonDict(), JsonDict(), dict[int | str, float]()
        calls: list[JsonObject] = []
        parts = 0
        async for event in events:
            usage = event.get("usage") or usage
            if not event.get("choices"):
                other = event
                continue
            choice = event["choices"][0]
            finish = str(choice.get("finish_reason") or finish)
            likeliest = likeliest or _likeliest(choice)
            message = choice.get("delta") or choice.get("message") or {}
            calls += message.get("tool_calls") or ()
            reasoning = _text(message.get("reasoning_content") or message.get("reasoning"))  # the latter of Ollama
            text = _text(message.get("content") or message.get("refusal"))
            if reasoning or text or message.get("tool_calls") or choice.get("logprobs"):
                parts += 1
                yield ReplyChunk(total=parts, text=text, reasoning=reasoning)
        if not finish:
            empty = "the server sent an empty reply: its context may be too small for the prompt"
            raise UnreadableReplyError(stated_problem(other) or ("the reply is incomplete" if parts else empty))
        yield ReplyChunk(
            total=stated_count(usage.get("completion_tokens")) or parts,
            end=ENDS.get(finish.lower(), "limit"),
            calls=read_calls(calls),
            likeliest=likeliest,
            prompt_tokens=stated_count(usage.get("prompt_tokens")),
            withheld="" if finish.lower() in ENDS else foreign_line(finish),
        )


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return well_formed(content or "")
    problem = f"the server sent content of the type {type(content).__name__} instead of text"
    raise EndpointError(problem, "use another server for this model")  # as Mistral's API for models that reason


def _likeliest(choice: JsonObject) -> dict[int | str, float]:
    """Log probabilities of the likeliest first tokens, by their texts; of equal texts, the likelier one counts."""
    first: JsonObject = next(iter((choice.get("logprobs") or {}).get("content") or ()), {})
    entries = reversed(first.get("top_logprobs") or ())
    return {str(entry["token"]): log_probability(entry["logprob"]) for entry in entries}


def chat_turns(conversation: Conversation) -> list[Turn]:
    """The turns that a server gets, with the calls of the reply in progress last."""
    turns = conversation.turns
    if conversation.prefill:
        *turns, _ = conversation.add(conversation.prefill).turns  # the rest of the reply is still to come
    return turns


def read_calls(pieces: Iterable[JsonObject]) -> ToolCalls:
    """The calls in a reply, from pieces, each with a name first. Raises one of `DAMAGE` if they are malformed."""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        name, arguments = piece["function"].get("name"), piece["function"].get("arguments") or ""
        if name:
            calls.append((name, arguments))
        else:
            calls[-1] = calls[-1][0], calls[-1][1] + arguments
    return tuple(read_call(name, arguments or "{}") for name, arguments in calls)
