"""Scores of given texts: requests, results, and jobs, which are executed a step at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cerebrum_cli.core.errors import CerebrumError, EngineError, PromptTooLong, UsageError
from cerebrum_cli.core.events import NoticeEvent, RefusedEvent, StageEvent
from cerebrum_cli.engine.backend import Backend, TokenRow, TokenScore
from cerebrum_cli.engine.scoring_plan import Limits, RowRange, ScorePlanner, ScoreStep, build_paths
from cerebrum_cli.engine.sequence import Failure, Tokens


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Continuations of one context to score; an empty one has the score 0, whatever its context."""

    context: Tokens
    continuations: tuple[Tokens, ...]


class Score(NamedTuple):
    """Log-probability of a continuation after its context, summed over `tokens`.

    It `is_greedy` if each of the tokens is the most likely one at its place.
    """

    logprob_sum: float
    is_greedy: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class LogprobScores:
    """The index of a finished request, and a score for each of its continuations, in order."""

    request: int
    scores: tuple[Score, ...]


ScoringEvent = LogprobScores | RefusedEvent | StageEvent | NoticeEvent
"""Events of scoring; a StageEvent counts evaluated rows."""


def refusal(request: ScoreRequest, context_size: int) -> CerebrumError | None:
    """Why a request cannot be scored, if it cannot. The last token of a continuation is not evaluated."""
    longest = max(map(len, request.continuations), default=0)
    length = len(request.context) + longest
    if longest and not request.context:
        return UsageError("the context of a text to score is empty", "start it with the model's BOS token")
    if longest and length - 1 > context_size:
        return PromptTooLong(
            f"the text to score has {length} tokens, but the context has {context_size}", "shorten it, or raise --ctx"
        )
    return None


class ScoreJob:
    """Requests by their index, the trie of their tokens, and where their events go: the last is None or a Failure."""

    def __init__(
        self, requests: Mapping[int, ScoreRequest], emit: Callable[[ScoringEvent | Failure | None], None]
    ) -> None:
        self.requests = requests
        self.emit = emit
        self.paths = build_paths(
            [(request.context, text) for request in requests.values() for text in request.continuations]
        )
        self._run: ScoreRun | None = None

    def step(self, backend: Backend) -> bool:
        """Execute the next step; False, and the job ends, if none is left.

        All slots are overwritten, and empty after the job.
        """
        if self._run is None:
            self._run = ScoreRun(backend, self)
        if self._run.step():
            return True
        self.end()
        return False

    def end(self) -> None:
        """End the job, finished or not."""
        if self._run:
            self._run.close()
        self.emit(None)


class Results:
    """Sums over the tokens of each continuation; readers number the continuations, as in the paths of the job."""

    def __init__(self, job: ScoreJob) -> None:
        self._emit = job.emit
        self._scores: list[Score] = []
        self._requests: list[int] = []  # by reader
        self._readers: dict[int, range] = {}  # by request, as the next one
        self._pending: dict[int, int] = {}  # tokens
        for index, request in job.requests.items():
            first = len(self._scores)
            self._scores += [Score(0.0, True, len(text)) for text in request.continuations]
            self._readers[index] = range(first, len(self._scores))
            self._requests += [index] * len(request.continuations)
            self._count_down(index, -sum(map(len, request.continuations)))

    def add(self, reader: int, token: TokenScore) -> None:
        """Add a token of a continuation; emit the scores of its request if it was the last."""
        total, is_greedy, tokens = self._scores[reader]
        self._scores[reader] = Score(total + token.logprob, is_greedy and token.is_argmax, tokens)
        self._count_down(self._requests[reader], 1)

    def _count_down(self, index: int, tokens: int) -> None:
        self._pending[index] = self._pending.get(index, 0) - tokens
        if not self._pending[index]:
            self._emit(LogprobScores(index, tuple(self._scores[reader] for reader in self._readers[index])))


class ScoreRun:
    """A job that has started: memory is reserved and empty, which makes scores independent of what was in it."""

    def __init__(self, backend: Backend, job: ScoreJob) -> None:
        self._backend = backend
        self._job = job
        self._results = Results(job)
        self._nodes = sum(len(path.tokens) - path.shared for path in job.paths)  # of the trie below its root
        self._evaluated = 0
        self._step: ScoreStep | None = None  # that was interrupted
        if job.paths:
            self._reserve(max(len(path.tokens) for path in job.paths))
            backend.context.clear_all()
        slots = backend.slots if backend.kv_unified else 1  # copies between separate caches cost time and memory
        limits = Limits(backend.batch_size, backend.max_outputs, slots, backend.capacity, backend.trimmable_length)
        self._steps = iter(ScorePlanner(job.paths, limits).next_step, None)

    def step(self) -> bool:
        """Execute the next step, or the interrupted one again; False if none is left."""
        if self._step and not all(map(self._restore, self._step.runs)):
            return True
        step = self._step or next(self._steps, None)
        if step is None:
            return False
        if step is not self._step:
            self._arrange_slots(step)
        self._step = None if self._backend.decode(step.rows) else step
        if self._step is None:
            self._process_output(step)
        return True

    def close(self) -> None:
        for slot in range(self._backend.slots if self._backend.capacity else 0):
            self._backend.context.clear(slot)

    def _reserve(self, longest: int) -> None:
        """Allocate memory for the longest text; a shared cache gets its full size, which the steps depend on."""
        backend = self._backend
        length = backend.context_size if backend.kv_unified else longest
        if length > backend.capacity and (notice := backend.reserve(length)):
            self._job.emit(notice)

    def _arrange_slots(self, step: ScoreStep) -> None:
        backend = self._backend
        for slot, source, length in step.slot_changes:
            if length and slot != source:
                backend.context.copy(source, slot)
            if not length:
                backend.context.clear(slot)
            elif backend.context.length(slot) > length and not backend.context.trim(slot, length):
                raise EngineError(f"the state of the model cannot be rewound to token {length} of a text")

    def _restore(self, run: RowRange) -> bool:
        """Bring a slot back to the state before an interrupted step; False if this was interrupted too."""
        backend = self._backend
        held = min(backend.context.length(run.slot), run.start)
        if not backend.context.trim(run.slot, held):
            backend.context.clear(run.slot)
            held = 0
        for start in range(held, run.start, backend.batch_size):
            stop = min(start + backend.batch_size, run.start)
            if not backend.decode([TokenRow(run.slot, at, run.text[at], False) for at in range(start, stop)]):
                return False
        return True

    def _process_output(self, step: ScoreStep) -> None:
        scores = self._backend.score_tokens([(lookup.row, lookup.token) for lookup in step.lookups])
        for lookup, score in zip(step.lookups, scores, strict=True):
            for reader in lookup.readers:
                self._results.add(reader, score)
        self._evaluated += step.nodes
        self._job.emit(StageEvent("scoring", self._evaluated, self._nodes))
