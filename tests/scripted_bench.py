"""A bench without processes: how fast each way of opening a model truly is, is a function, and so is the time it takes.

What is asked of it is checked as a real one would need it: a way of many is measured with as many sequences as it has,
two are compared over jobs of one length, and nothing is asked after it was closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cerebrum_cli.application.inference.profiles import Speeds
from cerebrum_cli.engine.bench.protocol import Closeness, Job, LoadStats, TrialError
from cerebrum_cli.engine.plan import Device, Tuning

Factors = Mapping[tuple[str, Any], tuple[float, float]]
"""How many times as fast reading and saying are with a setting of this value; 1 where nothing is written."""

ALONE = Speeds(2.0, 30.0, 8.0, 1_000)  # of a 7B on few cores
MANY = Speeds(2.0, 45.0, 40.0, 2_000)


@dataclass(frozen=True, slots=True)
class Cost:
    """A machine on which settings do not depend on one another; `loads` are seconds by what `repack` is."""

    alone: Factors = field(default_factory=dict)
    many: Factors = field(default_factory=dict)
    loads: Mapping[bool | None, float] = field(default_factory=dict)
    usual: Speeds = ALONE
    usual_many: Speeds = MANY

    def __call__(self, tuning: Tuning) -> Speeds:
        """Return how fast a way truly is; of many where it has slots. Threads say, and those of prompts read."""
        is_many = tuning.slots is not None
        base, factors = (self.usual_many, self.many) if is_many else (self.usual, self.alone)
        read, say = base.prompt, base.generate
        for setting in tuning.overrides.items():
            faster = factors.get(setting, (1.0, 1.0))
            read *= 1.0 if setting[0] == "n_threads" and not is_many else faster[0]
            say *= 1.0 if setting[0] == "n_threads_batch" and not is_many else faster[1]
        return Speeds(self.loads.get(tuning.repack, base.load_s), read, say, base.memory)


@dataclass(slots=True)
class ScriptedBench:
    """A bench on a machine of one's own.

    `agreement` is how alike a way is to the usual one, `refused` why one cannot be tried; each measurement is off by
    `noise` at most, as a share of it, and takes its time of `now`.
    """

    truth: Callable[[Tuning], Speeds] = field(default_factory=Cost)
    agreement: Callable[[Tuning], float] = lambda _: 1.0
    refused: Callable[[Tuning], str | None] = lambda _: None
    devices: tuple[Device, ...] = ()
    noise: float = 0.0
    disturbed_jobs: int = 0
    random: Random = field(default_factory=lambda: Random(0))
    now: float = 0.0
    closed: bool = False
    loaded: dict[Tuning, float] = field(default_factory=dict)
    jobs: list[tuple[Tuning, Job]] = field(default_factory=list)
    compared: list[Tuning] = field(default_factory=list)

    def clock(self) -> float:
        """Return the seconds that all measurements have taken."""
        return self.now

    def reload(self, tuning: Tuning) -> float:
        """Return the seconds that loading the model once more takes."""
        self.loaded.pop(tuning, None)
        self._open(tuning)
        return self.load_stats(tuning).load_s

    def speed(self, tuning: Tuning, job: Job) -> float:
        """Return tokens a second."""
        self._open(tuning)
        assert job.tokens > 0
        assert job.kind == "prefill" or job.sequences == (tuning.slots or 1)
        assert job.kind == "decode" or job.tokens >= (tuning.n_ubatch or 0)
        truth = self.truth(tuning)
        speed = self._noisy(truth.prompt if job.kind == "prefill" else truth.generate)
        self.now += job.tokens * (job.sequences if job.kind == "decode" else 1) / speed
        self.jobs.append((tuning, job))
        return speed

    def load_stats(self, tuning: Tuning) -> LoadStats:
        """Return what is known of the process this is tried in."""
        return LoadStats(self._open(tuning), self.truth(tuning).memory)

    def closeness(self, reference: Tuning, tuning: Tuning, tokens: int) -> Closeness:
        """Compare two ways of evaluating the first tokens of the probe text."""
        assert reference.slots is None and tuning.slots is None, "a text is one sequence"
        self._open(tuning)
        self.compared.append(tuning)
        share = self.agreement(tuning)
        return Closeness(share, share, 1.0 - share)

    def close(self) -> None:
        """End all that is open."""
        self.closed = True

    def measured(self, **settings: Any) -> list[Job]:
        """Return the jobs that were done with these settings, whatever else was set."""
        return [job for tuning, job in self.jobs if settings.items() <= tuning.overrides.items()]

    def _open(self, tuning: Tuning) -> float:
        assert not self.closed
        if why := self.refused(tuning):
            raise TrialError(why)
        way = Tuning(
            **{**tuning.overrides, "slots": None, "n_ubatch": None, "flash_attention": None, "cache_type": None}
        )
        if way not in self.loaded:
            self.loaded[way] = self._noisy(self.truth(tuning).load_s)
            self.now += self.loaded[way]
        return self.loaded[way]

    def _noisy(self, value: float) -> float:
        return value * self.random.uniform(1 - self.noise, 1 + self.noise)
