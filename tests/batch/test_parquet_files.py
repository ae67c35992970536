"""A Parquet file may hold anything: its rows are read, or an error is one line, and nothing is read needlessly."""

import io
import random
from collections.abc import Iterable, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from batch_files import InputRow
from pyarrow import parquet

from cerebrum_cli.batch.readers import InputOptions
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.row_fields import parse_template

PROMPTS = ["What is 1 plus 2?", "What is 3 plus 4?"]


def write(path: Path, columns: Mapping[str, Any] | Iterable[tuple[str, Any]], **options: Any) -> Path:
    names, values = zip(*(columns.items() if isinstance(columns, Mapping) else columns), strict=True)
    parquet.write_table(pyarrow.table([pyarrow.array(value) for value in values], names=names), path, **options)
    return path


def read(path: Path, template: str | None = None, all_columns: bool = False) -> list[InputRow]:
    options = InputOptions(None if template is None else parse_template(template), include_input=all_columns)
    with closing(options.open(path, None, Path("out.jsonl"))) as rows:
        return [rows[position] for position in range(len(rows))]


def integers(type: pyarrow.DataType, *values: int) -> pyarrow.Array:
    """A column of a type whose values are stored as integers, of 64 bits unless those are too many."""
    stored = pyarrow.int32() if type.bit_width == 32 else pyarrow.int64()
    return pyarrow.array(values, stored).view(type)


def text(*values: bytes) -> pyarrow.Array:
    """A column of text that need not be UTF-8."""
    return pyarrow.array(values).view(pyarrow.string())


def struct(*columns: pyarrow.Array, names: list[str]) -> pyarrow.Array:
    return pyarrow.StructArray.from_arrays(list(columns), names=names)


def lists(values: pyarrow.Array) -> pyarrow.Array:
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2], pyarrow.int32()), values)


