"""Requests that are scored together, and the sums of their results so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cerebrum_cli.engine.backend import TokenScore
from cerebrum_cli.engine.scoring.request import Score, ScoreEvent, ScoreRequest, ScoringEvent
from cerebrum_cli.engine.scoring.trie import Path, build_paths
from cerebrum_cli.engine.sequence import Failure


@dataclass(frozen=True, slots=True, eq=False)
class ScoreJob:
    """Requests by their index, the trie of their tokens, and where their events go: the last is None or a Failure."""

    requests: Mapping[int, ScoreRequest]
    emit: Callable[[ScoringEvent | Failure | None], None]
    paths: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", build_paths(tuple(self.requests.values())))


class Results:
    """Sums over the tokens of each continuation; readers number the continuations, as `build_paths` does."""

    def __init__(self, job: ScoreJob) -> None:
        self._job = job
        self._sums: list[float] = []
        self._is_greedy: list[bool] = []
        self._requests: list[int] = []  # by reader
        self._first_readers: dict[int, int] = {}
        self._pending: dict[int, int] = {}  # tokens, by request
        for index, request in job.requests.items():
            count = len(request.continuations)
            self._first_readers[index] = len(self._sums)
            self._sums += [0.0] * count
            self._is_greedy += [True] * count
            self._requests += [index] * count
            self._pending[index] = sum(map(len, request.continuations))
            if not self._pending[index]:
                self._finish(index)

    def add(self, reader: int, token: TokenScore) -> None:
        """Add a token of a continuation; emit the scores of its request if it was the last."""
        index = self._requests[reader]
        self._sums[reader] += token.logprob
        self._is_greedy[reader] &= token.is_argmax
        self._pending[index] -= 1
        if not self._pending[index]:
            self._finish(index)

    def _finish(self, index: int) -> None:
        scores = tuple(
            Score(self._sums[reader], self._is_greedy[reader], len(continuation))
            for reader, continuation in enumerate(self._job.requests[index].continuations, self._first_readers[index])
        )
        self._job.emit(ScoreEvent(index, scores))
