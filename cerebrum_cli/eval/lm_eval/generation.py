"""What lm-eval's settings of generation mean here, and which part of a reply is the answer for it."""

from __future__ import annotations

from dataclasses import replace

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.formats.prompt_format import Markups
from cerebrum_cli.replies.reply import Reply

MAX_GEN_TOKENS = 256  # lm-eval's default
# Settings by lm-eval's names. What a task leaves out has no effect, as with lm-eval's other models.
NEUTRAL = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
OTHER_KEYS = {"until", "max_gen_toks", "do_sample", "seed"}


def ignored_keys(kwargs: JsonObject) -> set[str]:
    return kwargs.keys() - NEUTRAL.keys() - OTHER_KEYS


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
        hint = "check generation_kwargs of the task and --gen-kwargs"
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
