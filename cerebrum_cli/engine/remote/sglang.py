"""SGLang: prompts and replies are token ids on its own `/generate`, whose sampling parameters have other defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.engine.remote.client import Client, failure, one_line
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.failures import DAMAGE
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

SEQUENCES = 256  # where the server does not report --max-running-requests
LEAST_TOP_P = 1e-6  # 0 is refused
ALL_TOKENS = -1  # for top_k
IGNORED_SEEDS = (
    "this server ignores seeds, so samples are not reproducible",
    "start SGLang with --enable-deterministic-inference",
)


class Sglang:
    """SGLang's server. All samples of one request would share a seed, so each is a request; the prompt is cached.

    With an `adapter`, its LoRA weights are used. With `sends_deltas`, each event of a stream holds what is new in it;
    otherwise, all of the reply so far.
    """

    name = "SGLang"
    completion_path = "/generate"
    context_option = "--context-length"
    takes_end_tokens = True

    def __init__(self, sends_deltas: bool = False, adapter: str | None = None) -> None:
        self._sends_deltas = sends_deltas
        self._adapter = adapter

    async def describe(self, client: Client, endpoint: Endpoint, entry: Mapping[str, Any]) -> ServerInfo:
        """Ask for the server's settings: only with deterministic inference, seeds have an effect."""
        settings = await ask(client, endpoint, "/server_info")
        adapter = str(entry["id"]) if entry.get("parent") else None
        try:
            return ServerInfo(
                Sglang(bool(settings.get("incremental_streaming_output")), adapter),
                one_line(str(settings["version"])),
                str(entry["id"]),
                served_weights(entry, entry.get("root") if adapter else settings.get("model_path")),
                int(entry["max_model_len"]),
                int(settings.get("max_running_requests") or SEQUENCES),
                max_samples=1,
                has_seeds=bool(settings.get("enable_deterministic_inference")),
                has_other_weights=settings.get("load_format") != "gguf",
            )
        except DAMAGE as error:
            raise EndpointError(f"{endpoint.name}: unexpected response to /server_info", "update SGLang") from error

    def tokenize_body(self, text: str, info: ServerInfo) -> dict[str, Any]:
        return {"model": info.model, "prompt": text, "add_special_tokens": False}

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> dict[str, Any]:
        """Without a limit of tokens, it would generate 128; with null, until the context is full."""
        params, limit = request.params, request.params.max_tokens
        return {
            "input_ids": list(request.prompt_tokens),
            "stream": request.stream,
            "return_logprob": request.logprobs,
            **({"lora_path": self._adapter} if self._adapter else {}),
            "sampling_params": {
                "max_new_tokens": limit if limit is not None and limit < room_for_reply(request, info) else None,
                "n": samples,
                "temperature": params.temperature,
                "top_k": params.top_k or ALL_TOKENS,
                "top_p": max(params.top_p, LEAST_TOP_P),
                "min_p": params.min_p,
                "repetition_penalty": params.repeat_penalty,
                "presence_penalty": params.presence_penalty,
                "frequency_penalty": params.frequency_penalty,
                "min_new_tokens": 0,
                "stop": list(params.stop),
                "stop_token_ids": [] if request.ignore_eos else list(info.end_tokens),
                "ignore_eos": request.ignore_eos,
                "skip_special_tokens": False,
                **({"logit_bias": bias_object(params)} if params.logit_bias else {}),
                **({"sampling_seed": seed} if info.has_seeds else {}),
                **({"ebnf": request.grammar} if request.grammar else {}),
            },
        }

    def read_replies(self, answer: Any) -> Sequence[ReplyChunk]:
        return [_part(reply) for reply in (answer if isinstance(answer, list) else [answer])]

    async def read_stream(self, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[ReplyChunk]:
        """Yield parts with the ids of all tokens."""
        tokens = characters = 0
        async for event in events:
            part = _part(event, tokens, characters)
            if not self._sends_deltas:
                tokens += len(part.tokens)
                characters += len(part.text or "")
            yield part

    def differences(self, request: Request, info: ServerInfo) -> Sequence[tuple[str, str]]:
        found = sampler_differences(self.name, request)
        if request.params.temperature and not info.has_seeds:
            found.append(IGNORED_SEEDS)
        return found


def _part(reply: Mapping[str, Any], seen: int = 0, characters: int = 0) -> ReplyChunk:
    """The part of a reply after the tokens and characters that were seen."""
    meta, ids = reply["meta_info"], reply.get("output_ids")
    total = int(meta["completion_tokens"])
    end = _end(meta, total) if meta.get("finish_reason") else None
    if ids is None:
        return ReplyChunk(text=text_of(reply, "text")[characters:], total=total, end=end)
    tokens = tuple(int(token) for token in ids[seen:])
    scores = [score for score, *_ in meta.get("output_token_logprobs") or ()][-len(tokens) :] if tokens else []
    return ReplyChunk(tokens, logprobs=tuple(scores) if len(scores) == len(tokens) else (), end=end)


def _end(meta: Mapping[str, Any], total: int) -> ReplyEnd:
    """The end of a reply; a request that the server gives up may come back as one."""
    finish = meta["finish_reason"]
    if finish["type"] not in ("stop", "length"):
        message = one_line(str(finish.get("message") or f"the reply ended with {finish['type']}"))
        raise failure(int(finish.get("status_code") or 500), message)
    is_text = isinstance(finish.get("matched"), str)
    reason: StopReason = "limit" if finish["type"] == "length" else "stop string" if is_text else "eos"
    return ReplyEnd(reason, total - (reason == "eos"), meta.get("prompt_tokens"), int(meta.get("cached_tokens") or 0))
