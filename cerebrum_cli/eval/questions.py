"""Questions, the samples that are taken of them, and which questions a run asks, with which seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, field, fields
from typing import Literal, get_args

from cerebrum_cli.core.events import TRUNCATED
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.text import Texts

QuestionId = str | int
Match = Literal["answer", "exact", "contains", "regex", "math", "code"]  # methods of scoring a reply
Basis = Literal["stated", "guessed", "missing"]  # of the answer that is scored; guessed from how a reply ends
MATCHES: tuple[Match, ...] = get_args(Match)[:-1]  # to choose from; "code" is for tasks

MAX_SAMPLES = 256  # of a question
_STRIDE = 1024  # from the first seed of a question to that of the next; another one would change the seeds of all runs
_BLOCKS = SEEDS // _STRIDE  # more than four million
QUESTIONS, SAMPLES = "questions", "samples"  # keys of a run's extent
SKIPPED = "skipped"  # reason of a sample that could not be generated, such as one whose prompt is too long


@frozen
class Question:
    """A question; `index` is its place in the source, from 0, and `id` the source's own id or `index` + 1.

    `prompt` is what the model is asked, and `solution` the correct answer as the source has it, perhaps with its steps.
    `reference` is the correct answer; with `choices`, its letter. For code it is
    the test that the program must pass, `stub` the beginning of that program, which the prompt shows, and `entry_point`
    the function that it begins. Questions of one `cluster`, such as those about one text, are not independent.
    """

    index: int
    id: QuestionId
    prompt: str
    reference: str
    choices: Texts = ()
    cluster: str | None = None
    stub: str = ""
    entry_point: str = ""
    solution: str = ""


Questions = tuple[Question, ...]


def select(questions: Iterable[Question], limit: int | None = None, seed: int = 0) -> Questions:
    """Put questions in a random order and take the first of them: a smaller limit gives a prefix of a larger one.

    A question's place depends on its id and the seed alone, not on the other questions.
    """

    def rank(question: Question) -> tuple[bytes, int]:
        name = f"{seed} {type(question.id).__name__} {question.id}"
        return hashlib.sha256(name.encode()).digest(), question.index

    return tuple(sorted(questions, key=rank)[:limit])


def sample_seed(base: int, index: int, sample: int) -> int:
    """Seed of a sample of the question with this index; consecutive in `sample`, which is below MAX_SAMPLES.

    No two samples of four million questions have one seed.
    """
    offset = int.from_bytes(hashlib.sha256(f"seeds {base}".encode()).digest()[:8], "big")
    return (offset + index) % _BLOCKS * _STRIDE + sample


@frozen
class Sample:
    """A scored reply; `answer` is what was extracted, None if the reply states none.

    `sample` counts the samples of a question from 0. `probability` is the geometric mean of its tokens' probabilities,
    `lowest_window` that of the least likely 16 consecutive ones. `basis` says how the answer was found, where one is
    extracted. `program` was written after the reply, in `program_tokens`, and failed if its output is None, or is
    `program_unsupported`: it needs a part of Python that Monty lacks. `calls` are those of functions, with their
    results. `probabilities` are those of all answers that were given to choose from.
    """

    id: QuestionId
    sample: int
    model: str
    seed: int
    text: str
    reasoning: str | None
    answer: str | None
    reference: str
    correct: bool
    probability: float
    finish_reason: str
    completion_tokens: int
    basis: Basis | None = None
    choices: Texts = ()
    cluster: str | None = None
    reasoning_closed_at: int | None = None
    lowest_window: float = 0.0
    program: str | None = None
    program_output: str | None = None
    program_unsupported: bool = False
    program_tokens: int = 0
    calls: Sequence[JsonObject] = ()
    probabilities: Mapping[str, float] = field(default_factory=dict)
    server: str | None = None
    served_model: str | None = None

    @property
    def is_skipped(self) -> bool:
        """Whether it was never taken, and so does not count; `text` is the reason."""
        return self.finish_reason == SKIPPED

    @property
    def is_correct_without_guess(self) -> bool:
        return self.correct and self.basis != "guessed"

    @property
    def has_no_answer(self) -> bool:
        return self.answer is None and not self.correct and not self.is_skipped

    @property
    def is_cut_off(self) -> bool:
        """Whether it reached a limit before it stated an answer."""
        return self.has_no_answer and self.finish_reason in TRUNCATED

    @property
    def is_unanswered(self) -> bool:
        """Whether it ended without an answer."""
        return self.has_no_answer and self.finish_reason not in TRUNCATED

    @property
    def cluster_key(self) -> object:
        """The cluster of its question, which is its own if it has none."""
        return self.cluster or (self.id,)


SAMPLE_KEYS = tuple(
    each.name for each in fields(Sample) if each.default is MISSING and each.default_factory is MISSING
)  # the others may be omitted


def sample_object(sample: Sample) -> JsonDict:
    return {key: value for key, value in asdict(sample).items() if value or key in SAMPLE_KEYS}


def parse_sample(object: JsonObject) -> Sample:
    """Read a sample from JSON. Raises TypeError for another object."""
    values = {each.name: object[each.name] for each in fields(Sample) if each.name in object}
    values["choices"] = tuple(object.get("choices", ()))
    return from_json(Sample, values)
