"""Rows of txt, jsonl, csv, tsv and Parquet; an invalid one is an error row; refused rows, and rows after a cancel."""

import gzip
import io
import json
import math
import os
import random
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import cases
import pyarrow
import pytest
from hypothesis import given, strategies as st
from installations import model_on
from pyarrow import parquet
from remote_engines import remote_engine, serving
from row_files import InputRow, lines_of, open_rows, output_object, rows_in
from scripted_backend import END, ScriptedBackend
from templates import chosen_format

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.events import RefusedEvent
from cerebrum_cli.core.grammar import schema_grammar
from cerebrum_cli.core.row_events import RowEvent
from cerebrum_cli.core.row_fields import RowError, parse_template
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import Outcome, Row
from cerebrum_cli.rows.answering import BatchOptions, RowNotices, answer_rows
from cerebrum_cli.rows.read import HEAD_ROWS, SHAPES, InputOptions, Shape
from cerebrum_cli.rows.run import StreamedRun


def json_row(value: Any, **options: Any) -> InputRow:
    (row,) = rows_in(value if isinstance(value, str) else json.dumps(value), "jsonl", **options)
    return row


def problem(row: InputRow) -> tuple[str, str]:
    assert row.error and row.conversation is None and row.settings == {}
    return row.error.type, row.error.message


def described(row: InputRow) -> dict[str, Any]:
    """What is read of a row, without what is empty: it has an error, or asks its prompt after the history."""
    found = {"number": row.number, "id": row.id, "prompt": row.prompt, "unused": sorted(row.unused), "input": row.input}
    found |= {"settings": row.settings, "error": row.error and [row.error.type, row.error.message]}
    if row.error:
        assert row.conversation is None
    else:
        *history, question = row.conversation.messages
        assert question == Message("user", row.prompt)
        found |= {"system": row.conversation.system_prompt, "history": [[each.role, each.content] for each in history]}
    assert row.grammar is None and not row.expected
    kept = {key: value for key, value in found.items() if key == "prompt" or value not in (None, [], {})}
    return dict(json.loads(json.dumps(kept)))


@pytest.mark.parametrize(("case", "shape", "text", "options", "expected"), cases.rows("input_rows"))
def test_rows_of_an_input(case: str, shape: Shape, text: str, options: dict[str, Any], expected: list[Any]) -> None:
    assert [described(row) for row in rows_in(text, shape, **options)] == expected, case


