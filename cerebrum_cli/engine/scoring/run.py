"""Score one job, a step at a time, on a backend that nothing else uses meanwhile."""

from __future__ import annotations

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.engine.backend import Backend, Row
from cerebrum_cli.engine.scoring.job import Results, ScoreJob
from cerebrum_cli.engine.scoring.plan import Limits, Run, Step, plan_steps
from cerebrum_cli.engine.scoring.trie import node_count

STAGE = "scoring"


class ScoreRun:
    """A job that has started: memory is reserved and empty, which makes scores independent of what was in it."""

    def __init__(self, backend: Backend, job: ScoreJob) -> None:
        self._backend = backend
        self._job = job
        self._results = Results(job)
        self._nodes = node_count(job.paths)
        self._evaluated = 0
        self._step: Step | None = None  # that was interrupted
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

    def _arrange_slots(self, step: Step) -> None:
        backend = self._backend
        for slot, source, length in step.places:
            if length and slot != source:
                backend.copy(source, slot)
            if not length:
                backend.clear(slot)
            elif backend.length(slot) > length and not backend.trim(slot, length):
                raise EngineError(f"the model cannot go back to token {length} of a text")

    def _restore(self, run: Run) -> bool:
        """Bring a slot back to the state before an interrupted step; False if this was interrupted too."""
        backend = self._backend
        held = min(backend.length(run.slot), run.start)
        if not backend.trim(run.slot, held):
            backend.clear(run.slot)
            held = 0
        for start in range(held, run.start, backend.batch_size):
            stop = min(start + backend.batch_size, run.start)
            if not backend.decode([Row(run.slot, at, run.text[at], False) for at in range(start, stop)]):
                return False
        return True

    def _process_output(self, step: Step) -> None:
        scores = self._backend.score_tokens([(lookup.row, lookup.token) for lookup in step.lookups])
        for lookup, score in zip(step.lookups, scores, strict=True):
            for reader in lookup.readers:
                self._results.add(reader, score)
        self._evaluated += step.nodes
        self._job.emit(StageEvent(STAGE, self._evaluated, self._nodes))
