"""How far the output of one quantization of a model is from that of another."""

from __future__ import annotations

from contextlib import closing

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.closeness import file_closeness
from cerebrum_cli.engine.protocol import Closeness, FileBenchFactory, TrialError
from cerebrum_cli.inference.load_options import load_options
from cerebrum_cli.models.generative import require_generative
from cerebrum_cli.models.model import Model


def measure_divergence(reference: Model, other: Model, settings: Settings, open_bench: FileBenchFactory) -> Closeness:
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
    context = min(model.trained_context for model in (reference, other))
    with (
        closing(open_bench(load_options(reference, settings), reference.paths)) as reference_bench,
        closing(open_bench(load_options(other, settings), other.paths)) as other_bench,
    ):
        try:
            return file_closeness(reference_bench, other_bench, context)
        except TrialError as error:
            raise EngineError(f"cannot compare these models: {error.message}", error.hint) from error