@pytest.mark.parametrize(("shape", "text", "delimiter", "message", "hint"), cases.rows("refused_inputs"))
def test_columns_that_do_not_fit_are_an_error(
    shape: Shape, text: str, delimiter: str | None, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        rows_in(text, shape, delimiter=delimiter)
    assert caught.value.message == message and caught.value.hint and hint in caught.value.hint


TABLE = b"id,prompt\na,Why?\n"


@pytest.mark.parametrize(
    ("name", "data", "message", "hint"),
    [
        ("in.xlsx", b"PK\x03\x04..", "is a spreadsheet", "save the sheet as CSV"),
        ("in.csv", b"PK\x03\x04..", "is a spreadsheet", "save the sheet as CSV"),
        ("in.xls", b"\xd0\xcf\x11\xe0..", "is an old Office document", "save it as CSV"),
        ("in.jsonl.zst", b"\x28\xb5\x2f\xfd..", "is compressed with zstd", "zstd -d FILE"),
        ("in.txt", b"%PDF-1.7\n", "is a PDF", "save its text"),
        ("in.csv", "id,prompt\na,é\n".encode("utf-16"), "is UTF-16", "iconv"),
        ("in.csv", b"id,prompt\ra,Why?\r", "end with carriage returns only", "tr '\\r' '\\n'"),
        ("in.csv.gz", gzip.compress(TABLE, mtime=0)[:-9], "cannot decompress", "compress or download it again"),
        ("in.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "is a pointer", "git lfs pull"),
        ("in.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "is a pointer", "git lfs pull"),
        ("in.csv", "id,prompt\na,é\n".encode("utf-32"), "is UTF-32", "iconv"),
        ("in.json", b'[\n  {"prompt": "Why?"}\n]', "is a JSON array", "jq -c '.[]'"),
        ("in.json", b'["Why?", "How?"]', "is a JSON array", "jq -c '.[]'"),
        ("in.jsonl", b'{\n  "prompt": "Why?",\n  "tags": [\n    "a"\n  ]\n}\n', "no line of", "jq -c ."),
        ("in.jsonl", b'{"instruction": "Add.", "output": "3"}\n' * 2, "no row has", '--template "{instruction}"'),
        ("in.jsonl", b'{"conversations": [{"from": "human"}]}\n' * 2, "no row has", '{"messages": '),
    ],
)
def test_unreadable_input_is_refused_by_what_it_is(
    tmp_path: Path, name: str, data: bytes, message: str, hint: str
) -> None:
    source = tmp_path / name
    source.write_bytes(data)
    with pytest.raises(UsageError) as caught, InputOptions().open(source, None):
        pass
    assert message in caught.value.message and caught.value.hint and hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("in.csv.gz", gzip.compress(TABLE, mtime=0)),
        ("in.csv", gzip.compress(TABLE, mtime=0)),
        ("in", gzip.compress(b'{"id": "a", "prompt": "Why?"}', mtime=0)),
        ("in.csv", b"sep=;\r\nid;prompt\r\na;Why?\r\n"),
        ("in.csv", b"sep=|\nid|prompt\na|Why?\n"),
        ("in.json", b'{"id": "a", "prompt": "Why?"}'),
    ],
)
def test_input_is_read_by_its_first_bytes(tmp_path: Path, name: str, data: bytes) -> None:
    source = tmp_path / name
    source.write_bytes(data)
    with InputOptions().open(source, None) as rows:
        for _ in range(2):
            assert [(row.number, row.id, row.prompt) for row in rows] == [(1, "a", "Why?")]


def test_line_that_is_not_utf_8_is_an_error_row() -> None:
    for shape, good in (("txt", b"ok"), ("jsonl", b'{"prompt": "ok"}')):
        first, second = rows_in(b"caf\xe9\n" + good, shape)
        assert (first.id, first.prompt, problem(first)) == (1, None, ("invalid_utf8", "byte 4 is not UTF-8"))
        assert second.prompt == "ok"
    [after_comment] = rows_in(b"# caf\xe9\nok")
    assert (after_comment.number, after_comment.prompt) == (2, "ok")
    [named] = rows_in(b'{"prompt": "caf\xe9", "id": "c"}', "jsonl")
    assert named.error and named.id == "c"


def test_json_row_has_whole_numbers_as_pandas_writes_them() -> None:
    row = json_row({"prompt": "a", "max_tokens": 5.0, "seed": 3.0, "top_k": 0.0, "temperature": 1.0, "think": 100.0})
    assert row.settings == {"max_tokens": 5, "seed": 3, "top_k": 0, "temperature": 1.0, "think": "100"}
    assert [type(row.settings[key]) for key in ("max_tokens", "seed", "top_k")] == [int] * 3
    for key, value in {"max_tokens": 5.5, "seed": math.inf, "top_k": -2.0}.items():
        assert problem(json_row({"prompt": "a", key: value}))[1].startswith(f"invalid `{key}`: ")
    long = "7" * 5000
    values = f'{{"a": 5.0, "b": NaN, "c": -Infinity, "d": 1e999, "e": {long}}}'
    rendered = json_row(values, template="{a} {b} {c} {d} {e}")
    assert rendered.prompt == f"5.0 null -Infinity 1e999 {long}"


@pytest.mark.parametrize(("form", "schema", "message"), cases.rows("response_formats"))
def test_json_row_has_a_schema_of_its_own(form: Any, schema: dict[str, Any] | None, message: str | None) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    row = json_row({"custom_id": "a", "body": {"messages": messages, "response_format": form}})
    if message:
        assert (row.id, problem(row)[0]) == ("a", "invalid_request")
        assert problem(row)[1].startswith(f"invalid `response_format`: {message}")
        return
    grammar = None if schema is None else schema_grammar(schema)
    assert (row.grammar, row.unused, row.error) == (grammar, (), None)
    assert json_row({"prompt": "a", "response_format": form}).grammar == grammar
    rendered = json_row({"id": "a", "response_format": form}, template="{response_format}")
    assert (rendered.error, rendered.grammar) == (None, None)


@pytest.mark.parametrize(("shape", "text", "message"), cases.rows("duplicate_ids"))
def test_first_duplicate_id_is_noted(shape: Shape, text: str, message: str | None) -> None:
    notices = RowNotices()
    found = [notice for row in rows_in(text, shape) if (notice := notices.of(row))]
    assert [notice.message for notice in found] == ([message] if message else [])


@pytest.mark.parametrize("depth", [900, 990, 100_000])
def test_deeply_nested_json_is_an_error_row(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for fields in (f'"prompt": {nested}', f'"prompt": "a", "id": {nested}', f'"prompt": "a", "stop": {nested}'):
        first, second = rows_in(f'{{{fields}}}\n{{"prompt": "b"}}', "jsonl")
        assert problem(first)[0] in ("invalid_json", "invalid_request", "invalid_setting")
        assert second.prompt == "b"
    rows_in(f'{{"a": {nested}}}', "jsonl", template="{a}")


def test_error_row_has_a_short_message() -> None:
    message = problem(json_row({"prompt": ["x" * 1_000_000]}))[1]
    assert len(message) == 400
    assert message.endswith("x…")


@pytest.mark.parametrize(
    ("name", "data", "shape"),
    [
        ("a.txt", b"{", "txt"),
        ("a.jsonl", b"Why?", "jsonl"),
        ("a.NDJSON", b"", "jsonl"),
        ("a.csv", b"{", "csv"),
        ("-", b"Why?", "txt"),
        ("-", b"\r\n \t{}", "jsonl"),
        ("/dev/fd/63", b'{"prompt": 1}', "jsonl"),
    ],
)
def test_input_type_is_from_the_name_or_the_bytes(name: str, data: bytes, shape: str) -> None:
    assert InputOptions().detect_shape(Path(name), data) == shape


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("txt", "\ufeff\n# one\na\r\n\u3000\n  b é\n#\nc"),
        ("jsonl", '\ufeff\n{"prompt": "a"}\n \n\n{\n{"prompt": "b é", "id": 7}\r\n{"prompt": "c"}'),
        ("csv", '\ufeff\nid,prompt\r\nx,"a\n\n""é"", b"\n\n\ny\nz,"c\rw"\nz,d\r\n"\r",e'),
        ("tsv", 'prompt\n"a\r\n\tb"\n\n\nc'),
    ],
)
def test_rows_are_read_again_and_have_keys(shape: Shape, text: str) -> None:
    """They do not depend on line ends, or on blank lines and comments."""
    with open_rows(text, shape) as rows:
        known = list(rows.rereadable_rows())
        assert [row.number for row in rows] == [row.number for row in rows] == [row.number for _, row in known]
    assert len({digest for digest, _ in known}) == len(known) > 1
    with open_rows(text.replace("\n", "\n\n", 1).replace("\r\n", "\n"), shape) as rows:
        assert [digest for digest, _ in rows.rereadable_rows()][1:] == [digest for digest, _ in known[1:]]


