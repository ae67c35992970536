"""The finished rows of a run, read from the objects of its file, and the verdicts on their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cerebrum_cli.core.decision import PROBABILITY_OF
from cerebrum_cli.core.events import TRUNCATED
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json, known_values
from cerebrum_cli.core.row_fields import RowError, RowId
from cerebrum_cli.core.text import Texts
from cerebrum_cli.replies.tally import Program
from cerebrum_cli.rows.keys import Digest
from cerebrum_cli.rows.row import REFERENCE

# Keys of a row's object, which say what is known of the right answer. The reference of code is its test; the stub is
# the beginning of the program, which the prompt shows, and the entry point the function that it begins.
CHOICES, STUB, ENTRY_POINT = "choices", "stub", "entry_point"


@frozen
class Sample:
    """A reply, and the program that was written after it, if one was."""

    text: str
    finish_reason: str
    program: str | None = None
    program_output: str | None = None
    program_unsupported: bool = False
    program_tokens: int = 0


@frozen
class Verdict:
    """An answer and whether it is right; of a reply, its `sample`, and whether it states the answer as such."""

    answer: str | None
    is_correct: bool
    is_stated: bool = False
    sample: Sample | None = None

    @property
    def finish_reason(self) -> str:
        return self.sample.finish_reason if self.sample else "stop"

    @property
    def program(self) -> Program | None:
        if self.sample is None or self.sample.program is None:
            return None
        return Program(self.sample.program, self.sample.program_output, self.sample.program_unsupported)

    @property
    def has_no_answer(self) -> bool:
        return self.answer is None and not self.is_correct

    @property
    def is_truncated(self) -> bool:
        """Whether it reached a limit before it stated an answer."""
        return self.has_no_answer and self.finish_reason in TRUNCATED


@frozen
class Answered:
    """A finished row, and the right answers to it; one that could not be asked has an `error`.

    `source` identifies its question. It has the `samples` of its replies; or a decision's `probabilities` of the
    choices, and its `answer`, None if it is left undecided. `verdicts` are those of the samples, or of the likeliest
    choice, once it is scored.
    """

    id: RowId
    source: Digest
    references: Texts = ()
    prompt: str = ""
    choices: Texts = ()
    stub: str = ""
    entry_point: str = ""
    samples: tuple[Sample, ...] = ()
    completion_tokens: int = 0
    probabilities: Mapping[str, float] | None = None
    answer: str | None = None
    first_word: str = ""
    error: RowError | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def reference(self) -> str:
        """The right answers in words."""
        return " or ".join(self.references)

    @property
    def has_reply(self) -> bool:
        return bool(self.samples or self.probabilities)

    @property
    def likeliest(self) -> str:
        """The most probable choice of a decision."""
        assert self.probabilities
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """That of the likeliest choice."""
        assert self.probabilities
        return max(self.probabilities.values())

    @property
    def accuracy(self) -> float:
        """The share of the verdicts that are right."""
        return sum(verdict.is_correct for verdict in self.verdicts) / len(self.verdicts)

    @property
    def program_tokens(self) -> int:
        return sum(sample.program_tokens for sample in self.samples)

    @property
    def tokens(self) -> int:
        """Tokens of the replies, without those of programs."""
        return self.completion_tokens - self.program_tokens


def read_answered(object: JsonObject, source: Digest) -> Answered:
    """The finished row of an object. Raises one of DAMAGE for an object of something else."""
    values = {key: value for key, value in known_values(Answered, object).items() if value is not None}
    reference = object.get(REFERENCE) or ()
    values["references"] = [reference] if isinstance(reference, str) else reference
    if "answer" in object:
        values["probabilities"] = None if object["error"] else probabilities_of(object)
    elif object["finish_reason"] is not None:
        values["samples"] = [known_values(Sample, sample) for sample in samples_of(object)]
    row = replace(from_json(Answered, {**values, "source": 0}), source=source)
    if row.has_reply and not row.references:
        raise ValueError("an answered row without its right answer")
    if row.probabilities and row.reference not in row.probabilities:
        raise ValueError("the right answer is none of the choices")
    return row


def samples_of(object: JsonObject) -> Sequence[JsonObject]:
    """The objects of the samples."""
    samples: Sequence[JsonObject] = object["votes"]["samples"] if object["votes"] else [object]
    return samples


def probabilities_of(object: JsonObject) -> JsonDict:
    """The probabilities of a decision, which are text in a table."""
    names = [key for key in object if key.startswith(PROBABILITY_OF) and object[key] is not None]
    return {key.removeprefix(PROBABILITY_OF): float(object[key]) for key in names}
