"""vLLM: prompts and replies are token ids on `/v1/completions`.

It ignores fields it does not know, and fills in unset ones from the model's generation_config.json, so all are sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import ClassVar, Self

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import foreign_line
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.chat_completions import SHARED_PARAMS
from cerebrum_cli.servers.faults import LostServerError
from cerebrum_cli.servers.kind import ReplyChunk, ServerKind, StopReason, file_name, log_probability, stated_count

SEQUENCES = 256  # it does not report its --max-num-seqs, which is at least this; what is too much waits there
TOKEN_ID = "token_id:"  # before an id that stands for the text of a token
ENDS: Mapping[str, StopReason] = {"stop": "eos", "length": "limit"}


@frozen
class Vllm(ServerKind):
    """vLLM's server; each sample is a request, since prompts that begin alike are evaluated once."""

    kind: ClassVar[str] = "vLLM"
    completion_path: ClassVar[str] = "/v1/completions"
    samplers: ClassVar[Collection[str]] = (*SHARED_PARAMS, "top_k", "min_p", "repeat_penalty")

    @classmethod
    def described(cls, entry: JsonObject, details: JsonObject) -> Self:
        model = str(entry["id"])
        weights = str(entry.get("root") or model)  # a name on the Hub, or a folder
        if weights.startswith(("/", ".", "~")):
            weights = file_name(weights)
        return cls(
            build=foreign_line(str(details["version"])),
            model=model,
            weights=foreign_line(weights),
            context_size=int(entry["max_model_len"]),
            slots=SEQUENCES,
        )

    def body(self, request: Request, seed: int, samples: int) -> JsonDict:  # noqa: ARG002
        """Without a limit of tokens, or with null, it would generate 16; one larger than the context is refused."""
        params, room = request.params, self.room_for_reply(request)
        body = {
            **{name: getattr(params, name) for name in SHARED_PARAMS},
            "top_p": max(params.top_p, 1e-6),  # 0 is refused
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": params.repeat_penalty,
            "ignore_eos": request.ask.ignore_eos,
            "skip_special_tokens": False,
            "model": self.model,
            "prompt": list(request.prompt_tokens),
            "max_tokens": min(params.max_tokens or room, room),
            "seed": seed,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.likeliest:
            body |= {"logprobs": request.likeliest, "return_tokens_as_token_ids": True}
        if request.ask.grammar:
            name = "json" if request.ask.grammar.is_schema else "grammar"
            body["structured_outputs"] = {name: request.ask.grammar.value}
        return body

    async def read(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        finish, usage = "", JsonDict()
        async for event in events:
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if choice.get("token_ids") is None:
                    raise EndpointError("vLLM does not send token ids", "update it, or connect without a gateway")
                finish = choice.get("finish_reason") or finish
                yield ReplyChunk(choice["token_ids"], likeliest=_likeliest(choice.get("logprobs") or {}))
        if not finish:
            return
        if finish not in ENDS:  # such as "abort" or "repetition"
            raise LostServerError(f"the reply ended with {foreign_line(finish)}")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        prompt_tokens = stated_count(usage.get("prompt_tokens"))
        yield ReplyChunk(end=ENDS[finish], prompt_tokens=prompt_tokens, cached=stated_count(cached) or 0)


def _likeliest(logprobs: JsonObject) -> Mapping[int | str, float]:
    """Log probabilities of the likeliest first tokens."""
    first: JsonObject = (logprobs.get("top_logprobs") or [{}])[0] or {}
    return {int(name.removeprefix(TOKEN_ID)): log_probability(first[name]) for name in first if TOKEN_ID in name}
