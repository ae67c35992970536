"""Score queued jobs, one after another, a step at a time; `plan.py` is imported with the first one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.engine.backend import Backend, TokenRow, TokenScore
from cerebrum_cli.engine.sequence import Failure

if TYPE_CHECKING:
    from cerebrum_cli.engine.scoring.plan import Path, RowRange, ScoreStep
    from cerebrum_cli.engine.scoring.request import ScoreRequest, ScoringEvent

STAGE = "scoring"


@dataclass(frozen=True, slots=True, eq=False)
class ScoreJob:
    """Requests by their index, the trie of their tokens, and where their events go: the last is None or a Failure."""

    requests: Mapping[int, ScoreRequest]
    emit: Callable[[ScoringEvent | Failure | None], None]
    paths: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        from cerebrum_cli.engine.scoring.plan import build_paths

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
        from cerebrum_cli.engine.scoring.request import LogprobScores, Score

        scores = tuple(
            Score(self._sums[reader], self._is_greedy[reader], len(continuation))
            for reader, continuation in enumerate(self._job.requests[index].continuations, self._first_readers[index])
        )
        self._job.emit(LogprobScores(index, scores))


class ScoreRun:
    """A job that has started: memory is reserved and empty, which makes scores independent of what was in it."""

    def __init__(self, backend: Backend, job: ScoreJob) -> None:
        from cerebrum_cli.engine.scoring.plan import Limits, node_count, plan_steps

        self._backend = backend
        self._job = job
        self._results = Results(job)
        self._nodes = node_count(job.paths)
        self._evaluated = 0
        self._step: ScoreStep | None = None  # that was interrupted
        if job.paths:
            self._reserve(max(len(path.tokens) for path in job.paths))
            backend.clear_all()
        slots = backend.slots if backend.kv_unified else 1  # copies between separate caches cost time and memory
        limits = Limits(backend.batch_size, backend.max_outputs, slots, backend.capacity, backend.is_trimmable)
        self._steps = plan_steps(job.paths, limits)

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
        """Empty all slots."""
        for slot in range(self._backend.slots if self._backend.capacity else 0):
            self._backend.clear(slot)

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
                backend.copy(source, slot)
            if not length:
                backend.clear(slot)
            elif backend.length(slot) > length and not backend.trim(slot, length):
                raise EngineError(f"the model cannot go back to token {length} of a text")

    def _restore(self, run: RowRange) -> bool:
        """Bring a slot back to the state before an interrupted step; False if this was interrupted too."""
        backend = self._backend
        held = min(backend.length(run.slot), run.start)
        if not backend.trim(run.slot, held):
            backend.clear(run.slot)
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
        self._job.emit(StageEvent(STAGE, self._evaluated, self._nodes))


class Scorer:
    """Queue of jobs; the first one is being scored."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._jobs: deque[ScoreJob] = deque()
        self._run: ScoreRun | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no job is left."""
        return not self._jobs

    def add(self, job: ScoreJob) -> None:
        self._jobs.append(job)

    def step(self) -> None:
        """Execute a step of the first job; all slots are overwritten, and empty after its last step."""
        if self._run is None:
            self._run = ScoreRun(self._backend, self._jobs[0])
        if not self._run.step():
            self._end(self._jobs[0])

    def cancel(self, work: Collection[object] | None) -> None:
        """End those of these jobs that are left, or all, before they are finished."""
        for job in [job for job in self._jobs if work is None or job in work]:
            self._end(job)

    def fail(self, error: BaseException) -> None:
        """End all jobs with the error."""
        for job in self._jobs:
            job.emit(Failure(error))
        self._jobs.clear()
        self._run = None

    def _end(self, job: ScoreJob) -> None:
        if self._run and job is self._jobs[0]:
            self._run.close()
            self._run = None
        self._jobs.remove(job)
        job.emit(None)
