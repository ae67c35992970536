"""vLLM and SGLang, which sample alike and name most settings alike.

vLLM ignores fields it does not know, and fills in unset ones from the model's generation_config.json, so all are sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import foreign_line
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.bodies import DONE
from cerebrum_cli.servers.endpoint import ServerInfo, Servers
from cerebrum_cli.servers.faults import LostServerError, failure
from cerebrum_cli.servers.kind import (
    Likeliest,
    ReplyChunk,
    ServerKind,
    StopReason,
    file_name,
    require_ids,
    room_for_reply,
    stated_count,
)

SEQUENCES = 256  # vLLM does not report its --max-num-seqs, which is at least this; what is too much waits there
TOKEN_ID = "token_id:"  # before an id that stands for the text of a token
MAX_SAMPLES = 64
ENDS: Mapping[str, StopReason] = {"stop": "eos", "length": "limit", "unstated": "unstated"}  # by `finish_reason`
SHARED_PARAMS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")  # which have the same name here


class _SharedFields(ServerKind):
    samplers = (*SHARED_PARAMS, "top_k", "min_p", "repeat_penalty", "logit_bias")
    counts_last_tokens = False
    takes_end_tokens = True

    def _sampling_fields(self, request: Request, info: ServerInfo) -> JsonDict:
        params = request.params
        fields = {name: getattr(params, name) for name in SHARED_PARAMS}
        fields |= {
            "min_p": params.min_p,
            "top_p": max(params.top_p, 1e-6),  # 0 is refused
            "repetition_penalty": params.repeat_penalty,
            "stop": request.stop_anywhere,
            "stop_token_ids": info.end_tokens,
            "ignore_eos": request.ask.ignore_eos,
            "skip_special_tokens": False,
        }
        if request.ask.ignore_eos:
            fields["stop_token_ids"] = []
        if params.logit_bias:
            fields["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
        return fields


class Vllm(_SharedFields):
    """vLLM's server: prompts and replies are token ids on `/v1/completions`."""

    name = "vLLM"
    description_path = "/version"
    completion_path = "/v1/completions"

    def read_info(self, entry: JsonObject, answer: Any) -> ServerInfo:
        return ServerInfo(
            self.name,
            build=foreign_line(str(answer["version"])),
            model=str(entry["id"]),
            weights=_weights(entry, entry.get("root")),
            context_size=int(entry["max_model_len"]),
            context_option="--max-model-len",
            slots=SEQUENCES,
            max_samples=MAX_SAMPLES,
        )

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> JsonDict:
        """Without a limit of tokens, or with null, it would generate 16; one larger than the context is refused."""
        room = room_for_reply(request, info)
        body = {
            **self._sampling_fields(request, info),
            "model": info.model,
            "prompt": list(request.prompt_tokens),
            "max_tokens": min(request.params.max_tokens or room, room),
            "n": samples,
            "seed": seed,
            "top_k": request.params.top_k,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.likeliest:
            body |= {"logprobs": request.likeliest, "return_tokens_as_token_ids": True}
        elif request.ask.logprobs:
            body["logprobs"] = 0
        if request.ask.grammar:
            name = "json" if request.ask.grammar.is_schema else "grammar"
            body["structured_outputs"] = {name: request.ask.grammar.value}
        return body

    async def read_stream(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        """Yield the ends after all else, since the counts come with the last event."""
        last: list[JsonObject] = []
        usage = JsonDict()
        async for event in events:
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                if choice.get("finish_reason"):
                    last.append(choice)
                else:
                    yield _vllm_chunk(choice)
        for choice in last:
            yield _vllm_chunk(choice, usage)


class Sglang(_SharedFields):
    """SGLang's server, on `/generate`: samples of one request would share a seed, so each is a request."""

    name = "SGLang"
    description_path = "/server_info"
    completion_path = "/generate"

    def read_info(self, entry: JsonObject, answer: Any) -> ServerInfo:
        """Description of a server; seeds have an effect only with deterministic inference."""
        is_adapter = bool(entry.get("parent"))
        stated = answer.get("max_running_requests")
        return ServerInfo(
            self.name,
            build=foreign_line(str(answer["version"])),
            model=str(entry["id"]),
            weights=_weights(entry, entry.get("root") if is_adapter else answer.get("model_path")),
            context_size=int(entry["max_model_len"]),
            context_option="--context-length",
            slots=int(stated or SEQUENCES),
            max_window=int(stated or Servers.MAX_WINDOW),
            has_seeds=bool(answer.get("enable_deterministic_inference")),
            is_adapter=is_adapter,
        )

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> JsonDict:  # noqa: ARG002
        """Without a limit of tokens, it would generate 128; with null, until the context is full."""
        params = self._sampling_fields(request, info)
        params |= {"max_new_tokens": request.params.max_tokens, "top_k": request.params.top_k or -1}  # all tokens
        if (request.params.max_tokens or 0) >= room_for_reply(request, info):
            params["max_new_tokens"] = None
        if info.has_seeds:
            params["sampling_seed"] = seed
        if request.ask.grammar:
            params["json_schema" if request.ask.grammar.is_schema else "ebnf"] = request.ask.grammar.text
        body: JsonDict = {"input_ids": list(request.prompt_tokens), "sampling_params": params}
        body |= {"stream": True, "return_logprob": request.ask.logprobs or request.likeliest > 0}
        if request.likeliest:
            body["top_logprobs_num"] = request.likeliest
        if info.is_adapter:
            body["lora_path"] = info.model
        return body

    async def read_stream(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        seen = 0
        async for event in events:
            if event == DONE:
                return
            yield _sglang_chunk(event, seen)
            seen = int(event["meta_info"]["completion_tokens"])


def _weights(entry: JsonObject, path: Any) -> str:
    """Where the weights of a model in /v1/models are from: a name on the Hub, or a folder; with an adapter's base."""
    sources = path or entry["id"], entry.get("parent")
    return foreign_line(" on ".join(map(_source_name, filter(None, sources))))


def _source_name(path: Any) -> str:
    name = str(path)
    if name.startswith(("/", ".", "~")):
        return file_name(name)
    return name


def _vllm_chunk(choice: JsonObject, usage: JsonObject | None = None) -> ReplyChunk:
    """A part of a reply, or with `usage` its last."""
    logprobs = choice.get("logprobs") or {}
    tokens = _scored(require_ids(choice.get("token_ids")), logprobs.get("token_logprobs"))
    first: JsonObject = (logprobs.get("top_logprobs") or [{}])[0] or {}
    likeliest: Likeliest = {int(name.removeprefix(TOKEN_ID)): float(first[name]) for name in first if TOKEN_ID in name}
    tokens = replace(tokens, likeliest=likeliest, index=int(choice["index"]))
    if usage is None:
        return tokens
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    finish = choice.get("finish_reason") or "unstated"
    return _last(tokens, finish, choice.get("stop_reason"), usage.get("prompt_tokens"), cached)


def _sglang_chunk(reply: JsonObject, seen: int = 0) -> ReplyChunk:
    """New tokens in a part of a reply, which may repeat those that were seen."""
    meta = reply["meta_info"]
    finish = meta.get("finish_reason")
    if finish and finish["type"] == "abort":  # a request that the server gives up
        raise failure(int(finish.get("status_code") or 500), finish.get("message") or "the server aborted the reply")
    ids = require_ids(reply.get("output_ids"))
    first = int(meta["completion_tokens"]) - len(ids)  # number of tokens before
    new = ids[max(0, seen - first) :]
    scores = [score for score, *_ in meta.get("output_token_logprobs") or ()]
    first_likeliest = (meta.get("output_top_logprobs") or [()])[0] or ()
    likeliest: Likeliest = {int(id): float(logprob) for logprob, id, *_ in first_likeliest}
    tokens = replace(_scored(new, scores[-len(new) :]), likeliest=likeliest)
    if not finish:
        return tokens
    return _last(tokens, finish["type"], finish.get("matched"), meta.get("prompt_tokens"), meta.get("cached_tokens"))


def _scored(tokens: Sequence[int], scores: Sequence[float] | None) -> ReplyChunk:
    """Tokens with their log probabilities, if the server sends one for each."""
    if scores and len(scores) == len(tokens):
        return ReplyChunk(tokens, scores)
    return ReplyChunk(tokens)


def _last(chunk: ReplyChunk, finish: str, matched: Any, prompt_tokens: Any, cached: Any) -> ReplyChunk:
    """The last part of a reply: `matched` is the stop string or the token that ended it."""
    end = ENDS.get(finish)
    if end is None:  # such as "abort" or "repetition"
        raise LostServerError(f"the reply ended with {foreign_line(finish)}")
    if end == "eos" and isinstance(matched, str):
        end = "stop string"
    return replace(chunk, end=end, prompt_tokens=stated_count(prompt_tokens), cached=stated_count(cached) or 0)
