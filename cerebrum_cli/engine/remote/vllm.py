"""vLLM: it fills in unset sampling fields from the model's generation_config.json, so all are sent.

It ignores fields it does not know. Prompts and replies are token ids on `/v1/completions`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.engine.remote.client import Client, one_line
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.failures import DAMAGE, LostServerError
from cerebrum_cli.engine.remote.kind import (
    ReplyChunk,
    ReplyEnd,
    ServerInfo,
    StopReason,
    ask,
    bias_object,
    room_for_reply,
    sampler_differences,
    served_weights,
    text_of,
)
from cerebrum_cli.engine.sequence import Request

SEQUENCES = 256  # vLLM's default of --max-num-seqs, which it does not report
MAX_SAMPLES = 64
LEAST_TOP_P = 1e-6  # 0 is refused


class Vllm:
    """vLLM's server."""

    name = "vLLM"
    completion_path = "/v1/completions"
    context_option = "--max-model-len"
    takes_end_tokens = True

    async def describe(self, client: Client, endpoint: Endpoint, entry: Mapping[str, Any]) -> ServerInfo:
        version = await ask(client, endpoint, "/version")
        try:
            build, size = one_line(str(version["version"])), int(entry["max_model_len"])
        except DAMAGE as error:
            raise EndpointError(f"{endpoint.name}: unexpected response to /v1/models", "update vLLM") from error
        model = str(entry["id"])
        weights = served_weights(entry, entry.get("root"))
        return ServerInfo(self, build, model, weights, size, SEQUENCES, MAX_SAMPLES, has_other_weights=True)

    def tokenize_body(self, text: str, info: ServerInfo) -> dict[str, Any]:
        return {"model": info.model, "prompt": text, "add_special_tokens": False}

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> dict[str, Any]:
        """Without a limit of tokens, or with null, it would generate 16; one larger than the context is refused."""
        params, room = request.params, room_for_reply(request, info)
        return {
            "model": info.model,
            "prompt": list(request.prompt_tokens),
            "max_tokens": room if params.max_tokens is None else min(params.max_tokens, room),
            "n": samples,
            "seed": seed,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": max(params.top_p, LEAST_TOP_P),
            "min_p": params.min_p,
            "repetition_penalty": params.repeat_penalty,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "min_tokens": 0,
            "stop": list(params.stop),
            "stop_token_ids": [] if request.ignore_eos else list(info.end_tokens),
            "ignore_eos": request.ignore_eos,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "stream": request.stream,
            **({"stream_options": {"include_usage": True}} if request.stream else {}),
            **({"logit_bias": bias_object(params)} if params.logit_bias else {}),
            **({"logprobs": 0} if request.logprobs else {}),
            **({"structured_outputs": {"grammar": request.grammar}} if request.grammar else {}),
        }

    def read_replies(self, answer: Any) -> Sequence[ReplyChunk]:
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        usage = answer.get("usage") or {}
        counts = _shares(usage, choices) if len(choices) > 1 else [usage.get("completion_tokens")]
        return [_part(choice, {**usage, "completion_tokens": n}) for choice, n in zip(choices, counts, strict=True)]

    async def read_stream(self, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[ReplyChunk]:
        """Yield parts with the ids of all tokens; the counts follow in an event of their own."""
        last: Mapping[str, Any] | None = None
        usage: Mapping[str, Any] = {}
        async for event in events:
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                if choice.get("finish_reason"):
                    last = choice
                else:
                    yield _part(choice)
        if last is not None:
            yield _part(last, usage)

    def differences(self, request: Request, info: ServerInfo) -> Sequence[tuple[str, str]]:  # noqa: ARG002
        return sampler_differences(self.name, request)


def _shares(usage: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Tokens of each sample: those whose ids came are counted here; the others have equal shares of the sum's rest."""
    counts = [None if choice.get("token_ids") is None else len(choice["token_ids"]) for choice in choices]
    unknown, total = counts.count(None), usage.get("completion_tokens")
    if not unknown or total is None:
        return counts
    share, more = divmod(int(total) - sum(filter(None, counts)), unknown)
    shares = iter([share + 1] * more + [share] * (unknown - more))
    return [next(shares) if count is None else count for count in counts]


def _part(choice: Mapping[str, Any], usage: Mapping[str, Any] | None = None) -> ReplyChunk:
    """A part of a reply, or with `usage` its last."""
    ids = choice.get("token_ids")
    tokens = tuple(int(token) for token in ids or ())
    scores = (choice.get("logprobs") or {}).get("token_logprobs") or ()
    return ReplyChunk(
        tokens,
        None if ids is not None else text_of(choice, "text"),
        tuple(scores) if len(scores) == len(tokens) else (),
        end=None if usage is None else _end(choice, usage),
    )


def _end(choice: Mapping[str, Any], usage: Mapping[str, Any]) -> ReplyEnd:
    finish, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if finish not in ("stop", "length"):
        raise LostServerError(f"the reply ended with {one_line(str(finish))}")
    reason: StopReason = "limit" if finish == "length" else "stop string" if isinstance(stop, str) else "eos"
    tokens, details = usage.get("completion_tokens"), usage.get("prompt_tokens_details") or {}
    return ReplyEnd(
        reason,
        None if tokens is None else int(tokens) - (reason == "eos"),
        usage.get("prompt_tokens"),
        int(details.get("cached_tokens") or 0),
    )
