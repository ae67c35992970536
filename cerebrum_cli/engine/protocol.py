"""Interface that a search measures through: timing and comparing settings of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.drafts.costs import StepCosts
from cerebrum_cli.engine.load_options import LoadOptions, Tuning
from cerebrum_cli.engine.memory import Device

JobKind = Literal["prefill", "decode"]
JOB_KINDS: tuple[JobKind, ...] = ("prefill", "decode")


class Job(NamedTuple):
    """Work to time: a number of prompt tokens to prefill, or of steps to decode in one or several sequences."""

    kind: JobKind
    tokens: int
    sequences: int = 1


class Closeness(NamedTuple):
    """How similar two evaluations of a text are.

    `top1_agreement` is the share of tokens after which both rank the same next token first. `agreement` also counts
    tokens that the reference considers nearly as likely as its own choice: rounding alone decides between those, and a
    model with random weights chooses differently in 5 % of the cases. `mean_kld` is the mean Kullback-Leibler
    divergence of the probabilities, in nats.
    """

    top1_agreement: float
    agreement: float
    mean_kld: float


MIN_AGREEMENT = 0.97  # below this, the output counts as changed


class LoadStats(NamedTuple):
    """Load time in seconds, and peak memory of the process in bytes."""

    load_s: float
    peak_memory: int


class TrialError(EngineError):
    """These settings cannot be tried on this machine; the message gives the reason."""


class Bench(Protocol):
    """Measures tunings of one model; every method but `close` may raise TrialError."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """GPUs found."""

    @property
    def disturbed_jobs(self) -> int:
        """Number of jobs during which other programs used the CPU, in every attempt."""

    def speed(self, tuning: Tuning, job: Job) -> float:
        """Measure tokens per second; several sequences are evaluated like those of a batch."""

    def step_costs(self, tuning: Tuning, rows: tuple[int, ...], seconds: float) -> StepCosts:
        """Measure steps of these numbers of rows of one sequence, ascending from 1, for about `seconds`.

        If time is short, only some of them are measured.
        """

    def load_stats(self, tuning: Tuning) -> LoadStats:
        """Load time and peak memory of the process with these settings."""

    def reload(self, tuning: Tuning) -> float:
        """Load the model again and measure the seconds."""

    def closeness(self, reference: Tuning, tuning: Tuning, tokens: int) -> Closeness:
        """Compare two tunings on the first tokens of the probe text."""

    def close(self) -> None:
        """End all processes and delete temporary files."""


class FileBench(Bench, Protocol):
    """A bench whose model file can be compared with the file of another bench."""

    def write_logits(self, tuning: Tuning, tokens: int) -> Path:
        """Write the logits for the first tokens of the probe text to a file that exists until `close`."""

    def compare_logits(self, logits: Path, tuning: Tuning, tokens: int) -> Closeness:
        """Compare with the logits that another bench wrote for the same tokens."""

    def release(self) -> None:
        """End all processes to free memory; the next measurement starts them again."""


FileBenchFactory = Callable[[LoadOptions, tuple[Path, ...]], FileBench]
"""Creates the bench of a model from its options and all its files."""

BenchFactory = Callable[[LoadOptions, tuple[Path, ...], Path, tuple[Device, ...]], FileBench]
"""Like FileBenchFactory, also from a directory for temporary files and the known GPUs; tests use a scripted bench."""
