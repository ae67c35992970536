"""The interface between the engine and a library that runs models."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from cerebrum_cli.core.conversation import PromptPart, Text, Tokens
from cerebrum_cli.core.events import Event, NoticeEvent, TokenLogprob
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.control import Constraint


class TokenRow(NamedTuple):
    """One token of a step: its slot, its position in the slot, and whether its logits are computed."""

    slot: int
    position: int
    token: int
    output: bool


class Checkpoint(NamedTuple):
    """The part of a slot's memory, at `length` tokens, that later tokens overwrite: recurrent states and windows.

    `state` is llama.cpp's, in a buffer of ctypes, whose length is its size.
    """

    length: int
    state: ctypes.Array[ctypes.c_char]


class TokenScore(NamedTuple):
    """Natural logarithm of a token's probability, and whether it is the most likely token."""

    logprob: float
    is_argmax: bool


class Sampler(Protocol):
    """Sampling state of one sequence."""

    def sample(self, row: int) -> int:
        """Sample the next token from row `row` of the last decode, and accept it."""

    def accept(self, token: int) -> None:
        """Accept a token that was not sampled, as the next one."""

    def close(self) -> None:
        """Free the native samplers."""


class Vocabulary(Protocol):
    """The vocabulary of a model; for any thread."""

    def tokenize(self, parts: Iterable[PromptPart]) -> tuple[int, ...]:
        """Tokenize a prompt; untrusted text never becomes a special token."""

    @property
    def size(self) -> int:
        """Number of tokens."""

    @property
    def longest_token(self) -> int:
        """Bytes of text that one token can stand for, at most. The first access takes a tenth of a second."""

    def piece(self, token: int, special: bool = False) -> bytes:
        """Convert a token to its bytes; empty for a control token unless `special`."""

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation (EOS, EOT and similar)."""

    def matches_grammar(self, grammar: str, tokens: Iterable[int]) -> bool:
        """Whether a grammar allows the tokens as a reply or its beginning. Raises GrammarError if it is invalid."""

    def special_token_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of all control and user-defined tokens spelled out in the texts."""

    def special_token_text(self, name: str) -> str:
        """Text of the vocabulary's `bos` or `eos` token; empty if it has none."""


def continuation(vocabulary: Vocabulary, parts: Iterable[PromptPart]) -> tuple[int, ...]:
    """Tokenize text that continues other text: without BOS, and without the space that a vocabulary may put first."""
    anchor = vocabulary.tokenize((Text("a"),))[-1]
    tokens = vocabulary.tokenize((Tokens((anchor,)), *parts))
    return tokens[tokens.index(anchor) + 1 :]


