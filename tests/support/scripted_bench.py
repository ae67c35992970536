"""A bench without processes: speeds come from a function, and measurements take simulated time.

It checks its input: a job has as many sequences as the settings have slots, a prefill job is at least one micro-batch
long, and nothing is measured after `close`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cerebrum_cli.engine.bench import Bench, BenchError, BenchJob, load_settings
from cerebrum_cli.engine.memory import Device
from cerebrum_cli.engine.model_options import Tuning
from cerebrum_cli.engine.step_costs import StepCosts
from cerebrum_cli.replies.profiles import Speeds

SettingFactors = Mapping[tuple[str, Any], tuple[float, float]]
"""Speedups of prefill and decode by setting and value; 1 for settings not listed."""

SINGLE_SPEEDS = Speeds(2.0, 30.0, 8.0, 1_000)  # of a 7B on few cores
BATCH_SPEEDS = Speeds(2.0, 45.0, 40.0, 2_000)


@dataclass(frozen=True, slots=True)
class SpeedModel:
    """True speeds on a machine where settings are independent of each other; `load_s` depends on `repack`."""

    single: SettingFactors = field(default_factory=dict)
    batch: SettingFactors = field(default_factory=dict)
    load_s: Mapping[bool | None, float] = field(default_factory=dict)
    baseline: Speeds = SINGLE_SPEEDS
    batch_baseline: Speeds = BATCH_SPEEDS

    def __call__(self, tuning: Tuning) -> Speeds:
        """Speeds of a tuning, which is for a batch if it has slots."""
        is_batch = tuning.slots is not None
        base, factors = (self.batch_baseline, self.batch) if is_batch else (self.baseline, self.single)
        prefill, decode = base.prompt, base.generate
        for setting in tuning.overrides.items():
            speedups = factors.get(setting, (1.0, 1.0))
            prefill *= 1.0 if setting[0] == "n_threads" and not is_batch else speedups[0]
            decode *= 1.0 if setting[0] == "n_threads_batch" and not is_batch else speedups[1]
        return Speeds(self.load_s.get(tuning.repack, base.load_s), prefill, decode, base.memory)


@dataclass
class ScriptedBench(Bench):
    """A bench with scripted speeds.

    `refusal` is the reason why a tuning cannot be tried, `row_cost` the cost of each row of a step with several.
    Measurements are off by at most `noise`, a share of the true value, and advance the clock `now`.
    """

    speed_model: Callable[[Tuning], Speeds] = field(default_factory=SpeedModel)
    refusal: Callable[[Tuning], str | None] = lambda _: None
    devices: tuple[Device, ...] = ()
    noise: float = 0.0
    disturbed_jobs: int = 0
    random: Random = field(default_factory=lambda: Random(0))
    now: float = 0.0
    closed: bool = False
    loaded: dict[Tuning, float] = field(default_factory=dict)
    jobs: list[tuple[Tuning, BenchJob]] = field(default_factory=list)
    row_cost: float | None = None
    stepped: list[Tuning] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def reload(self, tuning: Tuning) -> float:
        self.loaded.pop(tuning, None)
        return self._load(tuning)

    def speed(self, tuning: Tuning, job: BenchJob) -> float:
        self._load(tuning)
        assert job.tokens > 0
        assert job.kind == "prefill" or job.sequences == (tuning.slots or 1)
        assert job.kind == "decode" or job.tokens >= (tuning.n_ubatch or 0)
        truth = self.speed_model(tuning)
        speed = self._noisy(truth.prompt if job.kind == "prefill" else truth.generate)
        self.now += job.tokens * (job.sequences if job.kind == "decode" else 1) / speed
        self.jobs.append((tuning, job))
        return speed

    def step_costs(self, tuning: Tuning, rows: tuple[int, ...], seconds: float, depth: int) -> StepCosts:
        """Costs by `row_cost`; without it, the model cannot be trimmed."""
        self._load(tuning)
        if self.row_cost is None:
            raise BenchError("its cache cannot be trimmed")
        self.now += seconds + depth / self.speed_model(tuning).prompt
        self.stepped.append(tuning)
        return StepCosts(rows, (1.0, *(self.row_cost * count for count in rows[1:])))

    def peak_memory(self, tuning: Tuning) -> int:
        return self.speed_model(tuning).memory

    def close(self) -> None:
        self.closed = True

    def jobs_with(self, **settings: Any) -> list[BenchJob]:
        return [job for tuning, job in self.jobs if settings.items() <= tuning.overrides.items()]

    def _load(self, tuning: Tuning) -> float:
        assert not self.closed
        if reason := self.refusal(tuning):
            raise BenchError(reason)
        settings = load_settings(tuning)
        if settings not in self.loaded:
            self.loaded[settings] = self._noisy(self.speed_model(tuning).load_s)
            self.now += self.loaded[settings]
        return self.loaded[settings]

    def _noisy(self, value: float) -> float:
        return value * self.random.uniform(1 - self.noise, 1 + self.noise)
