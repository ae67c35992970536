"""The questions of a task, in the order in which they are asked, and scored questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING

from cerebrum_cli.batch.input_row import InputRow, row_flags
from cerebrum_cli.core.events import TRUNCATED
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.row_fields import RowId
from cerebrum_cli.replies.tally import Program
from cerebrum_cli.results.rows import Digest, RowFlag

if TYPE_CHECKING:
    from cerebrum_cli.results.rows import Results

MAX_SAMPLES = 256  # of a question
# Further keys of an output object, which say what is known of the right answer. The reference of code is its test; the
# stub is the beginning of the program, which the prompt shows, and the entry point the function that it begins.
CHOICES, STUB, ENTRY_POINT = "choices", "stub", "entry_point"


@frozen
class Question:
    """A row, and the digest of what it asks: that of its line, which is the same for any template and model."""

    digest: Digest
    row: InputRow


@frozen
class Questions:
    """Questions in the order in which they are asked."""

    questions: tuple[Question, ...]

    @property
    def known_rows(self) -> Iterator[tuple[Digest, int]]:
        """The digest of each, with its line."""
        return ((question.digest, question.row.number) for question in self.questions)

    def missing_rows(self, results: Results) -> Iterator[tuple[int, InputRow]]:
        """Yield the rows that results lack, by position."""
        for position in results.missing:
            yield position, self.questions[position].row


def question_flags(object: JsonObject) -> int:
    """The flags of a row. A question with any reply counts as answered: the score judges it."""
    error = object["error"] if object["finish_reason"] is None else None
    return row_flags({**object, "error": error}) & ~RowFlag.UNDECIDED


def select(questions: Iterable[Question], limit: int | None = None) -> Questions:
    """Put questions in a random order and take the first of them: a smaller limit gives a prefix of a larger one.

    A question's place depends on its id alone, not on the other questions.
    """

    def rank(question: Question) -> tuple[bytes, int]:
        id = question.row.id
        return sha256(f"0 {type(id).__name__} {id}".encode()).digest(), question.row.number

    return Questions(tuple(sorted(questions, key=rank)[:limit]))


@frozen
class ScoredSample:
    """A scored sample; a program may have been written after it."""

    answer: str | None
    is_correct: bool
    is_stated: bool
    finish_reason: str
    program: Program | None

    @property
    def has_no_answer(self) -> bool:
        return self.answer is None and not self.is_correct

    @property
    def is_truncated(self) -> bool:
        """Whether it reached a limit before it stated an answer."""
        return self.has_no_answer and self.finish_reason in TRUNCATED


@frozen
class ScoredQuestion:
    """A question with its scored samples, at least one, and the tokens of all: of replies, and of programs.

    `digest` identifies what is asked.
    """

    id: RowId
    digest: str
    reference: str
    samples: tuple[ScoredSample, ...]
    tokens: int
    program_tokens: int

    @property
    def accuracy(self) -> float:
        """The share of the samples that are correct."""
        return sum(sample.is_correct for sample in self.samples) / len(self.samples)
