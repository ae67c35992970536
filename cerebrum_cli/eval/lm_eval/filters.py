"""What lm-evaluation-harness makes of stored replies: its filters, and where they disagree with a run's scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.api.registry import get_filter

from cerebrum_cli.eval.questions import Sample

# Definitions of tasks with filters for numbers and for letters.
NUMBERS = "gsm8k/gsm8k.yaml"
LETTERS = "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml"
NOTHING = "[invalid]"  # what they extract from a reply without an answer
COMPARED = ("ignore_case", "ignore_punctuation", "regexes_to_ignore")  # options of its metric


def disagreements(samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """Yield an object for each sample that a filter which extracts an answer scores differently.

    All samples have choices, or none does. A filter that finds nothing counts only if none finds an answer: GSM8K's
    strict one reads only what follows "####".
    """
    has_choices = bool(samples[0].choices)
    definition = Path(lm_eval.tasks.__file__).parent / (LETTERS if has_choices else NUMBERS)
    task = yaml.safe_load(definition.read_text(encoding="utf-8"))
    options = {key: task["metric_list"][0][key] for key in COMPARED if key in task["metric_list"][0]}
    found = {each["name"]: filtered(each["filter"], samples) for each in task["filter_list"]}
    for index, sample in enumerate(samples):
        answers = {name: texts[index] for name, texts in found.items()}
        gold = [f"({sample.gold})" if has_choices else sample.gold]
        extracted = [answer for answer in answers.values() if answer != NOTHING] or [NOTHING]
        scores = [exact_match_hf_evaluate([answer], gold, **options)["exact_match"] == 1 for answer in extracted]
        if any(score != sample.correct for score in scores):
            score = {"gold": sample.gold, "answer": sample.answer, "correct": sample.correct, "basis": sample.basis}
            yield {"id": sample.id, "sample": sample.sample, **score, **answers, "text": sample.text}


def filtered(steps: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> list[str]:
    """The answers that a filter extracts, step by step."""
    texts: Any = [[sample.text] for sample in samples]
    documents = [{"choices": list(sample.choices)} for sample in samples]
    for step in steps:
        arguments = {key: value for key, value in step.items() if key != "function"}
        texts = list(get_filter(step["function"])(**arguments).apply(texts, documents))
    answers: list[str] = texts
    return answers
