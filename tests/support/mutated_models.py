"""Damaged and hostile GGUF files: a valid model whose metadata or tensor table is changed, seeded by number."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gguf_files import entry, handmade, string, tensor

from cerebrum_cli.gguf.parser import ARRAY, METADATA_START, SCALARS, STRING, Cursor, parse_tables

LAYOUTS = {number: layout.format[-1] for number, (_, layout) in SCALARS.items()}
ODD_INTEGERS = (0, 1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)
ODD_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
ODD_BYTES = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"<0xZZ>", b"<0x>")
ODD_STRINGS = (b"", b"\xff\xfe", b"bert", b"t5", b"gpt2", b"llama", b"rwkv", b"no_vocab", b"x" * 5000, b"\0", b"mamba")


class Entry(NamedTuple):
    key: bytes
    type: int
    value: bytes


class TensorRow(NamedTuple):
    name: bytes
    shape: tuple[int, ...]
    type: int
    offset: int


class Parts(NamedTuple):
    entries: list[Entry]
    tensors: list[TensorRow]
    data: bytes

    def to_bytes(self) -> bytes:
        entries = [entry(each.key, each.type, each.value) for each in self.entries]
        rows = tuple(tensor(*row) for row in self.tensors)
        return handmade(*entries, tensors=rows, data=self.data) if rows else handmade(*entries) + self.data


def take_apart(data: bytes) -> Parts:
    """Parse a valid file without an alignment of its own."""
    path = Path("model.gguf")
    cursor, tables = Cursor(path, data, METADATA_START), parse_tables(path, data, len(data))
    entries = []
    for _ in tables.metadata:
        key, start = cursor.string("key").encode(), cursor.position
        cursor.value()
        kind = int.from_bytes(data[start : start + 4], "little")
        entries.append(Entry(key, kind, data[start + 4 : cursor.position]))
    tensors = [TensorRow(row.name.encode(), row.shape, row.type, row.offset) for row in tables.tensors]
    return Parts(entries, tensors, data[tables.data_start :])


def change_scalar(parts: Parts, random: random.Random) -> None:
    """Replace a number or a string by an odd one of its type."""
    index = random.choice([at for at, entry in enumerate(parts.entries) if entry.type != ARRAY])
    old = parts.entries[index]
    if old.type == STRING:
        value = string(random.choice(ODD_STRINGS))
    elif LAYOUTS[old.type] in "fd":
        value = struct.pack("<" + LAYOUTS[old.type], random.choice(ODD_FLOATS))
    else:
        size = struct.calcsize(LAYOUTS[old.type])
        value = (random.choice(ODD_INTEGERS) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
        value = b"\1" if old.type == 7 and value != b"\0" else value
    parts.entries[index] = old._replace(value=value)


def change_type(parts: Parts, random: random.Random) -> None:
    index = random.randrange(len(parts.entries))
    value = random.choice([(4, b"\1\0\0\0"), (STRING, string(b"x")), (6, struct.pack("<f", 1.5)), (7, b"\1")])
    value = random.choice([value, (ARRAY, struct.pack("<IQ", 4, 0)), (ARRAY, struct.pack("<IQI", 4, 1, 7))])
    parts.entries[index] = Entry(parts.entries[index].key, *value)


def drop_entry(parts: Parts, random: random.Random) -> None:
    del parts.entries[random.randrange(len(parts.entries))]


def change_tokens(parts: Parts, random: random.Random) -> None:
    """Repeat, empty, shorten or damage the items of an array of strings."""
    arrays = [at for at, entry in enumerate(parts.entries) if entry.type == ARRAY and entry.value[0] == STRING]
    arrays = [at for at in arrays if strings(parts.entries[at].value)]
    if not arrays:
        return change_scalar(parts, random)
    index = random.choice(arrays)
    old = parts.entries[index]
    items = strings(old.value)
    kind = random.choice(["repeat", "empty", "short", "none", "bytes", "long", "one"])
    if kind in ("short", "none"):
        items = items[: random.randrange(1, len(items)) if kind == "short" else 0]
    elif kind == "one":
        items = [random.choice(items)] * len(items)
    else:
        choices = {"repeat": items, "bytes": ODD_BYTES, "empty": [b""], "long": [b"y" * 100_000]}[kind]
        value = random.choice(choices) if kind in ("repeat", "bytes") else choices[0]
        items[random.randrange(len(items))] = value
    value = struct.pack("<IQ", STRING, len(items)) + b"".join(map(string, items))
    parts.entries[index] = old._replace(value=value)
    return None


def change_numbers(parts: Parts, random: random.Random) -> None:
    """Shorten an array of numbers, or change one of them."""
    arrays = [at for at, entry in enumerate(parts.entries) if entry.type == ARRAY and entry.value[0] != STRING]
    arrays = [at for at in arrays if len(parts.entries[at].value) > 12]
    if not arrays:
        return change_tokens(parts, random)
    index = random.choice(arrays)
    old = parts.entries[index]
    kind, count = struct.unpack_from("<IQ", old.value)
    size = struct.calcsize(LAYOUTS[kind])
    body = bytearray(old.value[12:])
    if random.random() < 0.5:
        count = random.randrange(count + 1)
        body = body[: count * size]
    else:
        at = random.randrange(count) * size
        body[at : at + size] = random.choice([b"\xff", b"\x80", b"\0"]) * size
    parts.entries[index] = old._replace(value=struct.pack("<IQ", kind, count) + bytes(body))
    return None


def change_tensor(parts: Parts, random: random.Random) -> None:
    """Rename, reshape, retype, duplicate or drop a tensor; its bytes stay."""
    index = random.randrange(len(parts.tensors))
    row = parts.tensors[index]
    kind = random.choice(["name", "shape", "dimensions", "type", "drop", "all"])
    if kind == "name":
        row = row._replace(name=random.choice([b"x", b"output.weight", b"blk.999.attn_q.weight", b"token_embd.weight"]))
    elif kind == "shape":
        row = row._replace(shape=row.shape[::-1] if len(row.shape) > 1 else (row.shape[0] // 2, 2))
    elif kind == "dimensions":
        row = row._replace(shape=(*row.shape, 1)[:4])
    elif kind == "type":
        row = row._replace(type=random.choice([0, 1, 2, 8, 12, 16, 24, 26, 30, 39, 99]))
    if kind in ("drop", "all"):
        del parts.tensors[index if kind == "drop" else 0 :: 1000 if kind == "drop" else 1]
    else:
        parts.tensors[index] = row


CHANGES: tuple[Callable[[Parts, random.Random], None], ...] = (
    *(change_scalar, change_scalar, change_type, drop_entry),
    *(change_tokens, change_tokens, change_numbers, change_tensor),
)


def strings(array: bytes) -> list[bytes]:
    value = Cursor(Path(), ARRAY.to_bytes(4, "little") + array, 0).whole_value()
    return list(value.content)


def mutated(model: Path, number: int) -> bytes:
    """Apply one to three changes to a model, chosen by its number."""
    chosen = random.Random(number)
    parts = take_apart(model.read_bytes())
    for _ in range(chosen.choice([1, 1, 2, 3])):
        if parts.entries and parts.tensors:
            chosen.choice(CHANGES)(parts, chosen)
    return parts.to_bytes()


def write_mutated(models: list[Path], directory: Path, count: int) -> Iterator[Path]:
    for number in range(count):
        path = directory / f"mutated-{number}.gguf"
        path.write_bytes(mutated(models[number % len(models)], number))
        yield path
