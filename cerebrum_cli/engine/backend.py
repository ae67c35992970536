"""The seam under the engine: what a library that runs models must offer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from cerebrum_cli.core.events import Event
from cerebrum_cli.core.parts import Part
from cerebrum_cli.core.sampling import SamplingParams


class Row(NamedTuple):
    """One token of one decode step: its slot, its position in that slot, and whether its logits are wanted."""

    slot: int
    position: int
    token: int
    output: bool


class Sampler(Protocol):
    """The sampling state of one sequence."""

    def sample(self, row: int) -> int:
        """Return the next token from the logits of row `row` of the last decode, and remember it."""

    def close(self) -> None:
        """Free what the sampler holds."""


class Backend(Protocol):
    """A loaded model and its memory: `slots` sequences of up to `capacity` tokens each, which `reserve` decides.
    One thread calls everything but `tokenize` and the other questions about the vocabulary.
    """

    @property
    def context_size(self) -> int:
        """The longest a sequence may become, in tokens."""

    @property
    def capacity(self) -> int:
        """The length there is memory for now; 0 at first."""

    @property
    def slots(self) -> int:
        """How many sequences live beside one another; before memory is made, how many were asked for."""

    @property
    def batch_size(self) -> int:
        """The most rows of one decode; at least `slots`."""

    def tokenize(self, parts: Iterable[Part]) -> tuple[int, ...]:
        """Return the ids of a prompt; pasted text never becomes a special token."""

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return the bytes a token stands for; a control token is empty unless `special`."""

    def is_eog(self, token: int) -> bool:
        """Return whether the token ends a generation (EOS, EOT and their kin)."""

    def special_token_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Return the ids of all control and user-defined tokens spelled out in these texts."""

    def special_token_text(self, name: str) -> str:
        """Return the spelling of the vocabulary's `bos` or `eos` token; empty if it has none."""

    def reserve(self, length: int) -> None:
        """Make new, empty memory for sequences of at least `length` tokens: for fewer of them where it runs short."""

    @property
    def kv_unified(self) -> bool:
        """Whether all slots share `capacity` tokens of memory, each beginning they have in common held once."""

    def prefill_chunk(self, position: int) -> int:
        """Return how many tokens of a prompt a step should read at most, from this position on."""

    def reusable_prefix(self, length: int) -> int:
        """Return how many of the first `length` tokens of a slot may be taken over by another prompt."""

    def decode(self, rows: Sequence[Row]) -> bool:
        """Evaluate the rows, ascending by slot; False if it was interrupted: then ask `length` of each slot."""

    def logprob(self, row: int, token: int) -> float:
        """Return the natural logarithm of the probability row `row` of the last decode gives a token."""

    def length(self, slot: int) -> int:
        """Return how many tokens the slot holds."""

    def sampler(self, params: SamplingParams, seed: int, grammar: str | None, prompt: Sequence[int]) -> Sampler:
        """Return a fresh sampler; a repeat penalty begins with the end of the prompt."""

    def copy(self, source: int, target: int) -> None:
        """Make the target slot hold what the source holds."""

    def trim(self, slot: int, length: int) -> bool:
        """Forget what the slot holds from position `length` on; False if this model cannot, and nothing is changed."""

    def clear(self, slot: int) -> None:
        """Forget all the slot holds."""

    def is_trimmable(self, held: int, length: int) -> bool:
        """Return whether a slot holding `held` tokens can go back to `length`, as far as the model alone can tell."""

    @property
    def state_kind(self) -> str | None:
        """What a kept state must agree in beside the model: build, types, shape of memory; None if none can be kept."""

    def state_size(self, slot: int) -> int:
        """Return about how many bytes `save` would write."""

    def save_state(self, slot: int, path: Path) -> None:
        """Write what the slot holds to a file, replacing it; EngineError if it cannot be written."""

    def load_state(self, slot: int, path: Path) -> bool:
        """Make the slot hold what `save` wrote; bytes behind it do not matter. False if refused: then it is empty."""

    def close(self) -> None:
        """Free model and memory."""


class StopFlag:
    """A flag that native code can read without Python: one byte, `0` go on, `1` stop."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(b"0")

    def set(self) -> None:
        """Ask the running load or decode to stop."""
        self.buffer[0] = b"1"

    def clear(self) -> None:
        """Let the next one run."""
        self.buffer[0] = b"0"

    def __bool__(self) -> bool:
        return self.buffer[0] == b"1"


OpenBackend = Callable[[Callable[[Event], None], StopFlag], Backend]
"""Load a model, telling its progress, and return it; the flag interrupts the loading and all later decodes."""
