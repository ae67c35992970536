"""Batch invariance on the CPU: evaluate a token the same, whatever runs beside it and however much was reused.

llama.cpp's flash attention takes other code paths, with other last bits, for 64 and more rows of one sequence, and for
a single row before 512 cells (ggml_compute_forward_flash_attn_ext_f16 in ggml-cpu/ops.cpp). So the position of a prompt
token determines its chunk, and a single row is padded with a second one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cerebrum_cli.engine.backend import Row

PREFILL_CHUNK = 60  # rows, below llama.cpp's threshold
CHUNKED_POSITIONS = 1024  # beyond these, whole batches are used: they are faster in long contexts
PAD_FROM_POSITION = 256  # before it, single rows take the same code path as others


def prefill_chunk(position: int, batch_size: int) -> int:
    """Number of prompt tokens to evaluate in one step from a position."""
    if position < CHUNKED_POSITIONS:
        return min(PREFILL_CHUNK, CHUNKED_POSITIONS - position)
    return batch_size - position % batch_size


def reusable_prefix(length: int, batch_size: int) -> int:
    """Number of the first tokens of a slot that were evaluated as they would be in any other prompt."""
    return length if length <= CHUNKED_POSITIONS else length - length % batch_size


def pad_single_rows(
    rows: Sequence[Row], length: Callable[[int], int], has_room: Callable[[int], bool]
) -> tuple[list[Row], list[int]]:
    """Pad single rows of a step; return all rows, and the index of each given row among them.

    llama.cpp evaluates rows of consecutive slots together. The padding is one more token in a slot beside it that has
    no rows in this step and holds `length(slot)` tokens, if it `has_room`; remove that token after the step.
    """
    counts = Counter(row.slot for row in rows)
    padded: list[Row] = []
    batch_indices: list[int] = []
    for row in rows:
        above, below = row.slot + 1, row.slot - 1
        is_single = counts[row.slot] == 1 and not counts[above] and not counts[below]
        is_alone = is_single and not (padded and padded[-1].slot == below)  # no padding of another row is below
        if is_alone and row.position >= PAD_FROM_POSITION:
            free = [slot for slot in (above, below) if has_room(slot)][:1]
        else:
            free = []
        pair = [row, *(Row(slot, length(slot), row.token, False) for slot in free)]
        pair.sort(key=lambda each: each.slot)
        batch_indices.append(len(padded) + pair.index(row))
        padded += pair
    return padded, batch_indices
