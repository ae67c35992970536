"""Any other server with OpenAI's chat completions, such as Ollama and LM Studio: messages go out, text comes back.

It applies its own chat template. Reasoning, which comes apart from the answer, is put before it in markup.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import count
from typing import Any

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.engine.remote.client import LostServerError, RefusedRequestError, server_text
from cerebrum_cli.engine.remote.kind import (
    ANY_CONTEXT,
    CLOSE,
    MAX_WINDOW,
    OPEN,
    Load,
    ReplyChunk,
    ServerInfo,
    ServerKind,
)
from cerebrum_cli.engine.sequence import MessagesRequest, Request

SLOTS = 4  # requests at a time, since such a server does not state how many it takes
DEFAULTS = SamplingParams()
SENT = ("temperature", "top_p", "presence_penalty", "frequency_penalty")  # which have the same name here


class OpenAIServer(ServerKind):
    """A server of chat completions; each sample is a request."""

    name = "OpenAI-compatible server"
    takes_messages = True
    description_path = load_path = "/v1/models"
    completion_path = "/v1/chat/completions"
    context_option = "context"

    def __init__(self) -> None:
        self._answers = count()

    def read_info(self, entry: Mapping[str, Any], answer: Any) -> ServerInfo:  # noqa: ARG002
        model = str(entry["id"])
        return ServerInfo(
            self,
            build="unknown",
            model=model,
            weights=server_text(model),
            context_size=ANY_CONTEXT,
            slots=SLOTS,
            max_samples=1,
            max_window=MAX_WINDOW,
        )

    def read_load(self, text: str) -> Load:  # noqa: ARG002
        """No figures: that it answers is its only sign of life."""
        return Load(generated=next(self._answers))

    def tokenize_body(self, text: str, info: ServerInfo) -> dict[str, Any]:
        raise NotImplementedError("it has no token ids")

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> dict[str, Any]:  # noqa: ARG002
        assert isinstance(request, MessagesRequest), "prompts of token ids are refused before"
        conversation, params = request.conversation, request.params
        schema = request.grammar and {"name": "answer", "strict": True, "schema": json.loads(request.grammar)}
        optional = {
            "max_tokens": params.max_tokens,
            "stop": list(request.stop_anywhere),
            "reasoning_effort": "none" if conversation.thinks is False else conversation.effort,
            "response_format": schema and {"type": "json_schema", "json_schema": schema},
            "stream_options": {"include_usage": True} if request.stream else None,
        }
        return {
            "model": info.model,
            "messages": conversation.openai_messages,
            **{name: getattr(params, name) for name in SENT},
            "seed": seed,
            "stream": request.stream,
            **{name: value for name, value in optional.items() if value},
        }

    def read_replies(self, answer: Any) -> Sequence[ReplyChunk]:
        [choice] = answer["choices"]
        reasoning, text = _texts(choice["message"])
        marked = f"{OPEN}{reasoning}{CLOSE}{text}" if reasoning else text
        return [_end(choice["finish_reason"], answer.get("usage") or {}, marked)]

    async def read_stream(self, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[ReplyChunk]:
        """Yield parts of text; the counts follow in an event of their own."""
        finish, usage, is_reasoning, parts = None, dict[str, Any](), False, 0
        async for event in events:
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                finish = choice.get("finish_reason") or finish
                reasoning, text = _texts(choice.get("delta") or {})
                marked = ""
                if reasoning:
                    marked = reasoning if is_reasoning else OPEN + reasoning
                    is_reasoning = True
                if text:
                    marked += CLOSE + text if is_reasoning else text
                    is_reasoning = False
                if marked:
                    parts += 1
                    yield ReplyChunk(text=marked)
        if is_reasoning:
            yield ReplyChunk(text=CLOSE)
        if finish:  # without usage, a part is taken for a token
            yield _end(finish, {"completion_tokens": parts, **usage})
        elif not parts:
            raise LostServerError("the server sent an empty reply: its context may be too small for the prompt")

    def differences(self, request: Request, info: ServerInfo) -> Sequence[tuple[str, str]]:  # noqa: ARG002
        unsent = {name: value for name, value in request.params.samplers.items() if name not in SENT}
        ignored = [name for name, value in unsent.items() if value and value != getattr(DEFAULTS, name)]
        ignored += ["ignore_eos"] if request.ignore_eos else []
        problem = f"chat completions have no {', '.join(ignored)}: the server's own settings apply"
        return [(problem, "omit this, or use llama-server")] if ignored else []


def _texts(message: Mapping[str, Any]) -> tuple[str, str]:
    """The reasoning, by either of its names, and the answer in a message or a part of one."""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return well_formed(reasoning or ""), well_formed(message.get("content") or "")


def _end(finish: str, usage: Mapping[str, Any], text: str = "") -> ReplyChunk:
    """The last part of a reply. Raises RefusedRequestError if the server has withheld the rest."""
    if finish not in ("stop", "length"):
        problem = f"the server ended the reply: {server_text(str(finish))}"
        raise RefusedRequestError(EndpointError(problem, "rephrase the question, or check the server's log"))
    return ReplyChunk(
        total=usage.get("completion_tokens") or None,
        text=text,
        end="limit" if finish == "length" else "eos",
        prompt_tokens=usage.get("prompt_tokens"),
    )
