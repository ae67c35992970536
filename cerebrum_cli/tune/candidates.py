"""Values of a search: its budget, the uses of a model that it measures, and the settings it tries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cerebrum_cli.core.options import flag
from cerebrum_cli.core.settings import ATTENTION_KEYS, Settings
from cerebrum_cli.engine.drafts.costs import MEASURED_ROWS
from cerebrum_cli.engine.load_options import Tuning
from cerebrum_cli.engine.protocol import JobKind
from cerebrum_cli.inference.profiles import Speeds, UseName

BATCH_SLOTS = 32  # concurrent sequences of a batch without a profile
LONG_PROMPT_TOKENS = 2048
MAX_LONGER = 1.25  # how much longer an answer may take for an earlier first token
SAME_FIRST_TOKEN = 1.1  # ratio of the times to two first tokens, below which the whole answer decides: loads vary


class Budget(NamedTuple):
    """How long and how much to measure.

    `search_s` limits the time between measuring the defaults and confirming the winners, and includes the steps for
    drafts: about `steps_s` for each use whose defaults differ, with each number of rows in `step_rows`. Each run takes
    about `run_s` and is repeated in `pairs`, or `confirmation_pairs` for a winner. To detect changed output,
    `probe_tokens` are compared. The rest are values to try.
    """

    search_s: float
    run_s: float
    pairs: int
    confirmation_pairs: int
    probe_tokens: int
    steps_s: float
    n_ubatch: tuple[int, ...] = (64, 256, 512)
    slots: tuple[int, ...] = (16, 64)
    tries_cache_types: bool = True
    step_rows: tuple[int, ...] = MEASURED_ROWS


QUICK = Budget(10.0, 0.25, 1, 2, 128, 2.0, (), (16,), tries_cache_types=False, step_rows=(1, 2, 4, 8, 16))
NORMAL = Budget(60.0, 0.8, 2, 3, 192, 10.0)
THOROUGH = Budget(1200.0, 3.0, 4, 3, 512, 30.0, (32, 64, 256, 512, 1024), (4, 8, 16, 24, 48, 64))


class Use(NamedTuple):
    """A typical use of a model: tokens to prefill and to decode after loading it once; concurrently in a batch."""

    name: UseName
    prompt_tokens: int
    reply_tokens: int
    is_batch: bool = False

    def seconds(self, speeds: Speeds) -> float:
        """Duration at these speeds."""
        return speeds.seconds(self.prompt_tokens, self.reply_tokens)

    def gain(self, speeds: Speeds, other: Speeds) -> float:
        """Speedup over other speeds."""
        return self.seconds(other) / self.seconds(speeds)

    def shares(self, speeds: Speeds) -> dict[JobKind, float]:
        """Shares of the duration that prefill and decode take."""
        total = self.seconds(speeds)
        return {
            "prefill": self.prompt_tokens / speeds.prompt / total,
            "decode": self.reply_tokens / speeds.generate / total,
        }


class Ask(Use):
    """A single answer, whose first token counts most."""

    __slots__ = ()

    def gain(self, speeds: Speeds, other: Speeds) -> float:
        """Speedup of the first token; of the whole answer if that is much longer, or the first tokens are about equal.

        A long prompt must not take much longer either.
        """
        answers = [
            other.seconds(prompt, self.reply_tokens) / speeds.seconds(prompt, self.reply_tokens)
            for prompt in (self.prompt_tokens, LONG_PROMPT_TOKENS)
        ]
        if min(answers) < 1 / MAX_LONGER:
            return min(answers)
        if max(answers) > MAX_LONGER:
            return max(answers)
        first = other.seconds(self.prompt_tokens, 0) / speeds.seconds(self.prompt_tokens, 0)
        return answers[0] if 1 / SAME_FIRST_TOKEN < first < SAME_FIRST_TOKEN else first

    def shares(self, speeds: Speeds) -> dict[JobKind, float]:
        """Shares of the time to the first token that prefill takes, and of the whole answer that decode takes."""
        prefill = self.prompt_tokens / speeds.prompt / speeds.seconds(self.prompt_tokens, 0)
        return {**Use.shares(self, speeds), "prefill": prefill}


CHAT = Use("chat", 8 * 64, 8 * 192)  # turns
ASK = Ask("ask", 64, 256)
BATCH = Use("batch", 64 * 128, 64 * 128, is_batch=True)  # rows
USES = (CHAT, ASK, BATCH)


class SearchSpace(NamedTuple):
    """The default settings of each use, and what can be tried instead.

    `threads` are thread counts other than the default; `slots` is the number of sequences that fit in memory. Flash
    attention and cache types are tried if `tries_attention`.
    """

    chat: Tuning
    ask: Tuning
    batch: Tuning
    threads: tuple[int, ...]
    slots: int
    layers: int
    tries_attention: bool = True


@dataclass(slots=True)
class Candidate:
    """Settings that were tried, and their speeds; `dropped` is the reason for not using them.

    Only the speeds of `measured_kinds` were measured; the others are those of the candidate it is based on.
    """

    tuning: Tuning
    is_batch: bool
    speeds: Speeds | None = None
    agreement: float | None = None
    dropped: str | None = None
    measured_kinds: frozenset[JobKind] = frozenset()

    @property
    def known_speeds(self) -> Speeds:
        """Speeds of a candidate that was measured."""
        assert self.speeds
        return self.speeds


class Stage(NamedTuple):
    """Settings to try, with the label that progress shows; essential stages run even after the time limit."""

    label: str
    is_batch: bool
    settings: dict[str, Any]
    is_essential: bool = False


def plan_stages(space: SearchSpace, budget: Budget, has_gpu: bool) -> Iterator[Stage]:
    """Stages in order of importance, since time may run out."""
    if space.ask != space.chat:
        yield Stage("ask, defaults", False, {}, is_essential=True)
    yield from _load_stages(space, has_gpu, is_batch=False)
    yield Stage("batch, defaults", True, {}, is_essential=True)
    yield from _load_stages(space, has_gpu, is_batch=True)
    if space.tries_attention:
        yield Stage("flash attention off", False, {"flash_attention": False})
    if space.tries_attention and budget.tries_cache_types:
        yield Stage("cache q8_0", False, {"cache_type": "q8_0"})
    for slots in budget.slots:
        if slots <= space.slots:
            yield Stage(f"batch, {slots} sequences", True, {"slots": slots})
    for size in budget.n_ubatch:
        yield Stage(f"n_ubatch {size}", False, {"n_ubatch": size})


def _load_stages(space: SearchSpace, has_gpu: bool, is_batch: bool) -> Iterator[Stage]:
    """Stages of settings that require loading the model again."""
    prefix, default = "batch, " * is_batch, space.batch if is_batch else space.chat
    name = "not repacked" if default.repack else "repacked"
    if is_batch or space.ask == space.chat:
        yield Stage(prefix + name, is_batch, {"repack": not default.repack}, is_essential=not is_batch)
    for layers in ("0", str(space.layers // 2)) if has_gpu else ():
        yield Stage(f"{prefix}{layers} layers offloaded", is_batch, {"gpu_layers": layers})
    for count in space.threads:
        name = "1 thread" if count == 1 else f"{count} threads"
        yield Stage(prefix + name, is_batch, {"n_threads": count, "n_threads_batch": count})


def unplanned(space: SearchSpace, budget: Budget, settings: Settings) -> dict[str, str]:
    """Settings that no stage tries, with the reason."""
    reasons = {f"batch, {slots} sequences": "would not fit in memory" for slots in budget.slots if slots > space.slots}
    if settings.threads:
        reasons["other thread counts"] = f"--threads is {settings.threads}"
    if settings.gpu_layers != "auto":
        reasons["other GPU layers"] = f"--gpu-layers is {settings.gpu_layers}"
    if not space.tries_attention:
        given = next(key for key in ATTENTION_KEYS if getattr(settings, key) is not None)
        reasons["flash attention, cache q8_0"] = f"{flag(given)} is {getattr(settings, given)}"
    if budget is QUICK:
        reasons["cache q8_0, n_ubatch, batch with more sequences"] = "not tried with --quick"
    return reasons


def thread_counts_to_try(default: int, usable: int) -> tuple[int, ...]:
    """Thread counts besides the default: all available, half of the default, and one less."""
    return tuple(
        count for count in sorted({usable, default - 1, (default + 1) // 2}) if count >= 1 and count != default
    )


def load_key(tuning: Tuning) -> tuple[bool | None, str | None]:
    """Settings that the load time depends on."""
    return tuning.repack, tuning.gpu_layers


def thread_counts(tuning: Tuning) -> tuple[int | None, int | None]:
    """Threads for decode and for prefill."""
    return tuning.n_threads, tuning.n_threads_batch


def numeric_settings(tuning: Tuning) -> Tuning:
    """Settings that can change computed values, and not only who computes them and when."""
    return replace(tuning, slots=None, n_threads=None, n_threads_batch=None)


def differences(tuning: Tuning, baseline: Tuning) -> Tuning:
    """Settings that differ from the baseline."""
    return Tuning(**{name: value for name, value in tuning.overrides.items() if value != getattr(baseline, name)})


def speed_ratios(candidate: Candidate, baseline: Candidate) -> dict[str, float | None]:
    """Speeds relative to the defaults; None where they were not measured."""
    prompt, generate = None, None
    if candidate.speeds and baseline.speeds:
        if "prefill" in candidate.measured_kinds:
            prompt = candidate.speeds.prompt / baseline.speeds.prompt
        if "decode" in candidate.measured_kinds:
            generate = candidate.speeds.generate / baseline.speeds.generate
    return {"prompt_tokens_per_second": prompt, "tokens_per_second": generate}
