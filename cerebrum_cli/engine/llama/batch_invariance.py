"""Batch invariance on the CPU: evaluate a token the same, whatever runs beside it and however much was reused.

llama.cpp's flash attention takes other code paths, with other last bits, for 64 and more rows of one sequence, and for
a single row before 512 cells (ggml_compute_forward_flash_attn_ext_f16 in ggml-cpu/ops.cpp). So the position of a prompt
token determines its chunk, and a single row is padded with a second one.

Matrix multiplications take another kernel too, by the number of rows in the whole step: from 2 rows on for floats
(ggml-cpu/llamafile/sgemm.cpp), from 8 for K-quants (ggml-cpu/tiled/tiled.cpp), and in groups of 4 for repacked ones
(ggml-cpu/repack.cpp). `pad_step` pads every step to a number of rows for which all of them take the same one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from cerebrum_cli.engine.step import TokenRow

PaddedStep = tuple[list[TokenRow], list[int]]  # all its rows, and the index of each given row among them
PREFILL_CHUNK = 60  # rows, below llama.cpp's threshold
CHUNKED_POSITIONS = 1024  # beyond these, whole batches are used: they are faster in long contexts
PAD_FROM_POSITION = 256  # before it, single rows take the same code path as others

MIN_ROWS = 8  # of a step, and a multiple of 4, for stable kernels
ROW_GROUP = 4
PADDING_ROOM = MIN_ROWS  # tokens beyond a sequence that `pad_step` may add to its slot


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


def pad_step(rows: Sequence[TokenRow], slots: int, length: Callable[[int], int]) -> PaddedStep:
    """Pad a step to a stable number of rows.

    Every slot from the first to the last one gets the same number of rows, or llama.cpp would split the step. A slot's
    padding follows its own rows, or the `length(slot)` tokens that it holds; remove it after the step. The last matrix
    multiplications have only the rows whose logits are computed: their number is stable too.
    """
    by_slot: dict[int, list[TokenRow]] = {}
    for row in rows:
        by_slot.setdefault(row.slot, []).append(row)
    first = min(by_slot)
    last = max(by_slot)
    width, depth = _stable_shape(last - first + 1, max(map(len, by_slot.values())), slots)
    first = min(first, slots - width)
    padded: list[TokenRow] = []
    batch_indices: list[int] = []
    for slot in range(first, first + width):
        own = by_slot.get(slot, [])
        end = own[-1].position + 1 if own else length(slot)
        padding = [TokenRow(slot, end + index, rows[0].token, False) for index in range(depth - len(own))]
        batch_indices += range(len(padded), len(padded) + len(own))
        padded += own + padding
    _mark_outputs(padded)
    return padded, batch_indices


def _mark_outputs(rows: list[TokenRow]) -> None:
    """Compute the logits of a stable number of rows: of the last ones, from the first whose logits are wanted."""
    outputs = [index for index, row in enumerate(rows) if row.output]
    if outputs:
        start = min(outputs[0], len(rows) - MIN_ROWS) // ROW_GROUP * ROW_GROUP
        rows[start:] = [row._replace(output=True) for row in rows[start:]]


@cache
def _stable_shape(width: int, depth: int, slots: int) -> tuple[int, int]:
    """The smallest stable step for at least `width` slots and `depth` rows of each: its numbers of both."""
    shapes = [
        (wide, deep)
        for wide in range(width, slots + 1)
        for deep in range(depth, depth + MIN_ROWS)
        if wide * deep >= MIN_ROWS and wide * deep % ROW_GROUP == 0
    ]
    return min(shapes, key=lambda shape: shape[0] * shape[1])


def stable_slots(slots: int) -> int:
    """The largest number of slots up to `slots` for which steps need little padding."""
    return slots // ROW_GROUP * ROW_GROUP or min(slots, 2)
