"""SGLang: prompts and replies are token ids on its own `/generate`, whose sampling parameters have other defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.engine.remote.client import Client, one_line
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.failures import DAMAGE, LostServerError
from cerebrum_cli.engine.remote.kind import End, Part, ServerInfo, StopReason, ask, text_of
from cerebrum_cli.engine.sequence import Request

SEQUENCES = 256  # where the server does not report --max-running-requests
LEAST_TOP_P = 1e-6  # 0 is refused
ALL_TOKENS = -1  # for top_k


class Sglang:
    """SGLang's server. All samples of one request would share a seed, so each is a request; the prompt is cached."""

    name = "SGLang"
    completion_path = "/generate"

    async def describe(self, client: Client, endpoint: Endpoint, entry: Mapping[str, Any]) -> ServerInfo:
        """Ask for the server's settings: only with deterministic inference, seeds have an effect."""
        settings = await ask(client, endpoint, "/get_server_info")
        try:
            return ServerInfo(
                self,
                one_line(str(settings["version"])),
                str(entry["id"]),
                int(entry["max_model_len"]),
                int(settings.get("max_running_requests") or SEQUENCES),
                max_samples=1,
                has_seeds=bool(settings.get("enable_deterministic_inference")),
            )
        except DAMAGE as error:
            raise EndpointError(f"{endpoint.name}: unexpected answer to /get_server_info", "update SGLang") from error

    def tokenize_body(self, text: str, info: ServerInfo) -> dict[str, Any]:
        return {"model": info.model, "prompt": text, "add_special_tokens": True}

    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> dict[str, Any]:
        params = request.params
        return {
            "input_ids": list(request.prompt_tokens),
            "stream": request.stream,
            "return_logprob": request.logprobs,
            "sampling_params": {
                "max_new_tokens": params.max_tokens,
                "n": samples,
                "temperature": params.temperature,
                "top_k": params.top_k or ALL_TOKENS,
                "top_p": max(params.top_p, LEAST_TOP_P),
                "min_p": params.min_p,
                "repetition_penalty": params.repeat_penalty,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "min_new_tokens": 0,
                "stop": list(params.stop),
                "ignore_eos": request.ignore_eos,
                "skip_special_tokens": False,
                **({"sampling_seed": seed} if info.has_seeds else {}),
                **({"ebnf": request.grammar} if request.grammar else {}),
            },
        }

    def read_replies(self, answer: Any) -> Sequence[Part]:
        return [_part(reply, 0) for reply in (answer if isinstance(answer, list) else [answer])]

    async def read_stream(self, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[Part]:
        """Yield parts with the ids of all tokens; depending on the server, each event holds all of them so far."""
        seen = 0
        async for event in events:
            part = _part(event, seen)
            seen += len(part.tokens)
            yield part

    def differences(self, request: Request, info: ServerInfo) -> Sequence[tuple[str, str]]:
        found = []
        if request.params.temperature and not info.has_seeds:
            found.append(
                (
                    "this server ignores seeds: other samples each time",
                    "start SGLang with --enable-deterministic-inference",
                )
            )
        if request.params.repeat_penalty != 1.0:
            problem = "SGLang's repeat penalty counts the whole text, not the last 64 tokens"
            found.append((problem, "replies differ from those of llama.cpp; omit --repeat-penalty"))
        return found


def _part(reply: Mapping[str, Any], seen: int) -> Part:
    """The part of a reply after the tokens `seen`."""
    meta, ids = reply["meta_info"], reply.get("output_ids")
    total = int(meta["completion_tokens"])
    end = _end(meta, total) if meta.get("finish_reason") else None
    if ids is None:
        return Part(text=text_of(reply, "text"), total=total, end=end)
    start = seen if len(ids) == total else 0
    tokens = tuple(int(token) for token in ids[start:])
    scores = [score for score, *_ in meta.get("output_token_logprobs") or ()][-len(tokens) :] if tokens else []
    return Part(tokens, logprobs=tuple(scores) if len(scores) == len(tokens) else (), end=end)


def _end(meta: Mapping[str, Any], total: int) -> End:
    finish = meta["finish_reason"]
    if finish["type"] not in ("stop", "length"):
        raise LostServerError(one_line(str(finish.get("message") or f"the reply ended with {finish['type']}")))
    is_text = isinstance(finish.get("matched"), str)
    reason: StopReason = "limit" if finish["type"] == "length" else "stop string" if is_text else "eos"
    return End(reason, total - (reason == "eos"), meta.get("prompt_tokens"), int(meta.get("cached_tokens") or 0))
