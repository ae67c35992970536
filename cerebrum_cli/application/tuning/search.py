"""Find the fastest way to open a model for each use of it: one setting after another, in pairs, losers dropped early.

Nothing is known of how the settings work together, so each is tried on top of the best so far. Speeds are only compared
with what was measured right before and after, as machines are busy with other things at times; what has won is compared
with the usual way once more, and stays only where it wins again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any

from cerebrum_cli.application.inference.profiles import Speeds, Tuned, UseName
from cerebrum_cli.application.tuning.candidates import (
    USES,
    Budget,
    Candidate,
    SearchSpace,
    Stage,
    Use,
    loads_otherwise,
    numeric,
    threads_of,
    unusual,
)
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.engine.bench.protocol import LEAST_AGREEMENT, Bench, Job, NoTrial
from cerebrum_cli.engine.plan import Tuning

WORTH = 1.05  # how many times as fast as the usual way it must be to be used: less may be another program's doing
BETTER = 1.02  # how many times as fast as the best so far it must be for others to be tried on top of it
PROMISING, WON = 1.0, 1.15  # of the other's speed: what is not between in the first pair is not measured again
SURE = 3  # pairs in which what is best is measured once more
DISTURBED = "inconclusive: the CPU was busy"
DEEP = 512  # tokens that must have been read for a setting that only matters behind many to be judged for long prompts
LITTLE = 0.1  # of a use's time: what can only change so much of it is not tried


@dataclass(slots=True)
class Search:
    """All that was measured, and the best so far for each use."""

    bench: Bench
    machine: SearchSpace
    effort: Budget
    arms: list[Candidate] = field(default_factory=list)
    best: dict[UseName, Candidate] = field(default_factory=dict)
    jobs: dict[tuple[bool, str], Job] = field(default_factory=dict)
    clock: Callable[[], float] = perf_counter
    until: float = 0.0
    again: dict[int, list[Speeds]] = field(default_factory=dict)

    def run(self) -> Generator[StageEvent, None, dict[UseName, Tuned]]:
        """Measure, telling what is being measured; return what to use. EngineError where nothing can be measured."""
        yield StageEvent("defaults", 0, 1)
        self._begin(many=False)
        self.until = (
            self.clock() + self.effort.budget
        )  # a file that is read from the disk first takes as long as it does
        stages = [*self._stages()]
        total = len(stages) + len(USES)
        for done, stage in enumerate(stages):
            yield StageEvent(stage.what, done, total)
            self._pass(stage)
        found: dict[UseName, Tuned] = {}
        for done, use in enumerate(USES, len(stages)):
            yield StageEvent(f"{use.name} again, against defaults", done, total)
            found[use.name] = self._confirmed(use)
        return found

    # What is tried.

    def _stages(self) -> Iterator[Stage]:
        """Yield what is tried, in this order: what matters most comes first, as time may run out."""
        yield from self._loading(False, self.machine.usual)
        yield Stage("defaults for many sequences", True, {}, is_essential=True)
        yield from self._loading(True, self.machine.usual_many)
        yield Stage("no flash attention", False, {"flash_attention": False})
        if self.effort.tries_cache:
            yield Stage("KV cache q8_0", False, {"cache_type": "q8_0"})
        for slots in self.effort.slots:
            if slots <= self.machine.slots:
                yield Stage(f"{slots} sequences", True, {"slots": slots})
        for size in self.effort.micro_batches:
            yield Stage(f"n_ubatch {size}", False, {"n_ubatch": size})

    def _loading(self, many: bool, usual: Tuning) -> Iterator[Stage]:
        name = "not repacked" if usual.repack else "weights repacked"
        yield Stage(f"{name}{', many' * many}", many, {"repack": not usual.repack}, is_essential=not many)
        for layers in self._offloads():
            yield Stage(f"{layers} layers offloaded{', many' * many}", many, {"gpu_layers": layers})
        for count in self.machine.threads:
            name = "1 thread" if count == 1 else f"{count} threads"
            yield Stage(f"{name}{', many' * many}", many, {"n_threads": count, "n_threads_batch": count})

    def _offloads(self) -> Iterable[str]:
        """Return numbers of layers to try beside as many as fit."""
        return ("0", str(self.machine.layers // 2)) if self.bench.devices else ()

    # How it is tried.

    def _pass(self, stage: Stage) -> None:
        """Try a change on top of what is best; where it gains nothing there, not on top of the others."""
        if not stage.change:
            return self._begin(stage.many)
        for base in self._leaders(stage.many):
            if not self._try(base, stage):
                break
        return None

    def _begin(self, many: bool) -> None:
        """Measure the usual way, and find out how much is to be measured of all others."""
        arm = Candidate(self.machine.usual_many if many else self.machine.usual, many)
        sequences = arm.tuning.slots or 1
        try:
            read = self._sized(arm, "read", 64, 1024, 2 if many else 1)
            say = self._sized(arm, "say", 3 if many else 6, 64, sequences)
            facts = self.bench.facts(arm.tuning)
        except NoTrial as error:
            raise EngineError(f"this model cannot be measured here: {error.message}", error.hint) from error
        arm.speeds = Speeds(facts.load_s, read, say, facts.peak)
        self.arms.append(arm)
        self.best.update((use.name, arm) for use in USES if use.many == many)

    def _sized(self, arm: Candidate, kind: Any, least: int, most: int, sequences: int) -> float:
        """Return the speed of a job that takes about as long as it should, and remember that job."""
        job = Job(kind, least, sequences)
        speed = self.bench.speed(arm.tuning, job)
        steps = speed / (sequences if kind == "say" else 1) * self.effort.seconds
        wanted = int(steps) if kind == "say" else int(steps // least * least)
        self.jobs[arm.many, kind] = job._replace(tokens=min(most, max(least, wanted)))
        return speed if self.jobs[arm.many, kind] == job else self.bench.speed(arm.tuning, self.jobs[arm.many, kind])

    def _leaders(self, many: bool) -> list[Candidate]:
        """Return the ways that are best for a use now, each once."""
        leaders: list[Candidate] = []
        for use in USES:
            if use.many == many and self.best[use.name] not in leaders:
                leaders.append(self.best[use.name])
        return leaders

    def _try(self, base: Candidate, stage: Stage) -> bool:
        """Measure a change of one of the best ways, unless it was, could not matter, or takes longer than is left.

        Return whether it could be of use somewhere.
        """
        change = stage.change
        tuning = replace(base.tuning, **change)
        kinds = [kind for kind in ("read", "say") if self._matters(base, kind, change)]
        known = any(arm.tuning == tuning and arm.many == base.many for arm in self.arms)
        if not kinds or known or (tuning.cache_type == "q8_0" and tuning.flash_attention is False):
            return True  # llama.cpp reads a quantised cache with flash attention only
        arm = Candidate(tuning, base.many)
        self.arms.append(arm)
        if not stage.is_essential and self.clock() + self._needed(arm, base, kinds) > self.until:
            arm.dropped = "skipped: would take too long"
            return True
        try:
            read, say = self._measure(arm, base, kinds)
        except NoTrial as error:
            arm.dropped = error.message
            self._choose()
            return True
        if "n_threads" in change and (read > 1) != (say > 1) and not (base.many or arm.dropped):
            self._divide(base, arm, reads_faster=read > 1)
        return max(read, say) >= BETTER

    def _measure(self, arm: Candidate, base: Candidate, kinds: Iterable[str]) -> tuple[float, float]:
        """Find out how fast an arm is, and whether it may be used where it is best; return its ratios to the base."""
        ratios = {kind: self._ratio(arm, base, kind) for kind in kinds}
        arm.measured = frozenset(ratios) | (base.measured if base.tuning != self._usual(base).tuning else frozenset())
        read, say = (ratios.get(kind, 1.0) for kind in ("read", "say"))
        facts, known = self.bench.facts(arm.tuning), base.known
        load_s = facts.load_s if loads_otherwise(arm.tuning, base.tuning) else known.load_s
        arm.speeds = Speeds(load_s, known.prompt * read, known.generate * say, facts.peak)
        self._choose()
        if self._leads(arm) and not self._agrees(arm):
            self._choose()
        return read, say

    def _divide(self, base: Candidate, arm: Candidate, reads_faster: bool) -> None:
        """Try another number of threads for that which was faster with it alone, beside the usual one."""
        counts = (base.tuning.n_threads, arm.tuning.n_threads)
        say, read = counts if reads_faster else counts[::-1]
        mixed = {"n_threads": say, "n_threads_batch": read}
        self._try(arm if self._leads(arm) else base, Stage("", base.many, mixed))

    def _leads(self, arm: Candidate) -> bool:
        """Return whether an arm is the best for a use now."""
        return any(best is arm for best in self.best.values())

    def _needed(self, arm: Candidate, base: Candidate, kinds: Iterable[str]) -> float:
        """Return about how many seconds a pair of measurements of each kind takes."""
        speeds, seconds = base.known, 0.0
        for kind in kinds:
            job = self._job(arm, kind)
            sequences = job.sequences if kind == "say" else 1
            seconds += 2 * job.tokens * sequences / (speeds.prompt if kind == "read" else speeds.generate)
        return seconds

    def _matters(self, base: Candidate, kind: str, change: dict[str, Any]) -> bool:
        """Return whether a change could make so much of a difference to something that its base is best for."""
        if base.speeds is None or ("n_ubatch" in change and kind == "say") or ("slots" in change and kind == "read"):
            return False
        led = [use for use in USES if use.many == base.many and self.best[use.name] is base]
        return any(use.shares(base.speeds)[kind] >= LITTLE for use in led)

    def _ratio(self, arm: Candidate, base: Candidate, kind: str) -> float:
        """Return how many times as fast an arm is as its base; one pair is enough that promises nothing, or much."""
        ratios: list[float] = []
        for turn in range(self.effort.pairs):
            ratios.append(self._pair(arm, base, kind, turn))
            if not PROMISING <= ratios[0] <= WON:
                break
        return median(ratios)

    def _pair(self, arm: Candidate, base: Candidate, kind: str, turn: int) -> float:
        """Return how many times as fast an arm is as its base, right beside it; the order changes in every turn."""
        pair = (arm, base) if turn % 2 else (base, arm)
        speeds = {id(each): self.bench.speed(each.tuning, self._job(each, kind, arm)) for each in pair}
        return speeds[id(arm)] / speeds[id(base)]

    def _job(self, arm: Candidate, kind: str, beside: Candidate | None = None) -> Job:
        """Return what of a kind is measured of an arm: as many tokens as of the one it is compared with."""
        job, longest = self.jobs[arm.many, kind], (beside or arm).tuning.n_ubatch
        if kind == "read" and longest:
            return job._replace(tokens=max(job.tokens, longest))
        return job._replace(sequences=arm.tuning.slots) if kind == "say" and arm.tuning.slots else job

    def _choose(self) -> None:
        """Find the best way for each use again."""
        for use in (use for use in USES if use.name in self.best):
            usable = [arm for arm in self.arms if arm.speeds and not arm.dropped and self._is_for(arm, use)]
            fastest, best = min(usable, key=lambda arm: use.seconds(arm.known)), self.best[use.name]
            if best.dropped or use.seconds(best.known) > BETTER * use.seconds(fastest.known):
                self.best[use.name] = fastest

    def _is_for(self, arm: Candidate, use: Use) -> bool:
        """Return whether what was measured of an arm says something of a use."""
        by_depth = arm.tuning.flash_attention is not None or arm.tuning.cache_type is not None
        is_shallow = by_depth and use.prompt >= 4 * DEEP and self.jobs[use.many, "read"].tokens < DEEP
        return arm.many == use.many and not is_shallow

    # Whether it may be used.

    def _confirmed(self, use: Use) -> Tuned:
        """Return the best way for a use that agrees with the usual one, and is faster when both are measured again."""
        usual = self._usual(self.best[use.name])
        while (best := self.best[use.name]) is not usual and not self._stands(best, usual):
            self._choose()
        if best is usual:
            return Tuned(Tuning(), usual.known, usual.known)
        again, beside = sorted(self.again[id(best)], key=use.seconds), usual.known
        middle = again[len(again) // 2]
        gain, first = (use.seconds(beside) / use.seconds(speeds) for speeds in (middle, best.known))
        if min(gain, (gain + first) / 2) < WORTH:
            return Tuned(Tuning(), beside, beside)
        return Tuned(unusual(best.tuning, usual.tuning), middle, beside, gain, best.agreement)

    def _stands(self, arm: Candidate, usual: Candidate) -> bool:
        """Return whether an arm may be used, having measured it once more; it is dropped if not."""
        try:
            if self._agrees(arm) and id(arm) not in self.again:
                before = self.bench.disturbances
                self.again[id(arm)] = self._once_more(arm, usual)
                if self.bench.disturbances > before and threads_of(arm.tuning) != threads_of(usual.tuning):
                    arm.dropped = DISTURBED
        except NoTrial as error:  # what could be opened before, as where another program has taken the memory since
            arm.dropped = error.message
        return not arm.dropped

    def _agrees(self, arm: Candidate) -> bool:
        """Return whether an arm chooses the next tokens of a text as the usual way does; it is dropped if not."""
        if arm.agreement is None:
            ways = numeric(self._usual(arm).tuning), numeric(arm.tuning)
            alike = 1.0 if ways[0] == ways[1] else self.bench.closeness(*ways, self.effort.probe).agreement
            arm.agreement = alike
            if alike < LEAST_AGREEMENT:
                arm.dropped = f"changes the output: agreement {alike:.2%}"
        return not arm.dropped

    def _usual(self, arm: Candidate) -> Candidate:
        """Return the usual way of opening the model for as many."""
        return next(each for each in self.arms if each.many == arm.many)

    def _once_more(self, best: Candidate, usual: Candidate) -> list[Speeds]:
        """Measure both in turn; return the speeds of each pair, as those of the usual way times their ratios."""
        beside, load_s = usual.known, usual.known.load_s
        if loads_otherwise(best.tuning, usual.tuning):  # a time that was taken once; what was seen first is slower
            load_s = min(best.known.load_s, self.bench.reload(best.tuning))
            beside = usual.speeds = replace(beside, load_s=min(beside.load_s, self.bench.reload(usual.tuning)))
        speeds = []
        for turn in range(SURE):
            read, say = (self._pair(best, usual, kind, turn) for kind in ("read", "say"))
            speeds.append(Speeds(load_s, beside.prompt * read, beside.generate * say, best.known.memory))
        return speeds
