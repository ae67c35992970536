"""Score queued jobs one after another; what that takes is imported with the first one."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING

from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.sequence import Failure

if TYPE_CHECKING:
    from cerebrum_cli.engine.scoring.job import ScoreJob
    from cerebrum_cli.engine.scoring.run import ScoreRun


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
            from cerebrum_cli.engine.scoring.run import ScoreRun

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
