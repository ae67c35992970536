"""How close the output of two model files is, also if memory holds only one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cerebrum_cli.engine.load_options import Tuning
from cerebrum_cli.engine.protocol import Closeness, FileBench, TrialError

T = TypeVar("T")

PROBE_TOKENS = 256


def file_closeness(reference: FileBench, other: FileBench, trained_context: int) -> Closeness:
    """Compare two files with default settings on the first tokens of the probe text. May raise TrialError."""
    count, default = min(PROBE_TOKENS, trained_context), Tuning()
    logits = retry_alone(other, lambda: reference.write_logits(default, count))
    return retry_alone(reference, lambda: other.compare_logits(logits, default, count))


def retry_alone(other: FileBench, work: Callable[[], T]) -> T:
    """Do some work; if memory cannot hold both files, unload the other one and try again."""
    try:
        return work()
    except TrialError:
        other.release()
        return work()
