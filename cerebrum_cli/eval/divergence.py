"""How far the output of one quantization of a model is from that of another."""

from __future__ import annotations

from contextlib import closing

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.load_options import Tuning
from cerebrum_cli.engine.trials import BenchFactory, Closeness, TrialError
from cerebrum_cli.inference.load_options import load_options
from cerebrum_cli.models.generative import require_generative
from cerebrum_cli.models.model import Model

PROBE_TOKENS = 256


def measure_divergence(reference: Model, other: Model, settings: Settings, open_bench: BenchFactory) -> Closeness:
    """Compare two quantizations of one model on a probe text, each in a child process.

    Raises ModelFileError, UsageError if their vocabularies or layers differ, EngineError if they cannot be loaded.
    """
    for model in (reference, other):
        require_generative(model.path, model.header)
    first, second = (
        (model.vocabulary, model.header.architecture, model.header.n_layers) for model in (reference, other)
    )
    if first != second:
        raise UsageError(
            f"{reference.label} and {other.label} are not quantizations of the same model",
            "compare two with the same vocabulary, architecture and number of layers",
        )
    count, default = min(PROBE_TOKENS, reference.trained_context, other.trained_context), Tuning()
    with (
        closing(open_bench(load_options(reference, settings), reference.paths)) as reference_bench,
        closing(open_bench(load_options(other, settings), other.paths)) as other_bench,
    ):
        try:
            logits = reference_bench.write_logits(default, count)
            reference_bench.release()  # memory may hold only one of them
            return other_bench.compare_logits(logits, default, count)
        except TrialError as error:
            raise EngineError(f"cannot compare these models: {error.message}", error.hint) from error
