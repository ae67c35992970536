"""A Parquet file may hold anything: its rows are read, or an error is one line."""

import io
import random
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


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()}), path)
    return path


def read(path: Path, template: str | None = None) -> list[InputRow]:
    options = InputOptions(None if template is None else parse_template(template))
    with options.open(path, None, Path("out.jsonl")) as rows:
        return list(rows)


@pytest.mark.parametrize(
    ("values", "prompts"),
    [
        (["Größe".encode(), b"a\xff"], ["Größe", "a\\xff"]),
        ([[None], []], ["[null]", "[]"]),
        ([{"a": 1}, {"a": None}], ['{"a": 1}', '{"a": null}']),
        ([Decimal("1.5"), Decimal("2.5")], ["1.5", "2.5"]),
        ([float("inf"), 1.0], ["Infinity", "1.0"]),
        (pyarrow.array([0, 1], pyarrow.timestamp("ms")), ["1970-01-01 00:00:00", "1970-01-01 00:00:00.001000"]),
    ],
)
def test_values_are_read_as_text_or_json(tmp_path: Path, values: Any, prompts: list[str]) -> None:
    path = write(tmp_path / "in.parquet", t=values, prompt=PROMPTS)
    assert [row.prompt for row in read(path)] == PROMPTS
    assert [row.prompt for row in read(path, "{t}")] == prompts


def test_missing_value_is_no_field(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", t=["a", None], n=[1.0, float("nan")])
    good, bad = read(path, "{t}")
    assert good.prompt == "a" and bad.error and bad.error.type == "unknown_field"
    assert [row.error is None for row in read(path, "{n}")] == [True, False]


@pytest.mark.parametrize("number", range(16))
def test_damaged_file_is_read_or_refused_in_a_line(tmp_path: Path, number: int) -> None:
    """Some bytes are changed, or the end is missing."""
    generator, buffer = random.Random(number), io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": PROMPTS * 20, "seed": [*range(40)], "t": [[1, 2]] * 40}), buffer)
    data = bytearray(buffer.getvalue())
    for _ in range(generator.choice((1, 4))):
        data[generator.randrange(len(data))] = generator.randrange(256)
    path = tmp_path / "in.parquet"
    path.write_bytes(data if number % 4 else data[: generator.randrange(len(data))])
    try:
        read(path)
    except UsageError as error:
        assert error.message and error.hint and "\n" not in error.message + error.hint


def test_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table([pyarrow.array(PROMPTS)] * 2, names=["prompt", "prompt"]), path)
    with pytest.raises(UsageError, match="several columns have the same name"):
        read(path)