@pytest.mark.slow
def test_csv_field_may_be_large_but_an_unclosed_quote_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    [row] = rows_in("prompt\n" + "x" * 300_000, "csv")
    assert row.prompt == "x" * 300_000
    monkeypatch.setattr("cerebrum_cli.rows.table_rows.MAX_FIELD_BYTES", 16_000_000)
    record = b"a" * 1000 + b"\n"
    with pytest.raises(UsageError, match=r"field larger than field limit \(16000000\) \(row at line 2\)"):
        rows_in(b'prompt\n"' + record * 20_000, "csv")


@pytest.mark.parametrize(("lines", "is_whole"), [(HEAD_ROWS - 1, True), (3 * HEAD_ROWS, False)])
def test_pipe_is_read_once_as_rows_are_needed(tmp_path: Path, lines: int, is_whole: bool) -> None:
    path, text = tmp_path / "pipe", b"".join(b"question %d\n" % number for number in range(lines))
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=[text])
    writer.start()
    with InputOptions().open(path, None, Path("out.jsonl")) as rows:
        results = StreamedRun(rows, print)
        assert (results.size, rows.is_whole) == (min(lines, HEAD_ROWS), is_whole)
        assert [row.number for _, row in results.missing()] == [*range(1, lines + 1)]
        assert results.size == lines
        with nullcontext() if is_whole else pytest.raises(UsageError, match="can be read only once"):
            assert len(list(rows)) == lines
    writer.join()


