"""vLLM as its version 0.32.0 answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model_servers import Generated, ModelServer, Refused

from cerebrum_cli.core.events import FinishEvent, PromptEvent, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams, TokenBias
from cerebrum_cli.engine.sequence import Request

VERSION = "0.32.0"
DEFAULT_MAX_TOKENS = 16  # also for null


class VllmServer(ModelServer):
    """vLLM; with `ignores_grammar` and `hides_ids`, it is one that does not know these fields, and ignores them."""

    completion_path = "/v1/completions"
    owner = "vllm"
    ignores_grammar = False
    hides_ids = False

    def described(self, name: str) -> dict[str, Any]:
        return {**super().described(name), "permission": []}

    def answer(self, path: str, body: Any) -> Any:
        if path == "/version":
            return {"version": VERSION}
        if path == "/tokenize":
            self._require_model(body)
            tokens = self.tokenize(body["prompt"], body.get("add_special_tokens", True), trusted=True)
            return {"count": len(tokens), "max_model_len": self.n_ctx, "tokens": tokens, "token_strs": None}
        return None

    def refusal(self, status: int, message: str, kind: str = "") -> Any:
        if status == 401:
            return {"error": "Unauthorized"}
        return {"error": {"message": message, "type": kind or "BadRequestError", "param": None, "code": status}}

    def requires_key(self, path: str) -> bool:
        return path.startswith("/v1")

    def request_of(self, body: Mapping[str, Any]) -> Request:
        self._require_model(body)
        prompt, samples, size = body["prompt"], body.get("n", 1), self.n_ctx
        limit = DEFAULT_MAX_TOKENS if body.get("max_tokens") is None else body["max_tokens"]
        if limit > size:
            raise Refused(400, f"max_tokens={limit} cannot be greater than max_model_len={size}.")
        if len(prompt) > size:
            message = f"This model's maximum context length is {size} tokens. However, your prompt has {len(prompt)}"
            raise Refused(400, f"{message} input tokens, which exceeds this limit even without any output tokens.")
        limit = min(limit, size - len(prompt))
        if limit < 1:
            raise Refused(400, f"max_tokens must be at least 1, got {limit}.")
        if samples > 1 and not body["temperature"]:
            raise Refused(400, f"n must be 1 when using greedy sampling, got {samples}.")
        if not 0 < body["top_p"] <= 1:
            raise Refused(400, f"top_p must be in (0, 1], got {body['top_p']}.")
        if body["stream"] is False and "stream_options" in body:
            raise Refused(400, "Stream options can only be defined when `stream=True`.")
        grammar = (body.get("structured_outputs") or {}).get("grammar")
        if grammar == "bad":
            raise Refused(400, "Invalid grammar specification.")
        params = SamplingParams(
            max_tokens=limit,
            temperature=body["temperature"],
            top_k=body["top_k"],
            top_p=body["top_p"],
            min_p=body["min_p"],
            repeat_penalty=body["repetition_penalty"],
            presence_penalty=body["presence_penalty"],
            frequency_penalty=body["frequency_penalty"],
            logit_bias=tuple(TokenBias(int(id), bias) for id, bias in body.get("logit_bias", {}).items()),
            seed=body["seed"],
            stop=tuple(body["stop"]),
        )
        return Request(
            tuple(prompt),
            params,
            None if self.ignores_grammar else grammar,
            samples,
            logprobs=body.get("logprobs") is not None,
            ignore_eos=body["ignore_eos"],
            stream=body["stream"],
        )

    def generated(self, index: int, request: Request, body: Mapping[str, Any]) -> Generated:
        return VllmGenerated(index, self, request, body)

    def whole(self, replies: Sequence[Any]) -> list[dict[str, Any]]:
        total = sum(len(reply.tokens) for reply in replies)
        choices = [reply.choice() for reply in replies]
        return [{**replies[0].envelope(choices), "usage": replies[0].usage(total)}]

    def _require_model(self, body: Mapping[str, Any]) -> None:
        if body["model"] not in self.models:
            raise Refused(404, f"The model `{body['model']}` does not exist.", "NotFoundError")


class VllmGenerated(Generated):
    """One sample of a completion as vLLM reports it: in a stream, each object holds what is new."""

    site: VllmServer

    def __init__(self, index: int, site: VllmServer, request: Request, body: Mapping[str, Any]) -> None:
        super().__init__(site, request)
        self._index = index
        self._body = body

    def chunks(self, event: PromptEvent | TokenEvent | FinishEvent) -> Iterator[dict[str, Any]]:
        if isinstance(event, PromptEvent):
            return
        tokens, characters = len(self.tokens), len(self.text)
        self.add(event)
        yield self.envelope([self.choice(tokens, characters)])
        if self.finish and self._body.get("stream_options", {}).get("include_usage"):
            yield {**self.envelope([]), "usage": self.usage(len(self.tokens))}

    def envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An object of a stream, or a whole reply."""
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": self._body["model"],
            "choices": choices,
        }

    def choice(self, first: int = 0, start: int = 0) -> dict[str, Any]:
        """What has been generated after so many tokens and characters."""
        finish, tokens = self.finish, self.tokens[first:]
        reason = {"stop": "stop", "length": "length", "context": "length"}[finish.reason] if finish else None
        stop = self._body["stop"][0] if finish and finish.by_stop_string else None
        ids = {"prompt_token_ids": None, "token_ids": tokens} if self._body.get("return_token_ids") else {}
        names = [f"token_id:{token}" for token in tokens]
        logprobs = {
            "text_offset": [0] * len(tokens),
            "token_logprobs": self.logprobs[first:],
            "tokens": names,
            "top_logprobs": [],
        }
        return {
            "index": self._index,
            "text": self.text[start:],
            "logprobs": logprobs if self.request.logprobs and self.site.has_logprobs else None,
            "finish_reason": reason,
            "stop_reason": stop,
            **({} if self.site.hides_ids else ids),
        }

    def usage(self, tokens: int) -> dict[str, Any]:
        """The counts of all samples."""
        prompt = len(self.request.prompt_tokens)
        return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
