"""Search for the fastest settings for each use of a model: one setting after another, with early stopping.

How settings interact is unknown, so each is tried on top of the best so far. Other programs may slow the machine down
at any time, so speeds are compared only with a measurement made right before or after. The winner is finally measured
against the defaults again, and used only if it wins again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median
from time import perf_counter
from typing import Any

from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.engine.bench import JOB_KINDS, Bench, BenchError, BenchJob, JobKind
from cerebrum_cli.engine.model_options import Tuning
from cerebrum_cli.replies.profiles import Speeds, TunedUse, UseName
from cerebrum_cli.tune.candidates import (
    ASK,
    BATCH,
    CHAT,
    USES,
    Candidate,
    SearchSpace,
    Stage,
    Use,
    differences,
    plan_stages,
)

SEARCH_S = 75.0  # between measuring the defaults and confirming the winners
RUN_S = 0.8  # of one measurement
MIN_DEPTH, BATCH_DEPTH, MAX_DEPTH = 16, 128, 2048  # tokens of context to evaluate before decoding
DEPTH_S = 2.0  # of evaluating them, once for each context
PAIRS, CONFIRMATION_PAIRS = 2, 3  # of measurements in turn, for a candidate and for a winner
MIN_GAIN = 1.05  # over the defaults, to be used: less may be caused by other programs
MIN_IMPROVEMENT = 1.02  # over the best so far, to become the base of further candidates
MIN_FIRST_RATIO, MAX_FIRST_RATIO = 1.0, 1.15  # a first pair outside this range decides: no further pairs
LOADS = 2  # each in a fresh process, of which the faster counts, of settings that differ in their load time
MIN_SHARE = 0.1  # of a use's duration: what affects less is not tried


@dataclass(slots=True)
class Search:
    """Candidates measured so far, and the best for each use.

    It may take `search_s` seconds between measuring the defaults and confirming the winners.
    """

    bench: Bench
    space: SearchSpace
    search_s: float = SEARCH_S
    clock: Callable[[], float] = perf_counter
    candidates: list[Candidate] = field(default_factory=list)
    defaults: dict[UseName, Candidate] = field(default_factory=dict)
    best: dict[UseName, Candidate] = field(default_factory=dict)
    _jobs: dict[tuple[bool, JobKind], BenchJob] = field(default_factory=dict)
    _deadline: float = 0.0

    def run(self) -> Generator[StageEvent, None, dict[UseName, TunedUse]]:
        """Yield each stage before it is measured. BenchError if the defaults cannot be measured."""
        yield StageEvent("defaults", 0, 1)
        self._measure_default(self.space.chat, (CHAT, ASK) if self.space.ask == self.space.chat else (CHAT,))
        self._deadline = self.clock() + self.search_s  # excludes the first load, which reads from the disk
        stages = [*plan_stages(self.space, bool(self.bench.devices))]
        total = len(stages) + len(USES)
        for done, stage in enumerate(stages):
            yield StageEvent(str(stage), done, total)
            if stage.settings:
                leaders: dict[Candidate, list[Use]] = {}
                for use in USES:
                    if use.is_batch == stage.is_batch:
                        leaders.setdefault(self.best[use.name], []).append(use)
                for base, uses in leaders.items():
                    self._try_on(base, uses, stage)
            elif stage.is_batch:
                self._measure_default(self.space.batch, (BATCH,))
            else:
                self._measure_default(self.space.ask, (ASK,), self.defaults["chat"])
        confirmed: dict[UseName, TunedUse] = {}
        measure = cache(self._confirmation)  # once for uses with the same settings
        for done, use in enumerate(USES, len(stages)):
            yield StageEvent(f"{use.name} again, against defaults", done, total)
            confirmed[use.name] = self._confirm(use, measure)
        return confirmed

    # The defaults.

    def _measure_default(self, tuning: Tuning, uses: Iterable[Use], base: Candidate | None = None) -> None:
        """Measure the default settings of some uses: relative to others, or first, to choose the size of all jobs."""
        default = Candidate(tuning, base)
        if base:
            self._measure(default, base, JOB_KINDS)
        else:
            prefill = self._calibrate(default, BenchJob("prefill", 64, 2 if default.is_batch else 1), 1024)
            least, evaluated = 3 if default.is_batch else 6, context_depth(prefill, default.is_batch)
            depth = evaluated if default.is_batch else self.space.depth
            decode = self._calibrate(
                default, BenchJob("decode", least, tuning.slots or 1, depth, copies=-(-depth // evaluated)), 64
            )
            default.speeds = Speeds(self._load_seconds(tuning), prefill, decode, self.bench.peak_memory(tuning))
        self.candidates.append(default)
        for use in uses:
            self.defaults[use.name] = self.best[use.name] = default
        if base:
            self._update_best(base)

    def _calibrate(self, candidate: Candidate, job: BenchJob, most: int) -> float:
        speed, (kind, least, sequences, *_) = self.bench.speed(candidate.tuning, job), job
        steps = speed / (sequences if kind == "decode" else 1) * RUN_S
        tokens = int(steps) if kind == "decode" else int(steps // least * least)
        sized = self._jobs[candidate.is_batch, kind] = job._replace(tokens=min(most, max(least, tokens)))
        return speed if sized == job else self.bench.speed(candidate.tuning, sized)

    # Trying a stage.

    def _try_on(self, base: Candidate, uses: Sequence[Use], stage: Stage) -> None:
        """Measure settings on top of a leader, unless they cannot matter, are known, or the time is up."""
        tuning = replace(base.tuning, **stage.settings)
        kinds = relevant_kinds(base, uses, stage.settings)
        if not kinds or tuning in (earlier.tuning for earlier in self.candidates):
            return
        candidate = Candidate(tuning, base.baseline or base)
        self.candidates.append(candidate)
        if not stage.is_essential and self.clock() > self._deadline:
            candidate.dropped = "would take too long"
            return
        try:
            prefill, decode = self._measure(candidate, base, kinds)
        except BenchError as error:
            candidate.dropped = error.message
            return
        if "n_threads" in stage.settings and (prefill > 1) != (decode > 1) and not base.is_batch:
            # The new thread count only for the phase that it made faster.
            counts = (base.tuning.n_threads, tuning.n_threads)
            decode_threads, prefill_threads = counts if prefill > 1 else counts[::-1]
            split = Stage(base.is_batch, {"n_threads": decode_threads, "n_threads_batch": prefill_threads})
            self._try_on(candidate if candidate in self.best.values() else base, uses, split)

    def _measure(self, candidate: Candidate, base: Candidate, kinds: Iterable[JobKind]) -> tuple[float, float]:
        speedups = {kind: self._speedup(candidate, base, kind) for kind in kinds}
        prefill, decode = speedups.get("prefill", 1.0), speedups.get("decode", 1.0)
        known, tuning, load_s = base.known_speeds, candidate.tuning, base.known_speeds.load_s
        if (tuning.repack, tuning.gpu_layers) != (base.tuning.repack, base.tuning.gpu_layers):
            load_s = self._load_seconds(tuning)
        candidate.speeds = Speeds(
            load_s, known.prompt * prefill, known.generate * decode, self.bench.peak_memory(tuning)
        )
        self._update_best(candidate)
        return prefill, decode

    def _update_best(self, candidate: Candidate) -> None:
        for use in USES:
            best = self.best.get(use.name)
            is_faster = best and use.gain(candidate.known_speeds, best.known_speeds) > MIN_IMPROVEMENT
            if is_faster and use.is_batch == candidate.is_batch:
                self.best[use.name] = candidate

    def _load_seconds(self, tuning: Tuning) -> float:
        return min(self.bench.reload(tuning) for _ in range(LOADS))

    def _speedup(self, candidate: Candidate, base: Candidate, kind: JobKind) -> float:
        """Median speedup over the base; a clear loss or win in the first pair ends the measurement."""
        ratios: list[float] = []
        for turn in range(PAIRS):
            ratios.append(self._paired_speedup(candidate, base, kind, turn))
            if not MIN_FIRST_RATIO <= ratios[0] <= MAX_FIRST_RATIO:
                break
        return median(ratios)

    def _paired_speedup(self, candidate: Candidate, base: Candidate, kind: JobKind, turn: int) -> float:
        """Speedup over the base, measured one right after the other; the order alternates."""
        pair = (candidate, base) if turn % 2 else (base, candidate)
        speeds = {side: self.bench.speed(side.tuning, self._job(side, kind, candidate)) for side in pair}
        return speeds[candidate] / speeds[base]

    def _job(self, candidate: Candidate, kind: JobKind, compared: Candidate | None = None) -> BenchJob:
        """Job to measure a candidate with, as long as that of the candidate it is compared with."""
        job, n_ubatch = self._jobs[candidate.is_batch, kind], (compared or candidate).tuning.n_ubatch
        if kind == "prefill":
            return job._replace(tokens=max(job.tokens, n_ubatch or 0))
        return job._replace(sequences=candidate.tuning.slots or job.sequences)

    # Confirmation.

    def _confirm(self, use: Use, measure: Callable[[Candidate, Candidate], list[Speeds]]) -> TunedUse:
        best, baseline = self.best[use.name], self.defaults[use.name]
        known = baseline.known_speeds
        if best is not baseline:
            try:
                confirmed = sorted(measure(best, baseline), key=lambda speeds: use.gain(speeds, known))
            except BenchError as error:  # another program may have taken the memory since the first measurement
                best.dropped = error.message
                return TunedUse(Tuning(), known)
            middle = confirmed[len(confirmed) // 2]
            gain, first = (use.gain(speeds, known) for speeds in (middle, best.known_speeds))
            if min(gain, (gain + first) / 2) >= MIN_GAIN:
                return TunedUse(differences(best.tuning, baseline.tuning), middle, gain)
        return TunedUse(Tuning(), known)

    def _confirmation(self, best: Candidate, baseline: Candidate) -> list[Speeds]:
        known = baseline.known_speeds
        speedups = (
            [self._paired_speedup(best, baseline, kind, turn) for turn in range(CONFIRMATION_PAIRS)]
            for kind in JOB_KINDS  # one after the other, since each has a context of its own
        )
        return [
            replace(best.known_speeds, prompt=known.prompt * prefill, generate=known.generate * decode)
            for prefill, decode in zip(*speedups, strict=True)
        ]


def context_depth(prompt_speed: float, is_batch: bool = False) -> int:
    """Tokens of context to evaluate before decoding: of a whole chat, or of the prompts of a batch; fewer if slow."""
    return max(MIN_DEPTH, min(BATCH_DEPTH if is_batch else MAX_DEPTH, int(prompt_speed * DEPTH_S)))


def relevant_kinds(base: Candidate, uses: Sequence[Use], settings: Mapping[str, Any]) -> list[JobKind]:
    """Kinds of work that settings affect, and that take a relevant share of one of the uses of a candidate."""
    unaffected = {"decode": "n_ubatch", "prefill": "slots"}
    return [
        kind
        for kind in JOB_KINDS
        if unaffected[kind] not in settings and any(use.shares(base.known_speeds)[kind] >= MIN_SHARE for use in uses)
    ]
