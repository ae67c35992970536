"""llama-server: every field that changes the output is sent, since it fills in others from its command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cerebrum_cli.core.events import Logprobs, Timings
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import foreign_line, well_formed
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.endpoint import ServerInfo
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

PENALTY_WINDOW = 64  # tokens, as on this machine
PING_S = 15
# What is off here, whatever the server's command line turns on.
_OFF = {
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "adaptive_target": -1.0,
    "min_keep": 0,
    "n_indent": 0,
    "t_max_predict_ms": -1,
    "lora": [],
}
_CONSTRAINTS = {"schema": "json_schema", "gbnf": "grammar"}
_SAMPLERS = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "temperature"]
# Settings that have the same name here.
_PARAMS = (
    *("temperature", "top_k", "top_p", "min_p", "top_n_sigma", "repeat_penalty", "presence_penalty"),
    *("frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length"),
)
_REPLY_FIELDS = (
    *("index", "content", "tokens", "stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings"),
    "completion_probabilities",
)
_REASONS: Mapping[Any, StopReason] = {"eos": "eos", "word": "stop string"}


class LlamaServer(ServerKind):
    """llama.cpp's own server; a completion is asked for on `/completion`, whose reply holds token ids and timings."""

    name = "llama-server"
    description_path = "/props"
    completion_path = "/completion"

    def read_info(self, entry: JsonObject, answer: Any) -> ServerInfo:
        model = str(entry["id"])
        meta = entry.get("meta", {})
        weights = foreign_line(file_name(str(answer.get("model_path", model))))  # elsewhere on another machine
        if "size" in meta:
            weights += f" ({int(meta['size'])} bytes)"
        slots = max(1, int(answer["total_slots"]))
        return ServerInfo(
            self.name,
            build=foreign_line(str(answer["build_info"])),
            model=model,
            weights=weights,
            context_size=int(answer["default_generation_settings"]["n_ctx"]),
            context_option="-c",
            slots=slots,
            max_samples=slots,
            max_window=slots,
            vocabulary_size=stated_count(meta.get("n_vocab")),
        )

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> JsonDict:
        params = request.params
        typical_p = params.typical_p
        if not params.temperature:  # it might drop the likeliest token
            typical_p = 1.0
        constraint = {"grammar": ""}
        if request.ask.grammar:
            constraint = {_CONSTRAINTS[request.ask.grammar.kind]: request.ask.grammar.value}
        return {
            **_OFF,
            **{name: getattr(params, name) for name in _PARAMS},
            "model": info.model,
            "prompt": list(request.prompt_tokens),
            "n_predict": params.max_tokens or room_for_reply(request, info),  # -1 never ends where contexts shift
            "n_cmpl": samples,
            "seed": seed,
            "samplers": _SAMPLERS,
            "typical_p": typical_p,
            "repeat_last_n": PENALTY_WINDOW,
            "dry_penalty_last_n": min(params.dry_penalty_last_n, info.context_size),  # it takes memory
            "dry_sequence_breakers": params.dry_breakers or [""],  # it refuses an empty list, and skips ""
            "logit_bias": params.logit_bias,
            "stop": request.stop_anywhere,
            **constraint,
            "ignore_eos": request.ask.ignore_eos,
            "cache_prompt": True,
            "n_probs": request.likeliest or int(request.ask.logprobs),
            "post_sampling_probs": False,
            "return_tokens": True,
            "stream": not request.likeliest,  # a stream has none if the first token is part of a character
            "return_progress": True,
            "sse_ping_interval": PING_S,
            "response_fields": _REPLY_FIELDS,
        }

    async def read_stream(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        """Yield parts of one token each. While the text ends within a character, neither text nor ids are sent."""
        async for event in events:
            index = int(event.get("index", 0))
            if progress := event.get("prompt_progress"):
                evaluated = int(progress["processed"]), int(progress["total"])
                yield ReplyChunk(progress=evaluated, cached=int(progress.get("cache", 0)), index=index)
            elif event.get("stop") and (event.get("tokens") or event.get("content")):  # it does not stream
                yield _whole(event)
            elif event.get("stop"):
                end = _end(event)
                yield replace(end, total=int(event["tokens_predicted"]) - (end.end == "eos"))
            elif event:
                tokens = event.get("tokens", ())
                total = int(event["tokens_predicted"])
                text = well_formed(event.get("content", ""))
                yield ReplyChunk(tokens, _logprobs(event, tokens), total, text, index=index)


def _end(reply: JsonObject) -> ReplyChunk:
    times = reply.get("timings", {})
    return ReplyChunk(
        index=int(reply.get("index", 0)),
        end=_REASONS.get(reply.get("stop_type"), "limit"),
        prompt_tokens=reply.get("tokens_evaluated"),
        cached=int(times.get("cache_n", 0)),
        timings=Timings(
            prefill_s=times.get("prompt_ms", 0.0) / 1000,
            decode_s=times.get("predicted_ms", 0.0) / 1000,
            prefill_tokens=int(times.get("prompt_n", 0)),
            draft_n=int(times.get("draft_n", 0)),
            draft_n_accepted=int(times.get("draft_n_accepted", 0)),
        ),
    )


def _whole(reply: JsonObject) -> ReplyChunk:
    tokens = require_ids(reply.get("tokens"), int(reply["tokens_predicted"]))
    return replace(_end(reply), tokens=tokens, logprobs=_logprobs(reply, tokens), likeliest=_likeliest(reply))


def _likeliest(reply: JsonObject) -> Likeliest:
    """Log probabilities of the likeliest first tokens."""
    first: JsonObject = next(iter(reply.get("completion_probabilities", ())), {})
    return {int(entry["id"]): float(entry["logprob"]) for entry in first.get("top_logprobs", ())}


def _logprobs(reply: JsonObject, tokens: Sequence[int]) -> Logprobs:
    """Log probabilities of the tokens; None for those that a character or a stop string hides. Empty without any."""
    known = [(int(entry["id"]), float(entry["logprob"])) for entry in reply.get("completion_probabilities", ())]
    if not known:
        return ()
    known.reverse()
    logprobs = []
    for token in tokens:
        logprob = None
        if known and known[-1][0] == token:
            _, logprob = known.pop()
        logprobs.append(logprob)
    return logprobs
