"""What tuning is about, as values: how long it may take, what a model is opened for, and the ways that are tried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cerebrum_cli.application.inference.profiles import Speeds, UseName
from cerebrum_cli.engine.plan import Tuning

TOGETHER = 32  # sequences of a batch where nothing else was measured


class Budget(NamedTuple):
    """How long is measured: seconds between the usual way and confirming what is best, seconds a run, pairs of runs.

    Then how many tokens of the probe text, and which values of some settings are tried.
    """

    budget: float
    seconds: float
    pairs: int
    probe: int
    micro_batches: tuple[int, ...] = (64, 256, 512)
    slots: tuple[int, ...] = (16, 64)
    tries_cache: bool = True


QUICK = Budget(20.0, 0.4, 1, 128, (), (16,), tries_cache=False)
NORMAL = Budget(80.0, 0.8, 2, 192)
THOROUGH = Budget(1200.0, 3.0, 4, 512, (32, 64, 256, 512, 1024), (4, 8, 16, 24, 48, 64))


class Use(NamedTuple):
    """What a model is opened for, as tokens that are read and said after loading it once; in a batch many at a time."""

    name: UseName
    prompt: int
    reply: int
    many: bool = False

    def seconds(self, speeds: Speeds) -> float:
        """Return how long it takes."""
        return speeds.seconds(self.prompt, self.reply)

    def shares(self, speeds: Speeds) -> dict[str, float]:
        """Return the shares of it that reading and saying have."""
        whole = self.seconds(speeds)
        return {"read": self.prompt / speeds.prompt / whole, "say": self.reply / speeds.generate / whole}


USES = (
    Use("chat", 8 * 64, 8 * 192),  # turns
    Use("ask", 64, 128),
    Use("ask-long", 2048, 128),
    Use("batch", 64 * 128, 64 * 128, many=True),  # rows
)


class SearchSpace(NamedTuple):
    """What a search must know of where it is done: the ways of opening a model as they are, and what could be tried.

    `threads` are numbers of threads other than the usual one; `slots` the most sequences memory holds.
    """

    usual: Tuning
    usual_many: Tuning
    threads: tuple[int, ...]
    slots: int
    layers: int


@dataclass(slots=True)
class Candidate:
    """A way of opening the model that was tried, and how fast it was; `dropped` says why it cannot be used.

    What of reading and saying was `measured` is its own; of the rest it is as fast as what it was tried on top of.
    """

    tuning: Tuning
    many: bool
    speeds: Speeds | None = None
    agreement: float | None = None
    dropped: str | None = None
    measured: frozenset[str] = frozenset()

    @property
    def known(self) -> Speeds:
        """How fast it was; it was measured."""
        assert self.speeds
        return self.speeds


class Stage(NamedTuple):
    """A change that is tried: what it is called, whether for many sequences, the settings, and whether at any cost."""

    what: str
    many: bool
    change: dict[str, Any]
    is_essential: bool = False


def other_threads(usual: int, usable: int) -> tuple[int, ...]:
    """Return numbers of threads to try beside the usual one: all that can run, half as many, and one less."""
    return tuple(count for count in sorted({usable, usual - 1, (usual + 1) // 2}) if count >= 1 and count != usual)


def loads_otherwise(tuning: Tuning, other: Tuning) -> bool:
    """Return whether loading may take another time with one than with the other."""
    return (tuning.repack, tuning.gpu_layers) != (other.repack, other.gpu_layers)


def threads_of(tuning: Tuning) -> tuple[int | None, int | None]:
    """Return how many threads say, and how many read."""
    return tuning.n_threads, tuning.n_threads_batch


def numeric(tuning: Tuning) -> Tuning:
    """Return what of a tuning decides which numbers are computed, and not only who computes them when."""
    return replace(tuning, slots=None, n_threads=None, n_threads_batch=None)


def unusual(tuning: Tuning, usual: Tuning) -> Tuning:
    """Return what of a tuning is not as usual."""
    return Tuning(**{name: value for name, value in tuning.overrides.items() if value != getattr(usual, name)})
