"""SGLang as its version 0.5.23 answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model_servers import Generated, ModelServer, Refused

from cerebrum_cli.core.events import FinishEvent, PromptEvent, TokenEvent
from cerebrum_cli.core.sampling import SEEDS, SamplingParams, TokenBias
from cerebrum_cli.engine.sequence import Request

VERSION = "0.5.23"
SAMPLING_FIELDS = {
    *("max_new_tokens", "stop", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "min_new_tokens", "n"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "json_schema", "regex", "ebnf", "ignore_eos"),
    *("skip_special_tokens", "sampling_seed", "logit_bias"),
}  # others are refused


class SglangServer(ModelServer):
    """SGLang; `is_deterministic` as with --enable-deterministic-inference, `sends_deltas` as with
    --incremental-streaming-output. With `hides_ids`, it is a gateway that drops them.
    """

    completion_path = "/generate"
    owner = "sglang"
    is_deterministic = True
    sends_deltas = False
    hides_ids = False
    load_format = "auto"
    drawn = 0

    def answer(self, path: str, body: Any) -> Any:
        if path == "/server_info":
            return {
                "model_path": self.models[0],
                "load_format": self.load_format,
                "max_running_requests": self.slots,
                "enable_deterministic_inference": self.is_deterministic,
                "incremental_streaming_output": self.sends_deltas,
                "max_total_num_tokens": self.n_ctx * self.slots,
                "internal_states": [{}],
                "version": VERSION,
            }
        if path == "/tokenize":
            tokens = self.tokenize(body["prompt"], body.get("add_special_tokens", True), trusted=True)
            return {"tokens": tokens, "count": len(tokens), "max_model_len": self.n_ctx}
        return None

    def refusal(self, status: int, message: str, kind: str = "") -> Any:
        if status == 401:
            return {"error": "Unauthorized"}
        if status == 400 and not kind:
            return {"error": {"message": message}}
        return {"object": "error", "message": message, "type": str(status), "param": None, "code": status}

    def request_of(self, body: Mapping[str, Any]) -> Request:
        fields = body["sampling_params"]
        if unknown := fields.keys() - SAMPLING_FIELDS:
            raise Refused(400, f"unknown field `{min(unknown)}`, expected one of `max_new_tokens`, `stop`")
        prompt, size, limit = body["input_ids"], self.n_ctx, fields.get("max_new_tokens", 128)
        if len(prompt) >= size:
            message = f"The input ({len(prompt)} tokens) is longer than the model's context length ({size} tokens)."
            raise Refused(400, message)
        if limit is not None and len(prompt) + limit > size:
            raise Refused(400, f"Requested token count exceeds the model's maximum context length of {size} tokens.")
        if not 0 < fields["top_p"] <= 1:
            raise Refused(400, f"top_p must be in (0, 1], got {fields['top_p']}.")
        if fields["top_k"] < 1 and fields["top_k"] != -1:
            raise Refused(400, f"top_k must be -1 (disable) or at least 1, got {fields['top_k']}.")
        if fields.get("ebnf") == "bad":
            raise Refused(400, "Failed to compile ebnf grammar: EBNF lexer error")
        assert fields["n"] == 1  # all samples would share a seed
        self.drawn += 1
        params = SamplingParams(
            max_tokens=limit,
            temperature=fields["temperature"],
            top_k=max(0, fields["top_k"]),
            top_p=fields["top_p"],
            min_p=fields["min_p"],
            repeat_penalty=fields["repetition_penalty"],
            presence_penalty=fields["presence_penalty"],
            frequency_penalty=fields["frequency_penalty"],
            logit_bias=tuple(TokenBias(int(id), bias) for id, bias in fields.get("logit_bias", {}).items()),
            seed=fields.get("sampling_seed") if self.is_deterministic else SEEDS - self.drawn,
            stop=tuple(fields["stop"]),
        )
        return Request(
            tuple(prompt),
            params,
            fields.get("ebnf"),
            logprobs=body["return_logprob"],
            ignore_eos=fields["ignore_eos"],
            stream=body["stream"],
        )

    def generated(self, index: int, request: Request, body: Mapping[str, Any]) -> Generated:
        return SglangGenerated(self, request)

    def whole(self, replies: Sequence[Any]) -> list[dict[str, Any]]:
        return [reply.output() for reply in replies]


class SglangDeltas(SglangServer):
    """SGLang with --incremental-streaming-output."""

    sends_deltas = True


class SglangGenerated(Generated):
    """A completion as SGLang reports it: in a stream, each object holds all so far, unless the server sends deltas."""

    site: SglangServer

    def chunks(self, event: PromptEvent | TokenEvent | FinishEvent) -> Iterator[dict[str, Any]]:
        if isinstance(event, PromptEvent):
            return
        tokens, characters = len(self.tokens), len(self.text)
        self.add(event)
        yield self.output(tokens, characters) if self.site.sends_deltas else self.output()

    def output(self, tokens: int = 0, characters: int = 0) -> dict[str, Any]:
        """What has been generated after so many tokens and characters."""
        scores = zip(self.logprobs[tokens:], self.tokens[tokens:], strict=True)
        has_logprobs = self.request.logprobs and self.site.has_logprobs
        return {
            "text": self.text[characters:],
            **({} if self.site.hides_ids else {"output_ids": self.tokens[tokens:]}),
            "meta_info": {
                "id": "1",
                "finish_reason": self.finish and self._finish_reason(self.finish),
                "prompt_tokens": len(self.request.prompt_tokens),
                "completion_tokens": len(self.tokens),
                "cached_tokens": 0,
                **({"output_token_logprobs": [[*each, None] for each in scores]} if has_logprobs else {}),
            },
        }

    def _finish_reason(self, finish: FinishEvent) -> dict[str, Any]:
        if finish.reason != "stop":
            return {"type": "length", "length": len(self.tokens)}
        matched = self.request.params.stop[0] if finish.by_stop_string else self.site.eos
        return {"type": "stop", "matched": matched}
