"""A backend without a model: a token is a byte, replies are scripted, and memory is as strict as llama.cpp's.

Every call is checked: positions are consecutive, rows ascend by slot, slots stay within the capacity, only rows with
logits are sampled, and all calls come from one thread.
"""

from __future__ import annotations

import ctypes
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any
from zlib import crc32

from cerebrum_cli.core.conversation import PromptPart, Tokens
from cerebrum_cli.core.errors import EngineError, GrammarError
from cerebrum_cli.core.events import Event
from cerebrum_cli.core.sampling import SamplingParams, TokenBias
from cerebrum_cli.engine.backend import Sampler
from cerebrum_cli.engine.drafter import MAX_DRAFT
from cerebrum_cli.engine.prompt_cache import HEAD
from cerebrum_cli.engine.step import Checkpoint, Constraint, StopFlag, TokenRow, TokenScore

END = 256
MARK = 257  # a control token
FIRST_WORD = 258  # first id of tokens with several bytes
BAD_GRAMMAR = "bad"
DEAD_END_TOKENS = 12
DEAD_END = f"root ::= .{{0,{DEAD_END_TOKENS}}}"  # what follows so many tokens, ends of replies too, is rejected
BODY_END = b"end of scripted state"
FIRST_SHARED_STEP = -1  # stands for the number of the first step with rows of several slots

Model = Callable[[tuple[int, ...], int], int]
"""The next token after the tokens of a slot, for a seed."""


