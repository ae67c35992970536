"""Have a CPU evaluate a token the same, whatever runs beside it and however much of its prompt was copied.

llama.cpp's flash attention takes other ways, with other last bits, for steps of 64 rows of a sequence and more, and for
a row that stands alone before 512 cells (ggml_compute_forward_flash_attn_ext_f16 in ggml-cpu/ops.cpp). So a token's
position decides how many are read with it, and a row that would stand alone is given company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cerebrum_cli.engine.backend import Row

PREFILL_CHUNK = 60  # rows of a prompt that are read together, up to
CHUNKED_POSITIONS = 1024  # tokens; from there on in whole steps, which are faster where much has been read before
PAD_FROM_POSITION = 256  # a position; before it a row that stands alone is evaluated as others are


def prefill_chunk(position: int, batch_size: int) -> int:
    """Return how many tokens of a prompt a step reads from a position on."""
    return (
        min(PREFILL_CHUNK, CHUNKED_POSITIONS - position)
        if position < CHUNKED_POSITIONS
        else batch_size - position % batch_size
    )


def reusable_prefix(length: int, batch_size: int) -> int:
    """Return how many of the first tokens of a slot are what they would be in any other prompt."""
    return length if length <= CHUNKED_POSITIONS else length - length % batch_size


def pad_single_rows(rows: Sequence[Row], length: Callable[[int], int]) -> tuple[list[Row], list[int]]:
    """Return the rows of a step with those that keep others company, and where each of the given ones stands then.

    llama.cpp takes rows together whose slots follow one another. Company is a token more in the slot above, which
    nobody lives in; `length` tells how many it holds. It is to be forgotten after the step.
    """
    counts: dict[int, int] = {}
    for row in rows:
        counts[row.slot] = counts.get(row.slot, 0) + 1
    padded: list[Row] = []
    batch_indices: list[int] = []
    for row in rows:
        batch_indices.append(len(padded))
        padded.append(row)
        is_alone = counts[row.slot] == 1 and row.slot - 1 not in counts and row.slot + 1 not in counts
        if is_alone and row.position >= PAD_FROM_POSITION:
            padded.append(Row(row.slot + 1, length(row.slot + 1), row.token, False))
    return padded, batch_indices
