"""The seam under a search for the fastest settings: where ways of opening a model are timed and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.plan import Device, Tuning


class Job(NamedTuple):
    """Something to be timed: so many tokens of a prompt read, or so many steps said, of one sequence or of several."""

    kind: Literal["read", "say"]
    tokens: int
    sequences: int = 1


class Closeness(NamedTuple):
    """How alike two ways of evaluating a text are.

    `argmax` is the share of its tokens after which both think the same one likeliest. In `agreement` what the reference
    thinks nearly as likely as its own choice counts as the same: which of two such is chosen hangs on the last bits of
    either way, and on a model of random weights 5 % of choices do. `divergence` is the mean Kullback-Leibler divergence
    of their probabilities in nats.
    """

    top1_agreement: float
    agreement: float
    mean_kld: float


LEAST_AGREEMENT = 0.97  # what chooses other tokens more often than that says other things


class Facts(NamedTuple):
    """What a trial knows of itself: seconds its model took to load, and the most memory it had, in bytes."""

    load_s: float
    peak: int


class NoTrial(EngineError):
    """This way of opening the model cannot be tried here; `what` says why."""


class Bench(Protocol):
    """Where ways of opening a model are tried; `NoTrial` is raised by all but `close` where one cannot be."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The accelerators there are."""

    @property
    def disturbances(self) -> int:
        """How many jobs were not done without other programs on the same processors, however often they were tried."""

    def speed(self, tuning: Tuning, job: Job) -> float:
        """Return tokens a second; several sequences are evaluated as those of a batch are."""

    def facts(self, tuning: Tuning) -> Facts:
        """Return what is known of the process this is tried in."""

    def reload(self, tuning: Tuning) -> float:
        """Load the model once more in this way and return the seconds that took."""

    def closeness(self, reference: Tuning, tuning: Tuning, tokens: int) -> Closeness:
        """Compare two ways of evaluating the first tokens of the probe text."""

    def close(self) -> None:
        """End all that is open."""


class FileBench(Bench, Protocol):
    """A bench whose file can be compared with another bench's."""

    def written(self, tuning: Tuning, tokens: int) -> Path:
        """Return the file, kept until this is closed, of the logits after the first tokens of the probe text."""

    def compared(self, logits: Path, tuning: Tuning, tokens: int) -> Closeness:
        """Compare with logits that were written, of another file's evaluation of the same tokens too."""

    def free(self) -> None:
        """End all processes; what is asked next opens them again."""
