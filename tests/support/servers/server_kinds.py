"""llama-server b1-0c1e570 and vLLM 0.32.0 as recorded; Ollama and LM Studio as documented."""

from collections.abc import Generator, Mapping
from typing import Any

from model_servers import ModelServer, Refused, Sample

BUILD = "b1-0c1e570"


class LlamaServer(ModelServer):
    """llama-server; with `n_vocab`, it states the size of its vocabulary."""

    completion_path = "/completion"
    owner = "llamacpp"
    size = 1000  # bytes of the weights
    build = BUILD
    n_vocab: int | None = None

    def listed(self, name: str) -> dict[str, Any]:
        size = {} if self.n_vocab is None else {"n_vocab": self.n_vocab}
        meta = {"vocab_type": 2, **size, "n_ctx": self.context_size, "n_ctx_train": 8192, "size": self.size}
        return {"id": name, "aliases": [name], "object": "model", "owned_by": self.owner, "meta": meta}

    def answer(self, path: str, body: Any) -> Any:
        if path == "/tokenize":
            return {"tokens": self.tokenize(body["content"], trusted=body["parse_special"])}
        if path != "/props":
            return None
        return {
            "default_generation_settings": {"params": {"seed": 4294967295}, "n_ctx": self.context_size},
            "total_slots": self.slots,
            "model_alias": self.models[0],
            "model_path": f"/srv/models/{self.models[0]}",
            "chat_template": "",
            "build_info": self.build,
            "is_sleeping": False,
        }

    def complete(self, body: Mapping[str, Any]) -> Generator[Any, None, None]:
        prompt, count = tuple(body["prompt"]), body["n_cmpl"]
        if not 1 <= count <= self.slots:
            raise Refused(400, f"Field 'n_cmpl': Value must be between 1 <= value <= {self.slots}, but got {count}")
        if len(prompt) >= self.context_size:
            message = f"request ({len(prompt)} tokens) exceeds the available context size ({self.context_size} tokens)"
            raise Refused(400, f"{message}, try increasing it", "exceed_context_size_error")
        for at in range(count):
            sample = yield from self.generate(prompt, body["seed"] + at, body["n_predict"], body["ignore_eos"])
            yield from (self._chunks if body["stream"] else self._whole)(sample, at, body)

    def _whole(self, sample: Sample, index: int, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        likeliest = [{"id": ord(text), "token": text, "logprob": each} for text, each in self.openings.items()]
        first = {"id": sample.tokens[0], "logprob": -1.0, "top_logprobs": likeliest[: body["n_probs"]]}
        part = _part("".join(sample.texts), sample.tokens, len(sample.tokens), index, body)
        yield {**part, **_ending(sample), "completion_probabilities": [first]}

    def _chunks(self, sample: Sample, index: int, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Within a character nothing is sent of a token, not even its id later."""
        total, tokens = len(body["prompt"]), sample.tokens
        for processed in range(0, total, 16):
            progress = {"total": total, "cache": 0, "processed": min(processed + 16, total), "time_ms": 1}
            yield {**_part("", [0], 0, index, body), "prompt_progress": progress}
        unsent = ""
        for at, (token, text) in enumerate(zip(tokens, sample.texts, strict=True), 1):
            unsent += text
            if sample.ends_characters[at - 1]:
                yield _part(unsent, [token], at, index, body)
                unsent = ""
        if unsent:
            yield _part(unsent, [], len(tokens), index, body)
        yield {**_part("", [], len(tokens), index, body), **_ending(sample)}


def _part(text: str, tokens: list[int], total: int, index: int, body: Mapping[str, Any]) -> dict[str, Any]:
    counts = {"tokens_predicted": total, "tokens_evaluated": len(body["prompt"])}
    return {"index": index, "content": text, "tokens": tokens, "stop": False, "id_slot": -1, **counts}


def _ending(sample: Sample) -> dict[str, Any]:
    stop_type = "eos" if sample.has_ended else "limit"
    times = {"cache_n": 0, "prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 1, "predicted_ms": 1.0}
    return {"stop": True, "stop_type": stop_type, "truncated": False, "timings": times}


class VllmServer(ModelServer):
    """vLLM: in a stream, each object holds what is new. Grammars are ignored."""

    completion_path = "/v1/completions"
    owner = "vllm"
    hides_ids = False

    def listed(self, name: str) -> dict[str, Any]:
        own = {"root": name, "parent": None, "max_model_len": self.context_size}
        return {"id": name, "object": "model", "created": 1, "owned_by": self.owner, **own}

    def answer(self, path: str, body: Any) -> Any:
        if path == "/version":
            return {"version": "0.32.0"}
        if path != "/tokenize":
            return None
        tokens = self.tokenize(body["prompt"], trusted=True)
        return {"count": len(tokens), "max_model_len": self.context_size, "tokens": tokens}

    def complete(self, body: Mapping[str, Any]) -> Generator[Any, None, None]:
        sample = yield from self.generate(body["prompt"], body["seed"], body["max_tokens"], body["ignore_eos"])
        count, prompt = len(sample.tokens), len(body["prompt"])
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        for at in range(count):
            yield {**head, "choices": [self._choice(sample, at, at + 1 == count, body)]}
        usage = {"prompt_tokens": prompt, "total_tokens": prompt + count, "completion_tokens": count}
        yield {**head, "choices": [], "usage": usage}
        yield b"data: [DONE]\n\n"

    def _choice(self, sample: Sample, at: int, is_last: bool, body: Mapping[str, Any]) -> dict[str, Any]:
        logprobs: Any = None
        if body.get("return_tokens_as_token_ids"):
            likeliest = list(self.openings.items())[: body["logprobs"]]
            logprobs = {"top_logprobs": [{f"token_id:{ord(text)}": each for text, each in likeliest}]}
        return {
            "index": 0,
            "text": sample.texts[at],
            "logprobs": logprobs,
            "finish_reason": ("stop" if sample.has_ended else "length") if is_last else None,
            "stop_reason": None,
            **({} if self.hides_ids else {"prompt_token_ids": None, "token_ids": [sample.tokens[at]]}),
        }


class OllamaServer(ModelServer):
    """Ollama 0.34: chat completions, with a template of its own; reasoning comes apart, unless `is_plain`."""

    completion_path = "/v1/chat/completions"
    owner = "library"
    reasoning_key = "reasoning"
    is_plain = False
    has_usage = True
    finish_reason: str | None = None  # instead of the right one; "" is none

    def listed(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 1790000000, "owned_by": self.owner}

    def answer(self, path: str, body: Any) -> Any:
        return None

    def complete(self, body: Mapping[str, Any]) -> Generator[Any, None, None]:
        turns = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in body["messages"])
        prompt = f"{turns}<|im_start|>assistant\n".encode()
        sample = yield from self.generate(tuple(prompt), body["seed"], body.get("max_tokens"))
        texts = self._texts("".join(sample.texts))
        finish = "stop" if sample.has_ended else "length"
        if self.finish_reason is not None:
            finish = self.finish_reason
        counts = {"prompt_tokens": len(prompt), "completion_tokens": len(sample.tokens)}
        usage = {"usage": counts | {"total_tokens": sum(counts.values())}} if self.has_usage else {}
        head = {"id": "chatcmpl-1", "created": 1790000000, "model": body["model"], "system_fingerprint": "fp_ollama"}
        first = {}
        if body.get("logprobs") and self.openings:
            likeliest = [{"token": text, "logprob": each} for text, each in self.openings.items()]
            first["logprobs"] = {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": likeliest}]}
        head["object"] = "chat.completion.chunk"
        for key, text in texts.items():
            for part in (text[at : at + 5] for at in range(0, len(text), 5)):
                delta = {"role": "assistant", "content": "", key: part}
                yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None, **first}]}
                first = {}
        yield {**head, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": finish, **first}]}
        if usage and body["stream_options"]["include_usage"]:
            yield {**head, "choices": [], **usage}
        yield b"data: [DONE]\n\n"

    def _texts(self, text: str) -> dict[str, str]:
        """The texts of a message by their keys, without the markup of reasoning."""
        reasoning, closed, answer = text.partition("</think>")
        if self.is_plain or not closed:
            return {"content": text}
        return {self.reasoning_key: reasoning.removeprefix("<think>"), "content": answer.strip()}


class LmStudioServer(OllamaServer):
    """LM Studio 0.3.29."""

    owner = "organization_owner"
    reasoning_key = "reasoning_content"


KINDS: tuple[type[ModelServer], ...] = (LlamaServer, VllmServer)
