"""One sample of an evaluation: a reply to a question, marked. A line of a run file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cerebrum_cli.core.events import TRUNCATED
from cerebrum_cli.eval.question import QuestionId

SAMPLE_KEYS = (
    "id",
    "sample",
    "model",
    "seed",
    "text",
    "reasoning",
    "answer",
    "gold",
    "correct",
    "probability",
    "finish_reason",
    "completion_tokens",
)
OPTIONAL_KEYS = ("choices", "cluster", "concluded_at", "thought_closed_at")  # of questions and replies that have them
SKIPPED = "skipped"  # reason of a sample that could not be generated, such as one whose prompt is too long


@dataclass(frozen=True, slots=True)
class Sample:
    """A marked reply; `answer` is what was extracted, None if the reply states none.

    `sample` counts the samples of a question from 0. `probability` is the geometric mean of its tokens' probabilities.
    """

    id: QuestionId
    sample: int
    model: str
    seed: int
    text: str
    reasoning: str | None
    answer: str | None
    gold: str
    correct: bool
    probability: float
    finish_reason: str
    completion_tokens: int
    choices: tuple[str, ...] = ()
    cluster: str | None = None
    concluded_at: int | None = None
    thought_closed_at: int | None = None

    @property
    def is_cut_off(self) -> bool:
        return self.finish_reason in TRUNCATED

    @property
    def is_repetition(self) -> bool:
        return self.finish_reason == "repetition"

    @property
    def is_skipped(self) -> bool:
        """Whether it was never taken, and so does not count; `text` is the reason."""
        return self.finish_reason == SKIPPED


def sample_object(sample: Sample) -> dict[str, Any]:
    """A sample as JSON: SAMPLE_KEYS in order, then those of OPTIONAL_KEYS that its question has."""
    values = asdict(sample)
    return {key: values[key] for key in (*SAMPLE_KEYS, *(key for key in OPTIONAL_KEYS if values[key]))}


def parse_sample(object: Mapping[str, Any]) -> Sample:
    """Read a sample from JSON. Raises KeyError or TypeError for another object."""
    optional = {key: object[key] for key in OPTIONAL_KEYS if key in object}
    if "choices" in optional:
        optional["choices"] = tuple(optional["choices"])
    return Sample(**{key: object[key] for key in SAMPLE_KEYS}, **optional)