ONE, BAD = pyarrow.array([1, 2]), text(b"a\xff", b"b")
LATE = integers(pyarrow.timestamp("ms"), 2**55, 0)
VALUES = {
    "not UTF-8": BAD,
    "surrogate": text(b"\xed\xa0\x80", b"b"),
    "NUL": text(b"\0", b"b"),
    "not UTF-8 in large text": pyarrow.array([b"a\xff", b"b"], pyarrow.large_binary()).view(pyarrow.large_string()),
    "not UTF-8 in a list": lists(BAD),
    "not UTF-8 in an object": struct(BAD, names=["a"]),
    "not UTF-8 in a dictionary": pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1], pyarrow.int32()), BAD),
    "bytes": pyarrow.array([b"\xff\x00", b""]),
    "bytes of a size": pyarrow.array([b"abcd", None], pyarrow.binary(4)),
    "day beyond the calendar": integers(pyarrow.date32(), 2**30, 0),
    "day before the calendar": integers(pyarrow.date32(), -(2**30), 0),
    "millisecond beyond the calendar": integers(pyarrow.date64(), 86_400_000 * 10**10, 0),
    **{
        f"time in {unit} with {value}": integers(pyarrow.timestamp(unit), value, 0)
        for unit in ("ms", "us", "ns")
        for value in (2**62, -(2**62), 1)
    },
    **{
        f"time in {zone}": integers(pyarrow.timestamp("us", tz=zone), 1, 2)
        for zone in ("Mars/Phobos", "+99:99", "../../etc/passwd", "Europe/Berlin", "+07:30")
    },
    **{f"duration in {unit}": integers(pyarrow.duration(unit), 2**62, 1) for unit in ("s", "ms", "us", "ns")},
    "time of day": integers(pyarrow.time64("us"), 2**60, 0),
    "negative time of day": integers(pyarrow.time32("ms"), -5, 0),
    "two equal names in an object": struct(ONE, ONE, names=["a", "a"]),
    "empty name in an object": struct(ONE, names=[""]),
    "equal names in a list": lists(struct(ONE, ONE, names=["a", "a"])),
    "objects in objects": struct(struct(struct(ONE, names=["a"]), names=["a"]), names=["a"]),
    "late time in an object": struct(LATE, names=["a"]),
    "late time in a list": lists(LATE),
    "map": pyarrow.array([[("a", 1)], [("a", 1), ("a", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    "map of numbers": pyarrow.array([[(1, 2)], None], pyarrow.map_(pyarrow.int64(), pyarrow.int64())),
    "decimal": pyarrow.array([Decimal("1.5"), None]),
    "decimal of 76 digits": pyarrow.array([Decimal(10) ** 75, None], pyarrow.decimal256(76, 0)),
    "infinity": pyarrow.array([float("inf"), float("nan")]),
    "half": pyarrow.array([1.5, float("nan")], pyarrow.float16()),
    "large integers": pyarrow.array([2**64 - 1, 0], pyarrow.uint64()),
    "nothing": pyarrow.nulls(2),
    "lists of nothing": pyarrow.array([[None], []]),
    "booleans": pyarrow.array([True, None]),
    "list of a size": pyarrow.array([[1, 2], [3, 4]], pyarrow.list_(pyarrow.int64(), 2)),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_any_value_is_read_if_needed_or_refused_in_a_line(tmp_path: Path, values: pyarrow.Array) -> None:
    path = write(tmp_path / "in.parquet", {"t": values, "prompt": PROMPTS})
    assert [row.prompt for row in read(path)] == PROMPTS
    for template, all_columns in (("{t}", False), (None, True)):
        try:
            rows = read(path, template, all_columns)
        except UsageError as error:
            assert error.message.startswith(f"cannot read {path}: column `t`: ")
            assert "\n" not in error.message + error.hint
        else:
            assert len(rows) == 2
            assert {row.error.type for row in rows if row.error} <= {"invalid_utf8", "unknown_field", "no_prompt"}


def damaged(number: int) -> bytes:
    """A file in which some bytes are changed, or the end is missing."""
    generator, buffer = random.Random(number), io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": PROMPTS * 20, "seed": [*range(40)], "t": [[1, 2]] * 40}), buffer)
    data = bytearray(buffer.getvalue())
    for _ in range(generator.choice((1, 4))):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data if number % 4 else data[: generator.randrange(len(data))])


@pytest.mark.parametrize("number", range(16))
def test_damaged_file_is_read_or_refused_in_a_line(tmp_path: Path, number: int) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(damaged(number))
    try:
        read(path, all_columns=True)
    except UsageError as error:
        assert error.message and error.hint and "\n" not in error.message + error.hint


def test_row_that_is_not_utf_8_is_an_error_of_its_own(tmp_path: Path) -> None:
    bad, good = read(write(tmp_path / "in.parquet", {"id": ["a", "b"], "prompt": BAD}))
    assert bad.error and (bad.id, bad.error.type, good.id, good.prompt) == ("a", "invalid_utf8", "b", "b")


def test_columns_without_names_are_an_error_if_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", (("", ["a", "b"]), ("", ["c", "d"]), ("prompt", PROMPTS)))
    assert [row.prompt for row in read(path)] == PROMPTS
    with pytest.raises(UsageError, match="several columns have no name"):
        read(path, all_columns=True)


@pytest.mark.parametrize("name", ["prompt", "id", "text"])
def test_equal_names_of_columns_are_an_error_if_they_are_read(tmp_path: Path, name: str) -> None:
    twice = ((name, ["a", "b"]), (name, ["c", "d"]))
    path = write(tmp_path / "in.parquet", (*twice, ("other", PROMPTS)))
    with pytest.raises(UsageError, match=f"several columns are named `{name}`"):
        read(path, f"{{other}} {{{name}}}")
    if name == "text":
        assert [row.prompt for row in read(path, "{other}")] == PROMPTS


def test_error_lists_all_columns_if_none_is_a_prompt(tmp_path: Path) -> None:
    [row] = read(write(tmp_path / "in.parquet", {"question": ["Why?"], "mine": ["x"]}))
    assert row.error and row.error.message.endswith("the fields are: question, mine")


def test_file_that_expands_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.nulls(200_000, pyarrow.int32()).fill_null(0), ["x" * 10**6])
    path = write(tmp_path / "in.parquet", {"prompt": repeated})
    monkeypatch.setattr("cerebrum_cli.batch.parquet.MAX_BYTES", 10**7)
    with pytest.raises(UsageError, match="its rows are much larger than the file"):
        read(path)
    assert path.stat().st_size < 10**5


def test_huge_cell_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in.parquet", {"prompt": ["x" * 10**6]}, use_dictionary=False, compression="zstd")
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(50) + data[54:])  # its page cannot be read
    monkeypatch.setattr("cerebrum_cli.batch.parquet.MAX_READ_BYTES", 10**5)
    with pytest.raises(UsageError, match="its rows are too large"):
        read(path)


def test_huge_cell_among_small_ones_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in.parquet", {"prompt": ["x" * 10**6, *["y"] * 1000]}, compression="zstd")
    monkeypatch.setattr("cerebrum_cli.batch.parquet.MAX_READ_BYTES", 10**5)
    with pytest.raises(UsageError, match="its rows are too large"):
        read(path)


def test_bytes_are_read_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", {"prompt": ["Größe".encode(), b"a\xff"]})
    assert [row.prompt for row in read(path)] == ["Größe", "a\\xff"]
