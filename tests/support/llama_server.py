"""llama-server as its build b1-0c1e570 answers."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model_servers import END_LOGPROB, Generated, ModelServer, Refused

from cerebrum_cli.core.events import FinishEvent, PromptEvent, TokenEvent
from cerebrum_cli.core.sampling import DRY_BREAKERS, SamplingParams, TokenBias
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request

BUILD = "b1-0c1e570"
FINISH = {"length": "limit", "context": "limit", "stop": "eos"}


class LlamaServer(ModelServer):
    """llama-server; with `n_vocab`, it states the size of its vocabulary."""

    completion_path = "/completion"
    owner = "llamacpp"
    ends_streams = False
    health = b'{"status":"ok"}'

    def __init__(self, engine: LocalEngine, *, slots: int = 4, n_vocab: int | None = None) -> None:
        super().__init__(engine, slots=slots)
        self.size = 1000  # bytes of the weights
        self.n_vocab = n_vocab

    def listed(self) -> dict[str, Any]:
        return {"models": [{"name": name, "model": name, "type": "model"} for name in self.models], **super().listed()}

    def described(self, name: str) -> dict[str, Any]:
        size = {} if self.n_vocab is None else {"n_vocab": self.n_vocab}
        meta = {"vocab_type": 2, **size, "n_ctx": self.n_ctx, "n_ctx_train": 8192, "size": self.size}
        return {"id": name, "aliases": [name], "object": "model", "owned_by": self.owner, "meta": meta}

    def props(self) -> dict[str, Any]:
        """The answer to /props, less what the server says of sampling and templates."""
        return {
            "default_generation_settings": {"params": {"seed": 4294967295}, "n_ctx": self.n_ctx},
            "total_slots": self.slots,
            "model_alias": self.models[0],
            "model_path": f"/srv/models/{self.models[0]}",
            "chat_template": "",
            "build_info": BUILD,
            "is_sleeping": False,
        }

    def answer(self, path: str, body: Any) -> Any:
        if path == "/props":
            return self.props()
        if path == "/tokenize":
            trusted, with_bos = body.get("parse_special", True), bool(body.get("add_special"))
            return {"tokens": self.tokenize(body["content"], with_bos, trusted)}
        return None

    def refusal(self, status: int, message: str, kind: str = "") -> Any:
        return {"error": {"code": status, "message": message, "type": kind or "invalid_request_error"}}

    def request_of(self, body: Mapping[str, Any]) -> Request:
        prompt, samples, slots, context_size = body["prompt"], int(body.get("n_cmpl", 1)), self.slots, self.n_ctx
        if not isinstance(prompt, list):
            raise Refused(400, "the stand-in takes token ids only")
        if not prompt:
            raise Refused(400, '"prompt" must not be empty')
        if not 1 <= samples <= slots:
            raise Refused(400, f"Field 'n_cmpl': Value must be between 1 <= value <= {slots}, but got {samples}")
        if len(prompt) >= context_size:
            message = f"request ({len(prompt)} tokens) exceeds the available context size ({context_size} tokens)"
            raise Refused(400, f"{message}, try increasing it", "exceed_context_size_error")
        limit = body.get("n_predict", -1)
        params = SamplingParams(
            max_tokens=None if limit < 0 else limit,
            temperature=body.get("temperature", 0.8),
            top_k=body.get("top_k", 40),
            top_p=body.get("top_p", 0.95),
            min_p=body.get("min_p", 0.05),
            repeat_penalty=body.get("repeat_penalty", 1.0),
            top_n_sigma=body.get("top_n_sigma", -1.0),
            typical_p=body.get("typical_p", 1.0),
            presence_penalty=body.get("presence_penalty", 0.0),
            frequency_penalty=body.get("frequency_penalty", 0.0),
            dry_multiplier=body.get("dry_multiplier", 0.0),
            dry_base=body.get("dry_base", 1.75),
            dry_allowed_length=body.get("dry_allowed_length", 2),
            dry_penalty_last_n=body.get("dry_penalty_last_n", 64),
            dry_sequence_breaker=tuple(filter(None, body.get("dry_sequence_breakers", DRY_BREAKERS))),
            logit_bias=tuple(TokenBias(*pair) for pair in body.get("logit_bias", ())),
            seed=body.get("seed"),
            stop=tuple(body.get("stop", ())),
        )
        return Request(
            tuple(prompt),
            params,
            body.get("grammar") or None,
            samples,
            logprobs=bool(body.get("n_probs")),
            ignore_eos=bool(body.get("ignore_eos")),
            stream=bool(body.get("stream")),
        )

    def generated(self, index: int, request: Request, body: Mapping[str, Any]) -> Generated:
        return LlamaGenerated(index, self, request, body)

    def whole(self, replies: Sequence[Any]) -> list[dict[str, Any]]:
        return [reply.whole() for reply in replies]

    def joined(self, replies: Sequence[Any]) -> Any:
        return list(replies) if len(replies) > 1 else replies[0]


class LlamaGenerated(Generated):
    """One sample of a completion as llama-server reports it.

    While its text ends within a character, nothing is sent of a token, in a stream not even its id later.
    """

    site: LlamaServer

    def __init__(self, index: int, site: LlamaServer, request: Request, body: Mapping[str, Any]) -> None:
        super().__init__(site, request)
        self._index = index
        self._body = body
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._unsent = ""
        self._probabilities: list[dict[str, Any]] = []

    def chunks(self, event: PromptEvent | TokenEvent | FinishEvent) -> Iterator[dict[str, Any]]:
        if isinstance(event, PromptEvent):
            if self._body.get("return_progress"):
                progress = {"total": event.total, "cache": 0, "processed": event.evaluated, "time_ms": 1}
                yield {**self._part("", [0]), "prompt_progress": progress}
            return
        before = len(self.tokens)
        self.add(event)
        if isinstance(event, TokenEvent):
            yield from self._sent(event)
            return
        for end in self.tokens[before:]:
            self._probabilities.append(self._probability(end, b"", END_LOGPROB))
            yield self._part("", [end])
        yield {**self._part("", []), **self._ending(event)}

    def whole(self) -> dict[str, Any]:
        """The reply as one object."""
        assert self.finish
        probabilities = {"completion_probabilities": self._probabilities}
        return {
            "index": self._index,
            "content": self.text,
            "tokens": self.tokens,
            **self._ending(self.finish),
            **(probabilities if self.request.logprobs and self.site.has_logprobs else {}),
        }

    def _sent(self, event: TokenEvent) -> Iterator[dict[str, Any]]:
        self._unsent += event.text
        if event.token is None:  # text held back until the end
            yield self._part(self._unsent, [])
            return
        piece = self.site.engine.vocabulary.piece(event.token)
        self._decoder.decode(piece)
        if self._decoder.getstate()[0]:
            return
        self._probabilities.append(self._probability(event.token, piece, event.logprob or 0.0))
        yield self._part(self._unsent, [event.token])
        self._unsent = ""

    def _part(self, text: str, tokens: list[int]) -> dict[str, Any]:
        return {
            "index": self._index,
            "content": text,
            "tokens": tokens,
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": len(self.tokens),
            "tokens_evaluated": len(self.request.prompt_tokens),
        }

    def _ending(self, finish: FinishEvent) -> dict[str, Any]:
        times, predicted = finish.timings, len(self.tokens)
        return {
            "stop": True,
            "stop_type": "word" if finish.by_stop_string else FINISH[finish.reason],
            "truncated": False,
            "tokens_predicted": predicted,
            "tokens_evaluated": len(self.request.prompt_tokens),
            "timings": {
                "cache_n": finish.cached_tokens,
                "prompt_n": times.prefill_tokens,
                "prompt_ms": 1000 * times.prefill_s,
                "predicted_n": predicted,
                "predicted_ms": 1000 * times.decode_s,
            },
        }

    def _probability(self, token: int, piece: bytes, logprob: float) -> dict[str, Any]:
        text = piece.decode("utf-8", "replace")
        entry = {"id": token, "token": text, "bytes": list(piece), "logprob": logprob}
        return {**entry, "top_logprobs": [entry]}