@pytest.mark.parametrize("change", ["append", "touch"])
def test_input_that_changes_is_an_error_and_a_replaced_one_is_not(tmp_path: Path, change: str) -> None:
    path = tmp_path / "in.txt"
    path.write_text("a\nb\n")
    with InputOptions().open(path, None, Path("out.jsonl")) as rows:
        path.rename(tmp_path / "old")
        path.write_text("c\nd\n")
        missing = StreamedRun(rows, print).missing()
        assert next(missing)[1].prompt == "a"
        if change == "append":
            (tmp_path / "old").write_text("a\nb\nc\n")
        os.utime(tmp_path / "old", ns=(1, 1))
        with pytest.raises(BatchError) as caught:
            next(missing)
    assert caught.value.message == f"{path} was changed while the batch ran"
    assert caught.value.hint == "unchanged rows keep their answers"


def test_lines_may_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.rows.input_file.MAX_LINE_BYTES", 3_000_000)
    line = b"a" * 3_000_000
    data = b"\n".join([b"x", line, line, b"", b"y", line])
    assert [row.number for row in rows_in(data)] == [1, 2, 3, 5, 6]
    for longer in (data + b"a", data.replace(b"\n\ny", b"a\n\ny"), b"a" + line):
        with pytest.raises(UsageError, match=r"has a line that is larger than 3 MB"):
            rows_in(longer)


SCRAPS = [*(bytes([each]) for each in b'{}":,[]\n\r\t# \x001'), b"prompt", b"messages"]
BYTES = st.binary(max_size=60) | st.lists(
    st.sampled_from([*SCRAPS, b"\xff", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b'"prompt":"a"', b"\\ud800", b"id,prompt\n"])
).map(b"".join)


@given(BYTES, st.sampled_from(SHAPES), st.sampled_from([None, "{a}", "{text}"]))
def test_any_bytes_give_rows_or_a_usage_error(data: bytes, shape: Shape, template: str | None) -> None:
    """Rows are in order, have a conversation or an error, and can be written."""
    try:
        rows = rows_in(data, shape, template=template)
    except UsageError as error:
        assert error.message
        return
    assert rows and [row.number for row in rows] == sorted({row.number for row in rows})
    for row in rows:
        assert (row.error is None) == (row.conversation is not None)
        json.dumps(output_object(row, error=asdict(row.error or RowError("a", "b"))), ensure_ascii=False).encode()
        if row.conversation:
            assert row.conversation.messages[-1] == Message("user", row.prompt or "")
            assert row.prompt and row.prompt.strip()
    if shape == "jsonl":  # each line that is not blank is a row
        lines = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").split("\n")
        assert [row.number for row in rows] == [number for number, line in enumerate(lines, 1) if line.strip()]


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


TOO_LONG = "q" * 500  # of a context of 100 tokens


@pytest.fixture(params=["local", "server"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "local":
        yield LocalEngine(ScriptedBackend(lambda held, seed: END, context_size=100).open)
    else:
        with serving(lambda held, seed: END) as servers:
            yield remote_engine(*servers)


@pytest.fixture
def model(engine: Engine) -> Iterator[Model]:
    with model_on(engine, chosen_format("raw")) as model:
        yield model


def test_errors_of_a_cancelled_batch_are_written(model: Model) -> None:
    lines: list[str] = []
    run = StreamedRun(lines_of(f'{{"prompt": "{TOO_LONG}"}}\n' * 50, "jsonl"), lines.append)
    written = []
    for event in answer_rows(model, run, BatchOptions(Settings())):
        if isinstance(event, RowEvent):
            written.append(len(lines))
            if event.done == 20:
                model.cancel()
    assert len(lines) >= 20
    assert written[10] == 10


def test_refused_rows_keep_no_tokens(model: Model) -> None:
    rows = [Row(0, Ask(Conversation().user(TOO_LONG), Settings()))]
    [refused] = [event.result for event in run_rows(model, rows) if isinstance(event, Outcome)]
    assert isinstance(refused, RefusedEvent)
    assert refused.error.__traceback__ is None and refused.error.__context__ is None


def test_cancelled_rows_are_no_longer_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.replies.concurrent_rows.SORT_WINDOW", 4)
    rows = iter([Row(number, Ask(Conversation().user("q"), Settings())) for number in range(10)])
    for event in run_rows(model, rows, in_order=True):
        if isinstance(event, Outcome):
            model.cancel()
    assert next(rows).key == 4
