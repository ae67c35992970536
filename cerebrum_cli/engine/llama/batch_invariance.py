"""Batch invariance on the CPU: evaluate a token the same, whatever runs beside it and however much was reused.

llama.cpp's flash attention takes other code paths, with other last bits, for 64 and more rows of one sequence, and for
a single row before 512 cells (ggml_compute_forward_flash_attn_ext_f16 in ggml-cpu/ops.cpp). So the position of a prompt
token determines its chunk, and a single row is padded with a second one.

Matrix multiplications of floats, K-quants and I-quants still depend on the number of rows in the whole step
(ggml-cpu/llamafile/sgemm.cpp, ggml-cpu/tiled/tiled.cpp and ggml-cpu/repack.cpp); those of Q4_0, Q8_0 and similar types
do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cerebrum_cli.engine.step import TokenRow

PaddedStep = tuple[list[TokenRow], list[int]]  # all its rows, and the index of each given row among them
PREFILL_CHUNK = 60  # rows, below llama.cpp's threshold
CHUNKED_POSITIONS = 1024  # beyond these, whole batches are used: they are faster in long contexts
PAD_FROM_POSITION = 256  # before it, single rows take the same code path as others


def prefill_chunk(position: int, batch_size: int) -> int:
    if position < CHUNKED_POSITIONS:
        return min(PREFILL_CHUNK, CHUNKED_POSITIONS - position)
    return batch_size - position % batch_size


def reusable_prefix(length: int, batch_size: int) -> int:
    """Number of the first tokens of a slot that were evaluated as they would be in any other prompt."""
    return length if length <= CHUNKED_POSITIONS else length - length % batch_size


def pad_single_rows(rows: Sequence[TokenRow], slots: int, capacity: int, length: Callable[[int], int]) -> PaddedStep:
    """Pad single rows of a step.

    llama.cpp evaluates rows of consecutive slots together. The padding is one more token in a slot beside it that has
    no rows in this step and holds `length(slot)` tokens, below its `capacity`; remove that token after the step.
    """
    counts = Counter(row.slot for row in rows)
    padded: list[TokenRow] = []
    batch_indices = []
    for row in rows:
        above = row.slot + 1
        below = row.slot - 1
        is_single = counts[row.slot] == 1 and not counts[above] and not counts[below]
        is_alone = is_single and not (padded and padded[-1].slot == below)  # no padding of another row is below
        beside = (above, below) if is_alone and row.position >= PAD_FROM_POSITION else ()
        free = [slot for slot in beside if 0 <= slot < slots and length(slot) < capacity][:1]
        pair = [row, *(TokenRow(slot, length(slot), row.token, False) for slot in free)]
        pair.sort(key=lambda row: row.slot)
        batch_indices.append(len(padded) + pair.index(row))
        padded += pair
    return padded, batch_indices
