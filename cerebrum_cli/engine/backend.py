"""The interface between the engine and a library that runs models."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.sampling import SamplingParams, TokenBias
from cerebrum_cli.core.vocabulary import Vocabulary
from cerebrum_cli.engine.step import Checkpoint, Constraint, TokenRow, TokenScore


class Sampler(Protocol):
    """Sampling state of one sequence."""

    def sample(self, row: int) -> int:
        """Sample the next token from row `row` of the last decode, and accept it."""

    def accept(self, token: int) -> None:
        """Accept a token that was not sampled, as the next one."""

    def close(self) -> None:
        """Free the native samplers."""


class Context(Protocol):
    """The slots of a KV cache, each with the tokens of one sequence; for one thread.

    `pending_copies` are the slots that a copy reads or writes which the next decode completes; until then, no state of
    theirs is saved or loaded.
    """

    pending_copies: set[int]

    def length(self, slot: int) -> int:
        """Number of tokens in the slot."""

    def copy(self, source: int, target: int) -> None:
        """Copy the contents of the source slot to the target slot, possibly not before the next decode."""

    def trim_limit(self, slot: int) -> float:
        """The shortest length, besides 0, that the slot can be trimmed to; infinity if its state is not valid."""

    def trim(self, slot: int, length: int) -> bool:
        """Remove positions from `length` on from the slot; False, and no change, below its limit."""

    def clear(self, slot: int) -> None:
        """Empty the slot."""

    def clear_all(self) -> None:
        """Empty all slots, whatever they hold."""

    def checkpoint(self, slot: int, is_whole: bool = False) -> Checkpoint:
        """Copy what later tokens overwrite, so that the slot can return here.

        With `is_whole`, copy the whole state, which can be restored into any slot.
        """

    def restore(self, slot: int, checkpoint: Checkpoint) -> bool:
        """Trim the slot to a checkpoint that was taken of the same tokens; False, and an empty slot, if that fails.

        The slot may hold anything if the checkpoint is of a whole state.
        """

    def state_size(self, slot: int) -> int:
        """Approximate number of bytes that `save_state` writes."""

    def save_state(self, slot: int, tokens: array[int], path: Path) -> None:
        """Write the slot with its tokens to a file, replacing it; EngineError if that fails."""

    def load_state(self, slot: int, path: Path) -> bool:
        """Restore the slot from `save_state`'s file, ignoring trailing bytes; False, and maybe a part, if rejected."""


class Backend(Vocabulary, Protocol):
    """A loaded model and, after the first `reserve`, its context; for one thread, except for the vocabulary.

    - `context_size`: maximum length of a sequence, in tokens
    - `capacity`: length of a sequence, in tokens, that memory is allocated for; 0 without a context
    - `slots`: number of concurrent sequences; before the first `reserve`, the number requested
    - `kv_unified`: all slots share one KV cache of `capacity` tokens, with common prefixes stored once
    - `shares_rows`: a row may be a token of several slots; in a unified KV cache, unless the model is recurrent
    - `batch_size`: maximum number of rows in one decode; at least `slots`
    - `max_outputs`: of these, rows with logits in a decode of given texts, so that their memory stays small
    - `max_draft`: draft tokens in one step: as many as can be removed after it; 0 with `batch_invariant`
    - `trimmable_length`: number of tokens up to which a slot can be trimmed to any length: none with recurrent states,
      a window's with sliding windows, and infinite without both
    - `repacks`: whether weights were loaded in CPU-optimized layouts, where those exist
    - `conditions`: options on which the last digits of logits depend, by readable names
    - `checkpoint_budget`: bytes of checkpoints that memory was planned for; 0 with separate KV caches, and if none are
      needed
    """

    context_size: int
    capacity: int
    slots: int
    kv_unified: bool
    shares_rows: bool
    batch_size: int
    max_outputs: int
    max_draft: int
    trimmable_length: float
    checkpoint_budget: int
    repacks: bool

    @property
    def conditions(self) -> JsonDict: ...

    @property
    def context(self) -> Context:
        """The context that `reserve` has created."""

    def slots_for(self, length: int) -> int:
        """Number of the requested slots for which memory suffices, if each holds `length` tokens; for any thread."""

    def reserve(self, length: int, slots: int | None = None) -> None:
        """Create an empty context for sequences of at least `length` tokens, with at most `slots` slots.

        There are fewer slots if memory is short; None is the number requested. Raises EngineError if there is not
        enough memory.
        """

    def grow(self, length: int) -> None:
        """Raise the maximum length of a sequence, as far as memory allows; the next `reserve` allocates it."""

    def prefill_chunk(self, position: int) -> int:
        """Maximum number of prompt tokens to evaluate in one step from this position."""

    def reusable_prefix(self, length: int) -> int:
        """Number of the first `length` tokens of a slot that another prompt may reuse."""

    def decode(self, rows: Sequence[TokenRow]) -> bool:
        """Evaluate the rows; False if interrupted, and then `length` gives what each slot holds.

        With separate KV caches, rows ascend by slot.
        """

    def sampler(
        self, params: SamplingParams, seed: int, constraint: Constraint | None, prompt: Sequence[int]
    ) -> Sampler:
        """Create a sampler; penalties start with the end of the prompt."""

    def score_tokens(self, targets: Iterable[tuple[int, int]]) -> list[TokenScore]:
        """Score tokens by the logits of the last decode; `targets` are pairs of row and token, ascending by row."""

    def sample(self, sampler: Sampler, row: int, bias: TokenBias) -> int:
        """Sample the next token from a row of the last decode, with a bias of the logit of one."""

    @property
    def state_kind(self) -> str | None:
        """Build, cache types and layout that a state on disk depends on; None if the prompt cache cannot use any."""

    def close(self, frees: bool = True) -> None:
        """End what runs; free the model and its context, unless the process ends, whose memory the system frees."""
