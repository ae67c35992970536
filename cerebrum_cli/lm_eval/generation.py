"""lm-eval's requests of texts: what their settings mean here, and which part of a reply is the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.formats.prompt_format import Markups
from cerebrum_cli.replies.reply import Reply

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_GEN_TOKENS = 256  # lm-eval's default
# Settings by lm-eval's names. What a task leaves out has no effect, as with lm-eval's other models.
NEUTRAL = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
OTHER_KEYS = {"until", "max_gen_toks", "do_sample", "seed"}


class Prompt(NamedTuple):
    """A text to continue for adjacent equal requests; `key` is that of the result in lm-eval's cache.

    `answered` are the positions of the requests that each sample answers: of a sampled text one each, of a greedy one
    all. The keys in `ignored` have no effect.
    """

    text: str
    key: Any
    answered: list[list[int]]
    settings: Settings
    max_tokens: int
    ignored: set[str]


def group_requests(requests: Sequence[Instance], seed: int, base: Settings) -> Iterator[Prompt]:
    """Group adjacent equal requests; their settings come on top of `base`."""
    for key, group in groupby(enumerate(requests), key=lambda pair: pair[1].args):
        positions = [position for position, _ in group]
        text, arguments = key
        kwargs = normalize_gen_kwargs(arguments, MAX_GEN_TOKENS)
        if kwargs["do_sample"]:
            for position in positions:  # otherwise, lm-eval's cache returns one text for all
                requests[position].args[1]["do_sample"] = True
        settings = generation_settings(kwargs, seed + positions[0], base)
        answered = [positions]
        if settings.temperature > 0:
            answered = [[position] for position in positions]
        ignored = kwargs.keys() - NEUTRAL.keys() - OTHER_KEYS
        yield Prompt(text, key, answered, settings, kwargs["max_gen_toks"], ignored)


def generation_settings(kwargs: JsonObject, seed: int, base: Settings) -> Settings:
    """The settings of one request; the stop strings of `base` end its reply, too. Raises UsageError."""
    values = {**NEUTRAL, **kwargs}
    if not kwargs["do_sample"]:
        values["temperature"] = 0.0
    try:
        return replace(
            base,
            max_tokens=kwargs["max_gen_toks"],
            temperature=float(values["temperature"]),
            top_k=max(0, int(values["top_k"])),
            top_p=float(values["top_p"]),
            min_p=float(values["min_p"]),
            repeat_penalty=float(values["repetition_penalty"]),
            seed=(int(kwargs.get("seed", 0)) + seed) % SEEDS,
            stop=tuple(dict.fromkeys(filter(None, (*kwargs["until"], *base.stop)))),
        )
    except (TypeError, ValueError) as error:
        hint = "check generation_kwargs of the task and --gen_kwargs"
        raise UsageError(f"generation settings: {error}", hint) from error


def answer_of(reply: Reply, markups: Markups) -> str | None:
    """The answer in a reply; None if it ended while the model was thinking.

    As with `think_end_token` of lm-eval's `hf` model, it has no white space before it, and begins behind the last tag
    that ends reasoning, even if no tag began it.
    """
    if not markups:
        return reply.text
    if reply.finish.in_reasoning:
        return None
    answer = reply.text.lstrip()
    for markup in markups:
        if markup.own_lines:  # what else ends reasoning may also end turns
            answer = answer.split(markup.close)[-1].lstrip()
    return answer
