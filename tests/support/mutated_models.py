"""Damaged and hostile GGUF files: a valid model whose metadata or tensor table is changed, seeded by number."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ODD_INTEGERS = (0, 1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)
ODD_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
ODD_STRINGS = (b"", b"\xff\xfe", b"bert", b"t5", b"gpt2", b"llama", b"rwkv", b"no_vocab", b"x" * 5000, b"\0", b"mamba")


class Entry(NamedTuple):
    """A metadata value: its key, its type and its value's bytes."""

    key: bytes
    type: int
    value: bytes


class TensorRow(NamedTuple):
    name: bytes
    shape: tuple[int, ...]
    type: int
    offset: int


class Parts(NamedTuple):
    """A GGUF file, taken apart."""

    entries: list[Entry]
    tensors: list[TensorRow]
    data: bytes

    def to_bytes(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.entries))
        for entry in self.entries:
            head += text(entry.key) + struct.pack("<I", entry.type) + entry.value
        for row in self.tensors:
            head += text(row.name) + struct.pack("<I", len(row.shape)) + struct.pack(f"<{len(row.shape)}Q", *row.shape)
            head += struct.pack("<IQ", row.type, row.offset)
        return head + bytes(-len(head) % 32) + self.data


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def take_apart(data: bytes) -> Parts:
    """Parse a valid file without an alignment of its own."""
    position = 4

    def take(layout: str) -> tuple[int, ...]:
        nonlocal position
        values = struct.unpack_from("<" + layout, data, position)
        position += struct.calcsize("<" + layout)
        return values

    def string() -> bytes:
        nonlocal position
        (length,) = take("Q")
        position += length
        return data[position - length : position]

    def value(kind: int) -> bytes:
        start = position
        if kind == STRING:
            string()
        elif kind == ARRAY:
            item, count = take("IQ")
            for _ in range(count):
                value(item)
        else:
            take(SCALARS[kind])
        return data[start:position]

    _, n_tensors, n_entries = take("IQQ")
    entries = []
    for _ in range(n_entries):
        key = string()
        (kind,) = take("I")
        entries.append(Entry(key, kind, value(kind)))
    tensors = []
    for _ in range(n_tensors):
        name = string()
        (n_dims,) = take("I")
        shape = take("Q" * n_dims)
        tensors.append(TensorRow(name, shape, *take("IQ")))
    return Parts(entries, tensors, data[-(-position // 32) * 32 :])


def change_scalar(parts: Parts, random: random.Random) -> None:
    """Replace a number or a string by an odd one of its type."""
    index = random.choice([at for at, entry in enumerate(parts.entries) if entry.type != ARRAY])
    entry = parts.entries[index]
    if entry.type == STRING:
        value = text(random.choice(ODD_STRINGS))
    elif SCALARS[entry.type] in "fd":
        value = struct.pack("<" + SCALARS[entry.type], random.choice(ODD_FLOATS))
    else:
        size = struct.calcsize(SCALARS[entry.type])
        value = (random.choice(ODD_INTEGERS) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
        value = b"\1" if entry.type == 7 and value != b"\0" else value
    parts.entries[index] = entry._replace(value=value)


def change_type(parts: Parts, random: random.Random) -> None:
    """Give a value another type."""
    index = random.randrange(len(parts.entries))
    value = random.choice([(4, b"\1\0\0\0"), (STRING, text(b"x")), (6, struct.pack("<f", 1.5)), (7, b"\1")])
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
    entry = parts.entries[index]
    items = strings(entry.value)
    kind = random.choice(["repeat", "empty", "short", "none", "bytes", "long", "one"])
    if kind == "repeat":
        items[random.randrange(len(items))] = random.choice(items)
    elif kind == "empty":
        items[random.randrange(len(items))] = b""
    elif kind == "short":
        items = items[: random.randrange(1, len(items))]
    elif kind == "none":
        items = []
    elif kind == "bytes":
        items[random.randrange(len(items))] = random.choice(
            [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"<0xZZ>", b"<0x>"]
        )
    elif kind == "long":
        items[random.randrange(len(items))] = b"y" * 100_000
    else:
        items = [random.choice(items)] * len(items)
    value = struct.pack("<IQ", STRING, len(items)) + b"".join(map(text, items))
    parts.entries[index] = entry._replace(value=value)
    return None


def change_numbers(parts: Parts, random: random.Random) -> None:
    """Shorten an array of numbers, or change one of them."""
    arrays = [at for at, entry in enumerate(parts.entries) if entry.type == ARRAY and entry.value[0] != STRING]
    arrays = [at for at in arrays if len(parts.entries[at].value) > 12]
    if not arrays:
        return change_tokens(parts, random)
    index = random.choice(arrays)
    entry = parts.entries[index]
    kind, count = struct.unpack_from("<IQ", entry.value)
    size = struct.calcsize(SCALARS[kind])
    body = bytearray(entry.value[12:])
    if random.random() < 0.5:
        count = random.randrange(count + 1)
        body = body[: count * size]
    else:
        at = random.randrange(count) * size
        body[at : at + size] = random.choice([b"\xff", b"\x80", b"\0"]) * size
    parts.entries[index] = entry._replace(value=struct.pack("<IQ", kind, count) + bytes(body))
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
    change_scalar,
    change_scalar,
    change_type,
    drop_entry,
    change_tokens,
    change_tokens,
    change_numbers,
    change_tensor,
)


def strings(array: bytes) -> list[bytes]:
    """Items of an array of strings."""
    _, count = struct.unpack_from("<IQ", array)
    position, items = 12, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", array, position)
        items.append(array[position + 8 : position + 8 + length])
        position += 8 + length
    return items


def mutated(model: Path, number: int) -> bytes:
    """Apply one to three changes to a model, chosen by its number."""
    chosen = random.Random(number)
    parts = take_apart(model.read_bytes())
    for _ in range(chosen.choice([1, 1, 2, 3])):
        if parts.entries and parts.tensors:
            chosen.choice(CHANGES)(parts, chosen)
    return parts.to_bytes()


def write_mutated(models: list[Path], directory: Path, count: int) -> Iterator[Path]:
    """Write mutated models, each as it is asked for."""
    for number in range(count):
        path = directory / f"mutated-{number}.gguf"
        path.write_bytes(mutated(models[number % len(models)], number))
        yield path
