"""Presets: the conditions under which model cards report results, and what they leave open, as tables of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from math import sqrt

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import Texts

PICTURES_ONLY = "the card publishes its figures only as an image, so none is printed next to yours"
_EXTRACTION = "how answers are extracted from replies"
_TEMPERATURE = "the temperature: 0 is used, as on the card of Cerebrum-1.0-7b"
_ZERO_SHOT = "zero-shot, temperature 0"
# lm-eval tokenized texts for causal models without special tokens: bigscience-workshop/lm-evaluation-harness#126 of
# 2022, `HFLM.tok_encode` in EleutherAI/lm-evaluation-harness at 0068151. `add_bos_token` came in 2024 (#1465), and
# since October 2025 the tokenizer decides (#3347).
_LM_EVAL_UNSTATED = (
    "the number of few-shot examples (presumably 0)",
    "the chat template (presumably none)",
    "whether BOS precedes a text (lm-eval of 2023 left it out, and so does this preset)",
)


@frozen
class Condition:
    """How a card evaluates a task, by its name here or in lm-eval; `unstated` says what it leaves open.

    The preset sets `temperature` and `samples`; a temperature of None is not stated, and left to the default. `figures`
    are published results between 0 and 1 by their metric, `stated_error` is the standard error of the only one.
    """

    task: str
    published: str = ""
    temperature: float | None = None
    samples: int = 1
    unstated: Texts = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    stated_error: float | None = None
    note: str = ""

    def error(self, metric: str, n: int) -> float:
        """Standard error among n documents; where the card states none, that of a proportion, as lm-eval has it."""
        value = self.figures[metric]
        return self.stated_error or sqrt(value * (1 - value) / max(1, n - 1))


@frozen
class Preset:
    """The conditions of one model card; `model` is the model's name in the catalog, `source` the card.

    `averages` are published means of the last figures of some tasks. `assumed` are options of `cerebrum lm-eval` that
    the card presumably had; only `add_bos_token` is set.
    """

    name: str
    model: str
    source: str
    conditions: tuple[Condition, ...]
    averages: Mapping[str, tuple[tuple[Condition, ...], float]] = field(default_factory=dict)
    assumed: JsonObject = field(default_factory=dict)


def find_preset(name: str) -> Preset:
    for preset in PRESETS:
        if preset.name == name:
            return preset
    raise UsageError(f"unknown preset {name!r}", f"use one of {', '.join(preset.name for preset in PRESETS)}")


def find_condition(preset: Preset, task: str) -> Condition:
    for condition in preset.conditions:
        if condition.task == task:
            return condition
    known = ", ".join(condition.task for condition in preset.conditions)
    raise UsageError(f"{preset.source} has no results for {task!r}", f"preset {preset.name} has {known}")


def _cerebrum(
    task: str, published: str, *unstated: str, temperature: float | None = 0.0, samples: int = 1
) -> Condition:
    return Condition(task, published, temperature, samples, (*unstated, _EXTRACTION), note=PICTURES_ONLY)


def _lm_eval(task: str, error: float | None = None, note: str = "", **figures: float) -> Condition:
    return Condition(
        task,
        "by the likelihood of the choices",
        unstated=_LM_EVAL_UNSTATED,
        figures=figures,
        stated_error=error,
        note=note,
    )


_GPT4ALL = (
    _lm_eval("arc_challenge", acc=0.5401, acc_norm=0.5572),
    _lm_eval("arc_easy", acc=0.8102, acc_norm=0.7992),
    _lm_eval("boolq", acc=0.8538),
    _lm_eval("hellaswag", acc=0.6459, acc_norm=0.8297),
    _lm_eval("openbookqa", acc=0.3380, acc_norm=0.4360),
    _lm_eval("piqa", acc=0.8085, acc_norm=0.8232),
    _lm_eval("winogrande", acc=0.7451),
)
_AGIEVAL = (
    _lm_eval("agieval_aqua_rat", acc=0.1890, acc_norm=0.2047),
    _lm_eval("agieval_logiqa_en", acc=0.2611, acc_norm=0.3134),
    _lm_eval("agieval_lsat_ar", acc=0.2087, acc_norm=0.2217),
    _lm_eval("agieval_lsat_lr", acc=0.3373, acc_norm=0.3196),
    _lm_eval("agieval_lsat_rc", acc=0.4201, acc_norm=0.3978),
    _lm_eval("agieval_sat_en", acc=0.5971, acc_norm=0.5631),
    _lm_eval("agieval_sat_en_without_passage", acc=0.4029, acc_norm=0.3398),
    _lm_eval("agieval_sat_math", acc=0.3045, acc_norm=0.2864),
)
_TRUTHFULQA_VERSION = "the card has version 1 of TruthfulQA's tasks"
_TRUTHFULQA = (
    _lm_eval("truthfulqa_mc1", acc=0.3794, error=0.0170, note=_TRUTHFULQA_VERSION),
    _lm_eval("truthfulqa_mc2", acc=0.5394, error=0.0158, note=_TRUTHFULQA_VERSION),
)

PRESETS = (
    Preset(
        name="cerebrum-7b",
        model="cerebrum-7b",
        source="the card of Cerebrum-1.0-7b",
        conditions=(
            _cerebrum("gsm8k", _ZERO_SHOT),
            _cerebrum("math", _ZERO_SHOT),
            _cerebrum("math500", f"MATH, {_ZERO_SHOT}"),
            _cerebrum("arc-challenge", _ZERO_SHOT),
        ),
    ),
    Preset(
        name="cerebrum-8x7b",
        model="cerebrum-8x7b",
        source="the card of Cerebrum-1.0-8x7b",
        conditions=(
            _cerebrum("gsm8k", "maj@8", "the temperature of maj@8", temperature=None, samples=8),
            _cerebrum("math", "zero-shot", _TEMPERATURE),
            _cerebrum("math500", "MATH, zero-shot", _TEMPERATURE),
            _cerebrum("arc-challenge", "zero-shot", _TEMPERATURE),
            _cerebrum("humaneval", "zero-shot", _TEMPERATURE),
        ),
    ),
    Preset(
        name="collective-cognition",
        model="collective-cognition-7b",
        source="the card of CollectiveCognition-v1-Mistral-7B",
        conditions=(*_TRUTHFULQA, *_GPT4ALL, *_AGIEVAL),
        averages={"GPT4All": (_GPT4ALL, 0.7206), "AGIEval": (_AGIEVAL, 0.3308)},
        assumed={"add_bos_token": False, "num_fewshot": 0, "apply_chat_template": False},
    ),
    Preset(
        name="mistral-c2f",
        model="mistral-c2f-7b",
        source="the card of Mistral-C2F",
        conditions=(
            Condition(
                "mmlu",
                unstated=("the number of few-shot examples", "the chat template", "the method of scoring"),
                note="the card names only one of its 11 general tasks in its text; its figures are only images",
            ),
        ),
    ),
)
