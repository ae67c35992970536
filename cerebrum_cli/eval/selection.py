"""Which questions a run asks, in which order, and with which seeds; the same for every model and on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.eval.question import Question

MAX_SAMPLES = 256  # of a question
_STRIDE = 1024  # from the first seed of a question to that of the next; another one would change the seeds of all runs
_BLOCKS = SEEDS // _STRIDE  # more than four million


def select(questions: Iterable[Question], limit: int | None = None, seed: int = 0) -> tuple[Question, ...]:
    """Put questions in a random order and take the first of them: a smaller limit gives a prefix of a larger one.

    A question's place depends on its id and the seed alone, not on the other questions.
    """
    return tuple(sorted(questions, key=lambda question: _rank(question, seed))[:limit])


def sample_seed(base: int, index: int, sample: int) -> int:
    """Seed of a sample of the question with this index; consecutive in `sample`, of which there are MAX_SAMPLES.

    No two samples of four million questions have one seed.
    """
    if not 0 <= sample < MAX_SAMPLES:
        raise ValueError(f"sample {sample} is not from 0 to {MAX_SAMPLES - 1}")
    offset = int.from_bytes(hashlib.sha256(f"seeds {base}".encode()).digest()[:8], "big")
    return (offset + index) % _BLOCKS * _STRIDE + sample


def _rank(question: Question, seed: int) -> tuple[bytes, int]:
    key = f"{seed} {type(question.id).__name__} {question.id}"
    return hashlib.sha256(key.encode()).digest(), question.index
