"""Architectures whose layers differ by their number alone, so that a layer that gets another one would change. Pure.

Source: the calls of `load_swa_pattern`, and `n_no_rope_layer_step`, in llama.cpp's src/models (0c1e57098).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import Table, Value


class Windows(NamedTuple):
    """One layer of every so many sees all tokens, the last of them unless it is the first; the others see a window.

    They do where a file states the window's length, or `always`.
    """

    period: int
    dense_first: bool = False
    always: bool = False

    def has(self, layer: int) -> bool:
        """Return whether a layer sees only a window; all do where the period is 0."""
        return not self.period or layer % self.period != (0 if self.dense_first else self.period - 1)


WINDOWED = {
    "afmoe": Windows(4),
    "cohere2": Windows(4),
    "cohere2moe": Windows(4, dense_first=True),
    "exaone-moe": Windows(4),
    "exaone4": Windows(4),
    "gemma2": Windows(2, always=True),
    "gemma3": Windows(6),
    "gemma3n": Windows(5),
    "gpt-oss": Windows(2),
    "laguna": Windows(4, dense_first=True),
    "llama4": Windows(4),
    "olmo2": Windows(4),
    "plamo3": Windows(8),
    "smallthinker": Windows(4, dense_first=True),
}
PATTERN = "attention.sliding_window_pattern"
# At every so manieth place these know no positions, or attend in another way, and no array of a file tells where.
UNPLACED = {"afmoe": 4, "llama4": 4, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "smollm3": 4}


def tells_windows(table: Table, name: str) -> bool:
    """Return whether a hyperparameter says which layers see only a window, where files may leave that out."""
    return table.architecture in WINDOWED and name == PATTERN


def window_pattern(first: Table, layers: Sequence[tuple[Table, int]]) -> dict[str, Value]:
    """Return what says which layers of a merge see only a window, where files of this architecture may leave it out."""
    windows = WINDOWED.get(first.architecture)
    if windows is None or not (windows.always or first.hyperparameter("attention.sliding_window")):
        return {}
    seen = tuple(sees_window(table, layer, windows) for table, layer in layers)
    return {f"{first.architecture}.{PATTERN}": Value("ARRAY", seen, "BOOL")}


def sees_window(table: Table, layer: int, windows: Windows) -> bool:
    """Return whether a layer of a model sees only a window."""
    said = table.layer_value(f"{table.architecture}.{PATTERN}", layer)
    if isinstance(said, bool):
        return said
    return (windows if said is None else windows._replace(period=said)).has(layer)


def require_phase(table: Table, layers: Iterable[tuple[int, Sequence[tuple[str, int]]]]) -> None:
    """Raise MergeError where a layer comes to a place at which its architecture evaluates it in another way."""
    period = table.hyperparameter("full_attention_interval") or UNPLACED.get(table.architecture, 1)
    for number, sources in layers:
        for name, layer in sources:
            if (number - layer) % period:
                kind = table.architecture
                what = f"layer {layer} of {name} comes to place {number}, and {kind} tells layers apart by place"
                raise MergeError(what, f"move layers by multiples of {period}")
