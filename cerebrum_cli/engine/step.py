"""Values that the engine and its backend exchange: rows, checkpoints, scores, and the flag that interrupts a decode."""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.formats.reply_text import ReplyText


class TokenRow(NamedTuple):
    """One token of a step: its slot, its position in the slot, and whether its logits are computed.

    If the backend `shares_rows`, it may also be the token of `others`, slots that hold the same tokens before it.
    """

    slot: int
    position: int
    token: int
    output: bool
    others: tuple[int, ...] = ()


class Checkpoint(NamedTuple):
    """The part of a slot's memory, at `length` tokens, that later tokens overwrite: recurrent states and windows.

    `state` is llama.cpp's, in a buffer of ctypes, whose length is its size; `flags` say what it has: also all of it.
    """

    length: int
    state: ctypes.Array[ctypes.c_uint8]
    flags: int


class Constraint(NamedTuple):
    """The grammar of one reply, which applies from where the answer starts in its text.

    `forced` gets the tokens that follow because the grammar allows no others. With `closes_lists`, a list of a JSON
    answer ends where it would only repeat its last entries.
    """

    grammar: Grammar
    text: ReplyText
    forced: deque[int]
    closes_lists: bool = False


class TokenScore(NamedTuple):
    """Natural logarithm of a token's probability, and whether it is the most likely token."""

    logprob: float
    is_argmax: bool


@dataclass(slots=True, eq=False)
class StopFlag:
    """A flag that native code can read without Python: one byte, `0` to continue, `1` to stop."""

    buffer: ctypes.Array[ctypes.c_char] = field(default_factory=partial(ctypes.create_string_buffer, b"0"))

    def set(self) -> None:
        """Interrupt the running load or decode."""
        self.buffer[0] = b"1"

    def clear(self) -> None:
        self.buffer[0] = b"0"

    def __bool__(self) -> bool:
        return self.buffer[0] == b"1"
