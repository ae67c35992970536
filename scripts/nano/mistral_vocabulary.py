"""Vocabulary of Mistral-7B, read from the tokenizer file in the package mistral-common."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from struct import unpack
from typing import NamedTuple

MetadataValue = str | bool | int | float | list[str] | list[int] | list[float]

NORMAL = 1  # SentencePiece and GGUF use the same numbers for token types
PIECES = 1  # field of ModelProto with the vocabulary; the fields of each entry are below
TEXT, SCORE, TYPE = 1, 2, 3
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Piece(NamedTuple):
    """Entry of a SentencePiece vocabulary; its position in the file is the token id."""

    text: str
    score: float
    type: int


def tokenizer_metadata() -> dict[str, MetadataValue]:
    """GGUF metadata of the vocabulary, as in the files of Mistral-7B."""
    pieces = read_pieces()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.text for piece in pieces],
        "tokenizer.ggml.scores": [piece.score for piece in pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in pieces],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def read_pieces() -> tuple[Piece, ...]:
    """Read the 32,000 pieces in token order; the package is located but not imported."""
    package = find_spec("mistral_common")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("mistral-common is not installed: pip install mistral-common")
    model = (Path(package.origin).parent / "data" / "tokenizer.model.v1").read_bytes()
    return tuple(_piece(entry) for field, entry in _fields(model) if field == PIECES and isinstance(entry, bytes))


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    text, score, kind = fields[TEXT], fields[SCORE], fields.get(TYPE, NORMAL)
    assert isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)
    return Piece(text.decode(), unpack("<f", score)[0], kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Iterate over a protobuf message: field numbers, and their values as integers or raw bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            number, position = _varint(message, position)
            yield field, number
            continue
        size, position = _varint(message, position) if wire == BYTES else ({FIXED64: 8, FIXED32: 4}[wire], position)
        yield field, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Decode the varint at a position; return it and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
