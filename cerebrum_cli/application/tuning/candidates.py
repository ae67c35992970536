"""Values of a search: its budget, the uses of a model that it measures, and the settings it tries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cerebrum_cli.application.inference.profiles import Speeds, UseName
from cerebrum_cli.engine.bench.protocol import JobKind
from cerebrum_cli.engine.plan import Tuning

BATCH_SLOTS = 32  # concurrent sequences of a batch without a profile


class Budget(NamedTuple):
    """How long and how much to measure.

    `search_s` limits the time between measuring the defaults and confirming the winners; each run takes about `run_s`
    and is repeated in `pairs`. `probe_tokens` are compared to detect changed output. The rest are values to try.
    """

    search_s: float
    run_s: float
    pairs: int
    probe_tokens: int
    n_ubatch: tuple[int, ...] = (64, 256, 512)
    slots: tuple[int, ...] = (16, 64)
    tries_cache_types: bool = True


QUICK = Budget(20.0, 0.4, 1, 128, (), (16,), tries_cache_types=False)
NORMAL = Budget(80.0, 0.8, 2, 192)
THOROUGH = Budget(1200.0, 3.0, 4, 512, (32, 64, 256, 512, 1024), (4, 8, 16, 24, 48, 64))


class Use(NamedTuple):
    """A typical use of a model: tokens to prefill and to decode after loading it once; concurrently in a batch."""

    name: UseName
    prompt_tokens: int
    reply_tokens: int
    is_batch: bool = False

    def seconds(self, speeds: Speeds) -> float:
        """Duration at these speeds."""
        return speeds.seconds(self.prompt_tokens, self.reply_tokens)

    def shares(self, speeds: Speeds) -> dict[JobKind, float]:
        """Shares of the duration that prefill and decode take."""
        total = self.seconds(speeds)
        return {
            "prefill": self.prompt_tokens / speeds.prompt / total,
            "decode": self.reply_tokens / speeds.generate / total,
        }


USES = (
    Use("chat", 8 * 64, 8 * 192),  # turns
    Use("ask", 64, 128),
    Use("ask-long", 2048, 128),
    Use("batch", 64 * 128, 64 * 128, is_batch=True),  # rows
)


class SearchSpace(NamedTuple):
    """The default settings, for one sequence and for a batch, and what can be tried instead.

    `threads` are thread counts other than the default; `slots` is the number of sequences that fit in memory.
    """

    baseline: Tuning
    batch_baseline: Tuning
    threads: tuple[int, ...]
    slots: int
    layers: int


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


def thread_counts_to_try(default: int, usable: int) -> tuple[int, ...]:
    """Thread counts besides the default: all available, half of the default, and one less."""
    return tuple(
        count for count in sorted({usable, default - 1, (default + 1) // 2}) if count >= 1 and count != default
    )


def loads_differently(tuning: Tuning, other: Tuning) -> bool:
    """Whether the load time may differ between two tunings."""
    return (tuning.repack, tuning.gpu_layers) != (other.repack, other.gpu_layers)


def thread_counts(tuning: Tuning) -> tuple[int | None, int | None]:
    """Threads for decode and for prefill."""
    return tuning.n_threads, tuning.n_threads_batch


def numeric_settings(tuning: Tuning) -> Tuning:
    """Settings that can change computed values, and not only who computes them and when."""
    return replace(tuning, slots=None, n_threads=None, n_threads_batch=None)


def differences(tuning: Tuning, baseline: Tuning) -> Tuning:
    """Settings that differ from the baseline."""
    return Tuning(**{name: value for name, value in tuning.overrides.items() if value != getattr(baseline, name)})