class Backend(Vocabulary, Protocol):
    """A loaded model and its KV cache: `slots` sequences of up to `capacity` tokens each; `reserve` sets both.

    Methods other than those of its vocabulary may be called from one thread only.
    """

    @property
    def repacks(self) -> bool:
        """Whether the model was loaded with weights in CPU-optimized layouts, where those exist."""

    @property
    def context_size(self) -> int:
        """Maximum length of a sequence, in tokens."""

    @property
    def capacity(self) -> int:
        """Length of a sequence, in tokens, that memory is allocated for; 0 before the first `reserve`."""

    @property
    def slots(self) -> int:
        """Number of concurrent sequences; before the first `reserve`, the number requested."""

    @property
    def batch_size(self) -> int:
        """Maximum number of rows in one decode; at least `slots`."""

    def slots_for(self, length: int) -> int:
        """Number of the requested slots for which memory suffices, if each holds `length` tokens; for any thread."""

    def reserve(self, length: int, slots: int | None = None) -> NoticeEvent | None:
        """Allocate an empty KV cache for sequences of at least `length` tokens, with at most `slots` slots.

        There are fewer slots if memory is short; None is the number requested.

        Return a notice if the settings had to be replaced. Raises EngineError if there is not enough memory.
        """

    @property
    def kv_unified(self) -> bool:
        """Whether all slots share one KV cache of `capacity` tokens, with common prefixes stored once."""

    def prefill_chunk(self, position: int) -> int:
        """Maximum number of prompt tokens to evaluate in one step from this position."""

    def reusable_prefix(self, length: int) -> int:
        """Number of the first `length` tokens of a slot that another prompt may reuse."""

    def decode(self, rows: Sequence[TokenRow]) -> bool:
        """Evaluate the rows, ascending by slot; False if interrupted, and then `length` gives what each slot holds."""

    def logprob(self, row: int, token: int) -> float:
        """Natural logarithm of a token's probability in row `row` of the last decode."""

    def top_tokens(self, row: int, count: int) -> list[TokenLogprob]:
        """The likeliest tokens in row `row` of the last decode, the likeliest first."""

    @property
    def max_outputs(self) -> int:
        """Maximum number of rows with logits in one decode of given texts, so that their memory stays small."""

    def score_tokens(self, targets: Iterable[tuple[int, int]]) -> list[TokenScore]:
        """Score tokens by the logits of the last decode; `targets` are pairs of row and token, ascending by row."""

    def length(self, slot: int) -> int:
        """Number of tokens in the slot."""

    def sampler(
        self, params: SamplingParams, seed: int, constraint: Constraint | None, prompt: Sequence[int]
    ) -> Sampler:
        """Create a sampler; penalties start with the end of the prompt."""

    def copy(self, source: int, target: int) -> None:
        """Copy the contents of the source slot to the target slot, possibly not before the next decode."""

    def has_pending_copy(self, slot: int) -> bool:
        """Whether the next decode completes a copy to or from the slot; until then, no state is saved or loaded."""

    def trim(self, slot: int, length: int) -> bool:
        """Remove positions from `length` on from the slot; False, and no change, if the model does not support it."""

    def clear(self, slot: int) -> None:
        """Empty the slot."""

    def clear_all(self) -> None:
        """Empty all slots, whatever they hold; nothing without memory."""

    def is_trimmable(self, held: int, length: int) -> bool:
        """Whether this model can trim any slot of `held` tokens to `length`."""

    def can_trim_slot(self, slot: int, length: int) -> bool:
        """Whether the slot can be trimmed to `length`: from sliding windows, a few tokens can be removed."""

    @property
    def can_trim(self) -> bool:
        """Whether tokens can be removed from the end of a slot, as from any memory but a recurrent state."""

    @property
    def max_draft(self) -> int:
        """Maximum number of drafted tokens of a sequence in one step: as many as can be removed after it."""

    @property
    def needs_checkpoints(self) -> bool:
        """Whether trimming a slot may require a checkpoint: with recurrent states or sliding windows."""

    @property
    def checkpoint_budget(self) -> int:
        """Bytes of checkpoints that memory was planned for; 0 with separate KV caches, and if none are needed."""

    def checkpoint(self, slot: int, is_whole: bool = False) -> Checkpoint:
        """Copy what later tokens overwrite, so that the slot can return here.

        With `is_whole`, copy the whole state, which can be restored into any slot.
        """

    def restore(self, slot: int, checkpoint: Checkpoint, is_whole: bool = False) -> bool:
        """Trim the slot to a checkpoint that was taken of the same tokens; False, and an empty slot, if that fails.

        With `is_whole`, the slot may hold anything.
        """

    @property
    def state_kind(self) -> str | None:
        """Build, cache types and layout that a saved state depends on; None if states cannot be saved."""

    def state_size(self, slot: int) -> int:
        """Approximate number of bytes that `save_state` writes."""

    def save_state(self, slot: int, path: Path) -> None:
        """Write the slot to a file, replacing it; EngineError if that fails."""

    def load_state(self, slot: int, path: Path) -> bool:
        """Restore the slot from `save_state`'s file, ignoring trailing bytes; False, and an empty slot, if rejected."""

    @property
    def carries_states(self) -> bool:
        """Whether a state of this context can be loaded into a longer one."""

    def close(self) -> None:
        """Free the model and its KV cache."""


class StopFlag:
    """A flag that native code can read without Python: one byte, `0` to continue, `1` to stop."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(b"0")

    def set(self) -> None:
        """Interrupt the running load or decode."""
        self.buffer[0] = b"1"

    def clear(self) -> None:
        self.buffer[0] = b"0"

    def __bool__(self) -> bool:
        return self.buffer[0] == b"1"


OpenBackend = Callable[[Callable[[Event], None], StopFlag], Backend]
"""Load a model and report progress; the flag interrupts the load and all later decodes."""
