"""What llama-server is asked, and what its answers mean.

A completion is asked for on `/completion`, whose reply holds token ids and timings. Every field that changes the output
is sent, since the server fills in others from its command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.errors import CerebrumError, EndpointError, GrammarError, PromptTooLong
from cerebrum_cli.engine.remote.client import Client, RequestError, one_line
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.failures import DAMAGE, LostServerError, RefusedRequestError
from cerebrum_cli.engine.sequence import Request

KIND = "llama-server"
DESCRIBE_S = 30.0  # a busy server answers between two steps
PENALTY_WINDOW = 64  # tokens, as on this machine
PING_S = 15
# What is off here, whatever the server's command line turns on.
_OFF = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "adaptive_target": -1.0,
    "min_keep": 0,
    "n_indent": 0,
    "t_max_predict_ms": -1,
    "logit_bias": [],
    "lora": [],
}
_SAMPLERS = ["penalties", "top_k", "top_p", "min_p", "temperature"]
_REPLY_FIELDS = (
    "index",
    "content",
    "tokens",
    "stop",
    "stop_type",
    "truncated",
    "tokens_predicted",
    "tokens_evaluated",
    "timings",
    "completion_probabilities",
)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server that is ready: how it was built, the id of its model, tokens of a sequence, and concurrent sequences."""

    kind: str
    build: str
    model: str
    context_size: int
    slots: int
    vocabulary_size: int | None

    @property
    def recorded(self) -> dict[str, str]:
        """What is recorded with replies: not the address."""
        return {"kind": self.kind, "build": self.build}


async def describe(client: Client, endpoint: Endpoint) -> ServerInfo:
    """Ask a server what it is. Raises EndpointError if it is not a llama-server, or serves another model."""
    listed = await _ask(client, endpoint, "/v1/models")
    entry = choose_model(listed, endpoint)
    owner = entry.get("owned_by")
    if owner != "llamacpp":
        raise EndpointError(*_unsupported(endpoint.name, owner))
    model = str(entry["id"])
    props = await _ask(client, endpoint, "/props", model=model)
    try:
        size = entry.get("meta", {}).get("n_vocab")
        return ServerInfo(
            KIND,
            one_line(str(props["build_info"])),
            model,
            int(props["default_generation_settings"]["n_ctx"]),
            max(1, int(props["total_slots"])),
            None if size is None else int(size),
        )
    except DAMAGE as error:
        raise EndpointError(f"{endpoint.name}: unexpected answer to /props", "update llama-server") from error


async def tokenize(client: Client, endpoint: Endpoint, info: ServerInfo, text: str) -> list[int]:
    """The server's tokens of a text that is the whole prompt."""
    body = {"content": text, "add_special": True, "parse_special": False, "model": info.model}
    try:
        answer = await client.post("/tokenize", body, DESCRIBE_S)
        return [int(token) for token in answer["tokens"]]
    except (RequestError, *DAMAGE) as error:
        raise EndpointError(f"{endpoint.name}: /tokenize fails: {error}", "update llama-server") from error


def choose_model(listed: Any, endpoint: Endpoint) -> Mapping[str, Any]:
    """The entry of the model to ask for: the only one, or the one named. Raises EndpointError."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    models = {
        str(entry["id"]): entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and "id" in entry
    }
    names = ", ".join(map(one_line, models))
    if not models:
        raise EndpointError(f"{endpoint.name}: not a server of language models", "check the URL")
    if endpoint.served_model is not None:
        if endpoint.served_model not in models:
            raise EndpointError(f"{endpoint.name} serves no model {endpoint.served_model!r}", f"it serves {names}")
        return models[endpoint.served_model]
    if len(models) > 1:
        raise EndpointError(f"{endpoint.name} serves several models", f"choose with --served-model-name: {names}")
    return next(iter(models.values()))


def completion_body(request: Request, model: str, seed: int, samples: int) -> dict[str, Any]:
    """The body that asks for so many samples of a request, the first with this seed."""
    params = request.params
    return {
        **_OFF,
        "model": model,
        "prompt": list(request.prompt_tokens),
        "n_predict": -1 if params.max_tokens is None else params.max_tokens,
        "n_cmpl": samples,
        "seed": seed,
        "samplers": _SAMPLERS,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repeat_penalty": params.repeat_penalty,
        "repeat_last_n": PENALTY_WINDOW,
        "stop": list(params.stop),
        "grammar": request.grammar or "",
        "ignore_eos": request.ignore_eos,
        "cache_prompt": True,
        "n_probs": int(request.logprobs),
        "post_sampling_probs": False,
        "return_tokens": True,
        "stream": request.stream,
        "return_progress": True,
        "sse_ping_interval": PING_S,
        "response_fields": list(_REPLY_FIELDS),
    }


def refusal(error: RequestError, request: Request, name: str) -> CerebrumError:
    """The error of a request that the server will not answer."""
    if error.kind == "exceed_context_size_error":
        return PromptTooLong(f"{name}: {error.message}", "shorten the prompt, or restart the server with a larger -c")
    if request.grammar and "grammar" in error.message:
        return GrammarError(error.message)
    return EndpointError(f"{name}: {error.message}", "check the settings of the request, and the server's log")


def raise_stream_error(event: Mapping[str, Any], request: Request, name: str) -> None:
    """Raise what an error event in a stream means; nothing for any other event."""
    error = event.get("error")
    if error is None:
        return
    detail = error if isinstance(error, dict) else {"message": error}
    status, message = detail.get("code", 500), one_line(str(detail.get("message", "error")))
    if isinstance(status, int) and 400 <= status < 500:
        refused = RequestError(status, str(detail.get("type", "")), message)
        raise RefusedRequestError(refusal(refused, request, name))
    raise LostServerError(message)


async def _ask(client: Client, endpoint: Endpoint, path: str, **query: str) -> Any:
    try:
        return await client.get(path, DESCRIBE_S, **query)
    except RequestError as error:
        problem = f"{endpoint.name}: {path}: {error.message}"
        raise EndpointError(problem, "check the URL: it must be that of a llama-server") from error


def _unsupported(name: str, owner: Any) -> tuple[str, str]:
    """Message and hint for a server of another kind, by who it says owns its models."""
    kinds = {"library": "Ollama", "organization_owner": "LM Studio", "vllm": "vLLM", "sglang": "SGLang"}
    kind = kinds.get(str(owner), "a server of an unknown kind")
    return (
        f"{name} is {kind}, which is not supported",
        "use llama-server: prompts are sent as token ids, and replies must have theirs",
    )