def tokens(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def endless(script: Mapping[str, str]) -> Model:
    """A model that repeats the reply to each prompt endlessly."""
    said = {tokens(prompt): tokens(reply) for prompt, reply in script.items()}

    def model(held: tuple[int, ...], seed: int) -> int:
        prompt = max((prompt for prompt in said if held[: len(prompt)] == prompt), key=len)
        reply, at = said[prompt], len(held) - len(prompt)
        assert not at or held[-1] == reply[(at - 1) % len(reply)]
        return reply[at % len(reply)]

    return model


def replies(script: Mapping[str, str | Sequence[int]]) -> Model:
    """A model that answers each prompt with its reply, whatever the seed."""
    said = {
        tokens(prompt): tokens(reply) if isinstance(reply, str) else tuple(reply) for prompt, reply in script.items()
    }

    def model(held: tuple[int, ...], seed: int) -> int:
        for prompt in sorted(said, key=len, reverse=True):
            whole = (*prompt, *said[prompt], END)
            if len(prompt) <= len(held) < len(whole) and whole[: len(held)] == held:
                return whole[len(held)]
        raise AssertionError(f"nothing is scripted to follow {held}")

    return model


@dataclass(slots=True)
class ScriptedSampler:
    """The sampler of one sequence; checks that each sampled token is evaluated before the next."""

    backend: ScriptedBackend
    seed: int
    expected: tuple[int, ...]
    constraint: Constraint | None = None
    constrained: int = 0  # tokens
    closed: bool = False

    def sample(self, row: int) -> int:
        held = self.backend.outputs[row]
        assert held == self.expected, f"{held} was evaluated, {self.expected} expected"
        token = self.backend.model(held, self.seed)
        if self.constraint:
            self._constrain(self.constraint, token)
        self.expected = held if token == END else (*held, token)  # reasoning may be closed instead
        return token

    def _constrain(self, constraint: Constraint, token: int) -> None:
        text, piece = constraint.text, self.backend.piece(token, special=True).decode("utf-8", "replace")
        if text.stage == "undecided" and not text.precedes_answer(token, piece):
            text.begin_answer()
        if text.stage == "answer":
            if constraint.grammar.text == DEAD_END and self.constrained == DEAD_END_TOKENS:
                raise GrammarError("the grammar rejects every possible next token")
            self.constrained += 1

    def accept(self, token: int) -> None:
        self.expected = (*self.expected, token)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.backend.samplers.remove(self)


@dataclass
class ScriptedBackend:
    """Memory of `slots` sequences; `can_trim=False` is a recurrent model, `fits` the maximum length that memory allows.

    Right after a step, `max_rollback` tokens can be removed from a recurrent model too, but not the first row.
    `fitting_cells` are the tokens that all slots together can hold; `reserved` records length and slots of each memory.
    A token takes 4 bytes of the `checkpoint_budget`. The context grows up to `max_context`.

    By number of a step, `fails` raises an error, `interrupts` stops after some rows, and `holds` waits for the stop
    flag first. `unwritable` fails saves.
    """

    model: Model
    slots: int = 1
    context_size: int = 100
    max_context: int = 0
    batch_size: int = 16
    can_trim: bool = True
    max_rollback: int = 0
    words: tuple[bytes, ...] = ()
    load_events: tuple[Event, ...] = ()
    fits: int = 1_000_000
    fails: dict[int, Exception] = field(default_factory=dict)
    interrupts: dict[int, int] = field(default_factory=dict)
    holds: dict[int, int] = field(default_factory=dict)
    state_kind: str | None = "scripted"
    max_outputs: int = 8
    kv_unified: bool = False
    unwritable: bool = False
    fitting_cells: int = 1_000_000
    biases: list[TokenBias] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    checkpoint_budget: int = 0
    repacks: bool = False
    conditions: dict[str, Any] = field(default_factory=dict)

    requested: int = 0
    reserved: list[tuple[int, int]] = field(default_factory=list)
    capacity: int = 0
    memory: list[list[int]] = field(default_factory=list)
    cells: list[list[object]] = field(default_factory=list)
    pending_copies: set[int] = field(default_factory=set)
    invalid: set[int] = field(default_factory=set)
    removable: dict[int, int] = field(default_factory=dict)
    steps: list[list[TokenRow]] = field(default_factory=list)
    runs_single: bool = True
    evaluated: int = 0
    loads: int = 0
    outputs: dict[int, tuple[int, ...]] = field(default_factory=dict)
    samplers: list[ScriptedSampler] = field(default_factory=list)
    is_held: threading.Event = field(default_factory=threading.Event)
    closed: bool = False
    stop: StopFlag = field(default_factory=StopFlag)
    thread: int | None = None

    def __post_init__(self) -> None:
        self.requested = self.slots
        self.shares_rows = self.kv_unified
        self.max_draft = min(MAX_DRAFT, self.batch_size - 1) if self.can_trim else self.max_rollback
        self.trimmable_length = inf if self.can_trim else 0

    @property
    def context(self) -> ScriptedBackend:
        return self

    def open(self, tell: Callable[[Event], None], stop: StopFlag) -> ScriptedBackend:
        """Load immediately; the engine's `open_backend`."""
        self.stop = stop
        self._working()
        for event in self.load_events:
            tell(event)
        return self

    def tokenize(self, parts: Iterable[PromptPart]) -> tuple[int, ...]:
        return tuple(
            token for part in parts for token in (part.ids if isinstance(part, Tokens) else part.value.encode())
        )

    @property
    def size(self) -> int:
        return FIRST_WORD + len(self.words)

    @property
    def longest_token(self) -> int:
        return max((len("<mark>"), *map(len, self.words)))

    def piece(self, token: int, special: bool = False) -> bytes:
        if token in (END, MARK):
            return {END: b"<end>", MARK: b"<mark>"}[token] if special else b""
        return self.words[token - FIRST_WORD] if token >= FIRST_WORD else bytes([token])

    def is_eog(self, token: int) -> bool:
        return token == END

    def special_token_ids(self, texts: Iterable[str]) -> frozenset[int]:
        return frozenset({MARK for text in texts if "<mark>" in text})

    def special_token_text(self, name: str) -> str:
        return "<end>" if name == "eos" else ""

    def grow(self, length: int) -> None:
        self.context_size = max(self.context_size, min(length, self.max_context))

    def slots_for(self, length: int) -> int:
        return max(1, min(self.requested, self.fitting_cells // length))

    def reserve(self, length: int, slots: int | None = None) -> None:
        self._working()
        assert slots is None or 0 < slots <= self.requested
        assert 0 < length <= self.context_size
        self.memory, self.capacity, self.pending_copies, self.invalid = [], 0, set(), set()
        if length > self.fits:
            raise EngineError(f"no memory for {length} tokens")
        self.slots = self.requested if self.kv_unified else min(self.slots_for(length), slots or self.requested)
        self.reserved.append((length, self.slots))
        self.memory, self.capacity = [[] for _ in range(self.slots)], length
        self.cells = [[] for _ in range(self.slots)]

    def decode(self, rows: Sequence[TokenRow]) -> bool:
        self._working()
        number, kept = len(self.steps), len(rows)
        per_slot = Counter(slot for row in rows for slot in (row.slot, *row.others))
        assert 0 < kept <= self.batch_size
        self.steps.append(list(rows))
        if self.runs_single and len({row.slot for row in rows}) > 1:
            self.runs_single, number = False, FIRST_SHARED_STEP
        if number in self.fails:
            raise self.fails[number]
        if number in self.holds:
            self._wait()
            kept = self.holds[number]
        elif number in self.interrupts:
            kept = self.interrupts[number]
        elif self.stop:
            kept = 0
        if not self.can_trim:
            if all(row.output for row in rows):  # decoding, which is not interrupted
                kept = len(rows)
            assert not self.invalid & per_slot.keys()
            self.invalid |= per_slot.keys() if kept < len(rows) else set()
        self.pending_copies.clear()
        self.outputs = {}
        self.removable = {slot: min(self.max_rollback, count - 1) for slot, count in per_slot.items()}
        assert self.kv_unified or len(set(per_slot.values())) == 1, "llama.cpp would split this step"
        last_slot = 0
        for index, (slot, position, token, output, others) in enumerate(rows[:kept]):
            assert self.kv_unified or (last_slot <= slot < self.slots and not others)
            assert all(self.memory[other] == self.memory[slot] for other in others)
            assert position == len(self.memory[slot]) < self.capacity
            assert 0 <= token < FIRST_WORD + len(self.words) and token != END
            self._take_cell(token, slot, *others)
            if output:
                self.outputs[index] = tuple(self.memory[slot])
            last_slot = slot
            self.evaluated += 1
        self._check_cells()
        return kept == len(rows)

    def prefill_chunk(self, position: int) -> int:
        return self.batch_size

    def reusable_prefix(self, length: int) -> int:
        return length

    def sample(self, sampler: Sampler, row: int, bias: TokenBias) -> int:
        self.biases.append(bias)
        return sampler.sample(row)

    def score_tokens(self, targets: Iterable[tuple[int, int]]) -> list[TokenScore]:
        pairs = list(targets)
        assert [row for row, _ in pairs] == sorted(row for row, _ in pairs) and len(self.outputs) <= self.max_outputs
        return [token_score(self.outputs[row], token) for row, token in pairs]

    def length(self, slot: int) -> int:
        return 0 if slot in self.invalid else len(self.memory[slot])

    def sampler(
        self, params: SamplingParams, seed: int, constraint: Constraint | None, prompt: Sequence[int]
    ) -> ScriptedSampler:
        self._working()
        assert self.capacity, "a sampler needs a context"
        if constraint and constraint.grammar.text == BAD_GRAMMAR:
            raise GrammarError("cannot parse the grammar")
        self.params.append(params)
        self.samplers.append(ScriptedSampler(self, seed, tuple(prompt), constraint))
        return self.samplers[-1]

    def copy(self, source: int, target: int) -> None:
        self._working()
        assert source != target and self.memory[source]
        self.memory[target] = list(self.memory[source])
        self.cells[target] = list(self.cells[source])
        if not self.kv_unified:
            self.pending_copies |= {source, target}

    def trim(self, slot: int, length: int) -> bool:
        assert 0 <= length <= len(self.memory[slot])
        if slot in self.invalid or 0 < length < self.trim_limit(slot):
            return False
        if length < len(self.memory[slot]):
            self.removable.pop(slot, None)
        del self.memory[slot][length:], self.cells[slot][length:]
        return True

    def clear(self, slot: int) -> None:
        self.invalid.discard(slot)
        self.memory[slot].clear()
        self.cells[slot].clear()

    def clear_all(self) -> None:
        for slot in range(len(self.memory)):
            self.clear(slot)

    def trim_limit(self, slot: int) -> float:
        if slot in self.invalid:
            return inf
        return 0 if self.can_trim else len(self.memory[slot]) - self.removable.get(slot, 0)

    def checkpoint(self, slot: int, is_whole: bool = False) -> Checkpoint:
        assert slot not in self.pending_copies and self.memory[slot]
        packed = array("i", self.memory[slot]).tobytes()
        return Checkpoint(
            len(self.memory[slot]), (ctypes.c_uint8 * len(packed)).from_buffer_copy(packed), int(is_whole)
        )

    def restore(self, slot: int, checkpoint: Checkpoint) -> bool:
        assert slot not in self.pending_copies
        held = list(array("i", bytes(checkpoint.state)))
        if checkpoint.flags:
            self._fill(slot, held)
        assert self.memory[slot][: len(held)] == held, "a checkpoint of other tokens"
        del self.memory[slot][len(held) :], self.cells[slot][len(held) :]
        self.invalid.discard(slot)
        return True

    def state_size(self, slot: int) -> int:
        return len(array("i", self.memory[slot]).tobytes())

    def save_state(self, slot: int, tokens: array[int], path: Path) -> None:
        self._working()
        assert list(tokens) == self.memory[slot]
        assert slot not in self.pending_copies
        if self.unwritable:
            raise EngineError("no space left")
        path.write_bytes(HEAD.pack(b"ggsq", 2, len(tokens)) + tokens.tobytes() + BODY_END)

    def load_state(self, slot: int, path: Path) -> bool:
        self._working()
        assert slot not in self.pending_copies
        self.loads += 1
        body, end, _ = path.read_bytes().partition(BODY_END)
        held = list(array("i", body[HEAD.size :]))
        assert end and held and len(held) <= self.capacity
        self._fill(slot, held)
        return True

    def close(self, frees: bool = True) -> None:
        self._working()
        assert not self.samplers, "samplers were not closed"
        self.closed = True

    def _working(self) -> None:
        assert not self.closed
        self.thread = self.thread or threading.get_ident()
        assert self.thread == threading.get_ident(), "called from several threads"

    def _fill(self, slot: int, held: Iterable[int]) -> None:
        self.clear(slot)
        for token in held:
            self._take_cell(token, slot)
        self._check_cells()

    def _take_cell(self, token: int, *slots: int) -> None:
        cell = object()
        for slot in slots:
            self.memory[slot].append(token)
            self.cells[slot].append(cell)

    def _check_cells(self) -> None:
        if self.kv_unified:
            used = len({id(cell) for cells in self.cells for cell in cells})
            assert used <= self.capacity, "the slots exceed the memory"

    def _wait(self) -> None:
        self.is_held.set()
        for _ in range(10_000):
            if self.stop:
                return
            time.sleep(0.001)
        raise AssertionError("this step was not interrupted")


ALPHABET = tuple(b"abc")


def random_model(held: tuple[int, ...], seed: int) -> int:
    drawn = crc32(repr((held, seed)).encode()) % 13
    return END if drawn == 12 else ALPHABET[drawn % 3]


def token_score(held: tuple[int, ...], token: int) -> TokenScore:
    """Score a token after others, depending on all of them, as a real model does."""
    drawn = crc32(repr((held, token)).encode())
    return TokenScore(-(drawn % 1000) / 64, drawn % 3 > 0)


def expected_reply(prompt: tuple[int, ...], seed: int, limit: int, context: int) -> tuple[list[int], str]:
    said: list[int] = []
    while True:
        token = random_model((*prompt, *said), seed)
        if token == END:
            return said, "stop"
        said.append(token)
        if len(said) == limit:
            return said, "length"
        if len(prompt) + len(said) == context:
            return said, "context"
