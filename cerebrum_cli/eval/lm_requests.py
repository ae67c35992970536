"""lm-eval's requests as requests to the engine: texts to score, and texts to continue with its settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.events import Event, FinishEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.core.sampling import SEEDS, SamplingParams
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.scoring.request import ScoreRequest
from cerebrum_cli.engine.sequence import Request, Tokens

# Ours by lm-eval's names. What a task leaves out has no effect, as with lm-eval's other models.
NEUTRAL = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
OTHER_KEYS = {"until", "max_gen_toks", "do_sample", "seed"}


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """Continuations by their contexts: for each request, the indices of the pairs that its scores belong to.

    So many pairs were `truncated` on the left.
    """

    requests: tuple[ScoreRequest, ...]
    indices: tuple[tuple[int, ...], ...]
    truncated: int


def plan_scores(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], size: int) -> ScorePlan:
    """Plan the scores of contexts and continuations in a context of this size. Raises PromptTooLong."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    truncated = 0
    for index, (context, continuation) in enumerate(pairs):
        if len(continuation) > size:
            raise PromptTooLong(
                f"a text to score has {len(continuation)} tokens, but the context has {size}", "raise --ctx"
            )
        excess = max(0, len(context) + len(continuation) - size - 1)  # the last token is not evaluated
        groups[tuple(context[excess:])].append(index)
        truncated += excess > 0
    requests = (
        ScoreRequest(context, tuple(tuple(pairs[index][1]) for index in group)) for context, group in groups.items()
    )
    return ScorePlan(tuple(requests), tuple(map(tuple, groups.values())), truncated)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Adjacent equal requests of lm-eval, from `position` on, as one request to the engine.

    `key` is theirs in lm-eval's cache.
    """

    key: Any
    position: int
    count: int
    request: Request

    @property
    def is_sampled(self) -> bool:
        """Whether the texts differ; otherwise one is generated for all."""
        return self.request.params.temperature > 0

    def positions(self, sample: int) -> range:
        """The requests that a sample answers."""
        first = self.position + sample
        return range(first, first + (1 if self.is_sampled else self.count))


def plan_prompt(key: Any, position: int, count: int, tokens: Tokens, params: SamplingParams, size: int) -> Prompt:
    """Plan `count` continuations of a text; tokens on the left give way to the reply in a context of this size."""
    room = size - (params.max_tokens or 0)
    if room < 1:
        raise UsageError(
            f"max_gen_toks is {params.max_tokens}, but the context has {size} tokens",
            "raise --ctx, or set --gen-kwargs max_gen_toks=N",
        )
    samples = count if params.temperature > 0 else 1
    return Prompt(key, position, count, Request(tokens[-room:], params, n=samples))


def sampling_params(settings: Mapping[str, Any], stop: Sequence[str], seed: int) -> SamplingParams:
    """Sampling parameters of settings that lm-eval has normalized. Raises UsageError."""
    values = {name: settings.get(name, neutral) for name, neutral in NEUTRAL.items()}
    if not settings["do_sample"]:
        values["temperature"] = 0.0
    try:
        return SamplingParams(
            max_tokens=int(settings["max_gen_toks"]),
            temperature=float(values["temperature"]),
            top_k=max(0, int(values["top_k"])),
            top_p=float(values["top_p"]),
            min_p=float(values["min_p"]),
            repeat_penalty=float(values["repetition_penalty"]),
            seed=(int(settings.get("seed", 0)) + seed) % SEEDS,
            stop=tuple(dict.fromkeys(filter(None, (*settings["until"], *stop)))),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"generation settings: {error}", "check generation_kwargs of the task and --gen-kwargs"
        ) from error


def ignored_keys(settings: Mapping[str, Any]) -> set[str]:
    """Names of settings that have no effect."""
    return settings.keys() - NEUTRAL.keys() - OTHER_KEYS


def continue_prompts(
    engine: Engine, prompts: Sequence[Prompt], on_event: Callable[[Event], None]
) -> Iterator[tuple[Prompt, int, str]]:
    """Yield the text of each sample as it is finished: its prompt, its index and the text.

    Short texts come first, and common prefixes are evaluated once.
    """
    for group in engine.group_by_length([prompt.request for prompt in prompts]):
        ordered = sorted((prompts[index] for index in group), key=lambda prompt: tuple(prompt.request.prompt_tokens))
        texts: dict[SequenceId, list[str]] = defaultdict(list)
        with closing(engine.complete(prompt.request for prompt in ordered)) as completions:
            for event in completions:
                if isinstance(event, TokenEvent):
                    texts[event.sequence].append(event.text)
                elif isinstance(event, FinishEvent):
                    index, sample = event.sequence
                    yield ordered[index], sample, "".join(texts.pop(event.sequence, ()))
                elif isinstance(event, RefusedEvent):
                    raise event.error
                else:
                    on_event(event)
