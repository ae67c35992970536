"""llama-server: every field that changes the output is sent, since it fills in others from its command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import ClassVar, Self

from cerebrum_cli.core.events import Timings
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.sampling import DRY_ALLOWED_LENGTH, DRY_BASE, DRY_BREAKERS, PENALTY_WINDOW, SAMPLERS
from cerebrum_cli.core.text import foreign_line, well_formed
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.kind import ReplyChunk, ServerKind, StopReason, file_name, log_probability, stated_count

PING_S = 15
# What is off here, whatever the server's command line turns on. Stop strings are found here.
_OFF: JsonObject = {
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "adaptive_target": -1.0,
    "min_keep": 0,
    "n_indent": 0,
    "t_max_predict_ms": -1,
    "logit_bias": [],
    "lora": [],
    "stop": [],
    "grammar": "",
}
_CONSTRAINTS = {"schema": "json_schema", "gbnf": "grammar"}
_ORDER = ["penalties", "dry", "top_k", "top_p", "min_p", "temperature"]
_REPLY_FIELDS = (
    *("index", "content", "tokens", "stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings"),
    "completion_probabilities",
)


@frozen
class LlamaServer(ServerKind):
    """llama.cpp's own server; a completion is asked for on `/completion`, whose reply holds token ids and timings."""

    kind: ClassVar[str] = "llama-server"
    completion_path: ClassVar[str] = "/completion"

    vocabulary_size: int | None

    @classmethod
    def described(cls, entry: JsonObject, details: JsonObject) -> Self:
        model = str(entry["id"])
        meta = entry.get("meta", {})
        weights = file_name(str(details.get("model_path", model)))  # elsewhere on another machine
        if "size" in meta:
            weights += f" ({int(meta['size'])} bytes)"
        return cls(
            build=foreign_line(str(details["build_info"])),
            model=model,
            weights=foreign_line(weights),
            context_size=int(details["default_generation_settings"]["n_ctx"]),
            slots=max(1, int(details["total_slots"])),
            vocabulary_size=stated_count(meta.get("n_vocab")),
        )

    @property
    def max_samples(self) -> int:
        return self.slots

    @property
    def max_window(self) -> int:
        return self.slots

    def body(self, request: Request, seed: int, samples: int) -> JsonDict:
        params = request.params
        body = {
            **_OFF,
            **{name: getattr(params, name) for name in SAMPLERS},
            "model": self.model,
            "prompt": list(request.prompt_tokens),
            "n_predict": params.max_tokens or self.room_for_reply(request),  # -1 never ends where contexts shift
            "n_cmpl": samples,
            "seed": seed,
            "samplers": _ORDER,
            "repeat_last_n": PENALTY_WINDOW,
            "dry_base": DRY_BASE,
            "dry_allowed_length": DRY_ALLOWED_LENGTH,
            "dry_penalty_last_n": self.context_size,
            "dry_sequence_breakers": DRY_BREAKERS,
            "ignore_eos": request.ask.ignore_eos,
            "cache_prompt": True,
            "n_probs": request.likeliest,
            "post_sampling_probs": False,
            "return_tokens": True,
            "stream": not request.likeliest,  # a stream has none if the first token is part of a character
            "return_progress": True,
            "sse_ping_interval": PING_S,
            "response_fields": _REPLY_FIELDS,
        }
        if grammar := request.ask.grammar:
            del body["grammar"]
            body[_CONSTRAINTS[grammar.kind]] = grammar.value
        return body

    async def read(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        """Yield parts of one token each. While the text ends within a character, neither text nor ids are sent."""
        async for event in events:
            index = int(event.get("index", 0))
            if progress := event.get("prompt_progress"):
                evaluated = int(progress["processed"]), int(progress["total"])
                yield ReplyChunk(index=index, progress=evaluated, cached=int(progress.get("cache", 0)))
            elif event.get("stop"):
                yield _last(event, index)
            else:
                tokens, total = event.get("tokens", ()), int(event["tokens_predicted"])
                yield ReplyChunk(tokens, total, well_formed(event.get("content", "")), index=index)


def _last(reply: JsonObject, index: int) -> ReplyChunk:
    """The last part of a reply, or all of one that does not stream."""
    times = reply.get("timings", {})
    end: StopReason = "eos" if reply.get("stop_type") == "eos" else "limit"
    tokens = reply.get("tokens", ())
    return ReplyChunk(
        index=index,
        tokens=tokens,
        total=None if tokens else int(reply["tokens_predicted"]) - (end == "eos"),
        likeliest=_likeliest(reply),
        end=end,
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


def _likeliest(reply: JsonObject) -> Mapping[int | str, float]:
    """Log probabilities of the likeliest first tokens."""
    first: JsonObject = next(iter(reply.get("completion_probabilities", ())), {})
    return {int(entry["id"]): log_probability(entry["logprob"]) for entry in first.get("top_logprobs", ())}
