"""Parse a SentencePiece model, `tokenizer.model`: its pieces with scores and types. Pure.

The file is a protocol buffer, sentencepiece_model.proto in google/sentencepiece. Its numbers of types are GGUF's. A
damaged one raises ValueError, LookupError, TypeError or struct.error.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from cerebrum_cli.weights.checkpoints.bpe import Token, Unsupported

# fields of a model; of a piece; of what it was trained with, and of its normalizer
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_ALGORITHM, _CHARACTER_MAP, _SPACE_PREFIX, _COLLAPSE_SPACES = 3, 2, 3, 4
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED = {1: 8, 5: 4}  # bytes by the number of the wire type
_ALGORITHMS = ("", "unigram", "BPE", "word", "character")
_TYPES = range(7)

Message = dict[int, list[Any]]


def parse_sentencepiece(data: bytes) -> tuple[Sequence[Token], bool]:
    """The pieces by id, and whether a text gets a space in front. Raises Unsupported for another kind than BPE."""
    message = _fields(data)
    trainer, normalizer = (_fields(message[number][-1]) for number in (_TRAINER, _NORMALIZER))
    algorithm = _ALGORITHMS[_last(trainer, _ALGORITHM, 1)]
    if algorithm != "BPE":
        raise Unsupported("tokenizers of the type", algorithm)
    if _last(normalizer, _CHARACTER_MAP, b"") or _last(normalizer, _COLLAPSE_SPACES, 1):
        raise Unsupported("the normalizer in", "tokenizer.model")
    pieces = [_piece(_fields(piece)) for piece in message[_PIECES]]
    return pieces, bool(_last(normalizer, _SPACE_PREFIX, 1))


def _piece(fields: Message) -> Token:
    [score] = struct.unpack("<f", _last(fields, _SCORE, bytes(4)))
    return Token(_last(fields, _TEXT, b"").decode(), _TYPES[_last(fields, _TYPE, 1)], score)


def _last(fields: Message, number: int, default: Any) -> Any:
    return fields.get(number, [default])[-1]


def _fields(data: bytes) -> Message:
    """The values of a message's fields by number."""
    fields: Message = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire_type = tag & 7
        value: Any
        if wire_type == _VARINT:
            value, at = _varint(data, at)
        else:
            length, at = _varint(data, at) if wire_type == _LENGTH_DELIMITED else (_FIXED[wire_type], at)
            value = data[at : at + length]
            at += length
        fields.setdefault(tag >> 3, []).append(value)
    if at > len(data):
        raise ValueError("truncated")
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, low ones first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")
