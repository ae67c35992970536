"""Chat completions, which any other server has: messages go out, text and function calls come back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from json import JSONEncoder
from typing import Any

from cerebrum_cli.core.conversation import Conversation, Message, Turn
from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.messages import wire_message
from cerebrum_cli.core.text import foreign_line, well_formed
from cerebrum_cli.core.tools import ToolCalls, read_call
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.bodies import DONE
from cerebrum_cli.servers.endpoint import ServerInfo
from cerebrum_cli.servers.faults import LostServerError, failure, stated_problem
from cerebrum_cli.servers.kind import ANY_CONTEXT, Likeliest, ReplyChunk, ServerKind, stated_count
from cerebrum_cli.servers.openai_servers import ENDS, SHARED_PARAMS

MAX_SHOWN = 99  # parts of an unknown event
# Keys of a part of content for its text, which is its type for most: those of OpenAI, Anthropic and Mistral.
TEXT_KEYS = ("text", "refusal", "thinking", "reasoning", "summary", "content", "value")
REASONING_KINDS = ("thinking", "reasoning", "reasoning_text")
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
        optional |= {"logprobs": request.likeliest > 0, "top_logprobs": request.likeliest}
        return {
            "model": info.model,
            "messages": [chat_message(turn) for turn in chat_turns(conversation)],
            **{name: getattr(params, name) for name in SHARED_PARAMS},
            "seed": seed,
            "stream": request.ask.stream,
            **{name: value for name, value in optional.items() if value},
        }

    def read_replies(self, answer: Any) -> Sequence[ReplyChunk]:
        reader = ChoiceReader()
        part = reader.read(answer)
        reader.require_reply()
        end = reader.end()
        text, reasoning = part.text + end.text, part.reasoning + end.reasoning
        return [replace(end, text=text, reasoning=reasoning, likeliest=_likeliest(answer))]

    async def read_stream(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        reader = ChoiceReader()
        async for event in events:
            part = reader.read(event)
            if part.total:
                yield part
        reader.require_reply()
        if reader.is_complete:
            yield reader.end()


class ChoiceReader:
    """Reads one choice of a reply, whole or from its events: the first that comes, as only one was asked for."""

    def __init__(self) -> None:
        self.is_complete = False
        self._index: int | None = None
        self._finish: Any = None
        self._usage = JsonDict()
        self._calls: list[JsonObject] = []
        self._parts = 0
        self._left_out = dict[str, None]()  # what was not read, each once
        self._halves: dict[Channel, str] = {"thinking": "", "answer": ""}  # of a character that two parts share
        self._other: JsonObject | None = None  # the last event without choices

    def read(self, event: JsonObject) -> ReplyChunk:
        """What is new, with a `total` if anything is."""
        self.is_complete = self.is_complete or event is DONE
        self._usage = event.get("usage") or self._usage
        if "choices" not in event:
            self._other = event or self._other
        texts: dict[Channel, list[str]] = {"thinking": [], "answer": []}
        calls: list[JsonObject] = []
        for choice in sorted(event.get("choices") or (), key=_index):
            if self._index is None:
                self._index = _index(choice)
            if _index(choice) != self._index:
                self._left_out["a second choice"] = None
                continue
            self._finish = choice.get("finish_reason") or self._finish
            self.is_complete = self.is_complete or bool(self._finish) or "delta" not in choice
            message = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            calls += message.get("tool_calls") or ()
            for channel, text in _texts(message):
                if channel:
                    texts[channel].append(text)
                else:
                    self._left_out[text] = None
        self._calls += calls
        reasoning, answer = (self._join(channel, "".join(parts)) for channel, parts in texts.items())
        if not (reasoning or answer or calls):
            return ReplyChunk()
        self._parts += 1
        return ReplyChunk(total=self._parts, text=answer, reasoning=reasoning)

    def _join(self, channel: Channel, text: str) -> str:
        """A text after the half of a character before it, without the one at its end, which the next may complete."""
        text = self._halves[channel] + text
        half = text[-1:] if "\ud800" <= text[-1:] < "\udc00" else ""
        self._halves[channel] = half
        return well_formed(text.removesuffix(half))

    def require_reply(self) -> None:
        """Raise an error, in the server's words, if there is no reply, or something else has ended it."""
        if self._finish:
            return
        if problem := stated_problem(self._other):
            raise failure(500, problem)
        if self._parts:
            return
        if self._other:
            written = "".join(islice(JSONEncoder(ensure_ascii=False).iterencode(self._other), MAX_SHOWN))
            raise LostServerError(f"the server sent no reply: {written}")
        raise LostServerError("the server sent an empty reply: its context may be too small for the prompt")

    def end(self) -> ReplyChunk:
        """The last part of the reply, with its calls. Without usage, a part is taken for a token."""
        finish = str(self._finish or "unstated")
        reason = finish.lower().removeprefix("finish_reason_")  # of Gemini
        return ReplyChunk(
            total=stated_count(self._usage.get("completion_tokens")) or self._parts,
            text=well_formed(self._halves["answer"]),
            reasoning=well_formed(self._halves["thinking"]),
            end=ENDS.get(reason, "unstated"),
            calls=read_calls(self._calls),
            prompt_tokens=stated_count(self._usage.get("prompt_tokens")),
            withheld=foreign_line(finish) if FAILURES.search(reason) else "",
            left_out=", ".join(self._left_out),
        )


def _likeliest(answer: JsonObject) -> Likeliest:
    """Log probabilities of the likeliest first tokens, by their texts."""
    choice: JsonObject = next(iter(answer.get("choices") or ()), {})
    first: JsonObject = next(iter((choice.get("logprobs") or {}).get("content") or ()), {})
    return {str(entry["token"]): float(entry["logprob"]) for entry in first.get("top_logprobs") or ()}


def _index(choice: JsonObject) -> int:
    return int(choice.get("index") or 0)


def _texts(message: JsonObject) -> Iterator[tuple[Channel | None, str]]:
    """The texts in a message or a part of one, reasoning by either of its names; without a channel, what is no text."""
    yield from _parts("thinking", message.get("reasoning_content") or message.get("reasoning"))
    yield from _parts("answer", message.get("content") or message.get("refusal"))


def _parts(channel: Channel, content: Any) -> Iterator[tuple[Channel | None, str]]:
    """The texts in content, which may be text, or a list of parts of several types, with text under one of its keys."""
    if isinstance(content, str):
        yield channel, content
    elif isinstance(content, list):
        for part in content:
            yield from _parts(channel, part)
    elif isinstance(content, dict):
        kind = content.get("type")
        key = next((key for key in TEXT_KEYS if content.get(key)), None)
        if key:
            yield from _parts("thinking" if kind in REASONING_KINDS else channel, content[key])
        elif kind not in TEXT_KEYS:
            yield None, foreign_line(str(kind))
    elif content is not None:
        yield None, type(content).__name__


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
