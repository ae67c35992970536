"""Reading the rows of a batch from txt, jsonl, csv and tsv; an invalid row is an error row."""

import json
import math
import os
import threading
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cases
import pytest
from batch_files import InputRow, input_row, open_rows, output_object, rows_in
from hypothesis import given, strategies as st

from cerebrum_cli.batch.answering import RowNotices
from cerebrum_cli.batch.readers import HEAD_ROWS, SHAPES, InputOptions, Shape
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.grammar import Grammar, schema_grammar
from cerebrum_cli.core.row_fields import RowError
from cerebrum_cli.results.results import open_stream

WHY = Conversation().user("Why?")
USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "So."}


def json_row(value: Any, **options: Any) -> InputRow:
    (row,) = rows_in(value if isinstance(value, str) else json.dumps(value), "jsonl", **options)
    return row


def problem(row: InputRow) -> tuple[str, str]:
    assert row.error and row.conversation is None and row.settings == {}
    return row.error.type, row.error.message


def prompts(rows: tuple[InputRow, ...]) -> list[tuple[int, str | None]]:
    return [(row.number, row.prompt) for row in rows]


def test_txt_has_a_prompt_per_line_without_blanks_and_comments() -> None:
    rows = rows_in("Why?\n\n  \t\n# not this\n  # nor this\n How? \nC#\n")
    assert prompts(rows) == [(1, "Why?"), (6, " How? "), (7, "C#")]
    assert rows[0] == input_row(1, 1, "Why?", Conversation().user("Why?"))


def test_txt_ignores_byte_order_mark_and_carriage_returns() -> None:
    assert prompts(rows_in(b"\xef\xbb\xbfa\r\n\r\nb\r\nc")) == [(1, "a"), (3, "b"), (4, "c")]


def test_only_a_line_feed_ends_a_line() -> None:
    line = "a\u2028b\x85c\x0bd\x0ce\x1cf\rg"
    assert prompts(rows_in(line + "\n")) == [(1, line)]
    assert json_row('{"prompt": "a\u2028b"}').prompt == "a\u2028b"


def test_line_that_is_not_utf_8_is_an_error_row() -> None:
    for shape, good in (("txt", b"ok"), ("jsonl", b'{"prompt": "ok"}')):
        first, second = rows_in(b"caf\xe9\n" + good, shape)
        assert (first.id, first.prompt, problem(first)) == (1, None, ("invalid_utf8", "byte 4 is not UTF-8"))
        assert second.prompt == "ok"
    assert prompts(rows_in(b"# caf\xe9\nok")) == [(2, "ok")]


@pytest.mark.parametrize(
    ("value", "id", "conversation"),
    [
        ({"prompt": "Why?"}, 1, Conversation().user("Why?")),
        ({"prompt": "Why?", "id": "a", "model": "m", "note": [1]}, "a", Conversation().user("Why?")),
        ({"prompt": "Why?", "id": 0}, 0, Conversation().user("Why?")),
        ({"prompt": "Why?", "id": None, "custom_id": ""}, 1, Conversation().user("Why?")),
        ({"prompt": "Why?", "id": "b", "custom_id": "a"}, "a", Conversation().user("Why?")),
        ({"prompt": "Why?", "system": "Be brief."}, 1, Conversation((), "Be brief.").user("Why?")),
        ({"prompt": "Why?", "system": "", "messages": None}, 1, Conversation((), "").user("Why?")),
        ({"messages": [USER]}, 1, Conversation().user("Why?")),
        ({"messages": [USER], "system": "Be brief."}, 1, Conversation((), "Be brief.").user("Why?")),
        ({"messages": [USER, ASSISTANT, USER]}, 1, Conversation().user("Why?").assistant("So.").user("Why?")),
        ({"prompt": "Why?", "stream": "science", "n": 1, "tools": []}, 1, Conversation().user("Why?")),
        ({"prompt": "Why?", "response_format": {"type": "text"}}, 1, Conversation().user("Why?")),
        ({"prompt": "\ud83d cut", "id": "\udc00"}, "\ufffd", Conversation().user("\ufffd cut")),
        ({"prompt": "Why?", "id": 5.0, "x": math.nan, "y": math.inf, "z": [{"n": -math.inf}]}, 5, WHY),
        ({"prompt": "Why?", "id": math.nan, "custom_id": -0.0, "system": math.nan, "seed": math.nan}, 0, WHY),
        ({"prompt": "Why?", "id": math.nan, "messages": math.nan, "model": math.nan, "n": 1.0}, 1, WHY),
    ],
)
def test_json_object_is_a_row(value: Any, id: str | int, conversation: Conversation) -> None:
    row = replace(json_row(value), unused=())
    assert row == input_row(1, id, conversation.messages[-1].content, conversation)


@pytest.mark.parametrize(
    "around",
    [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"},
        {"custom_id": "a", "method": "POST", "url": "/v1/completions"},
        {"custom_id": "a"},
        {"id": "a", "url": None},
    ],
)
def test_openai_batch_request_is_a_row(around: dict[str, Any]) -> None:
    body = {"model": "gpt-4", "messages": [SYSTEM, USER], "max_completion_tokens": 5, "temperature": 1, "stop": "x"}
    row = json_row({**around, "body": body})
    settings = {"max_tokens": 5, "temperature": 1.0, "stop": ("x",)}
    conversation = Conversation((), "Be brief.").user("Why?")
    assert row == input_row(1, "a", "Why?", conversation, settings=settings, unused=("model",))
    assert json_row({**around, "body": {"prompt": "Why?"}}).conversation == Conversation().user("Why?")


def test_json_row_has_the_samplers_of_openai() -> None:
    body = {"presence_penalty": -0.5, "frequency_penalty": 0.5}
    assert json_row({"custom_id": "a", "body": {"prompt": "Why?", **body}}).settings == body


def test_json_row_has_settings_beside_the_prompt() -> None:
    given = {"temperature": 1, "top_k": 5, "top_p": 0.5, "min_p": 0, "repeat_penalty": 1.1, "seed": 3}
    row = json_row({"prompt": "Why?", **given, "max_tokens": 9, "stop": ["a", "\ud800"]})
    assert row.settings == {**given, "max_tokens": 9, "stop": ("a", "\ufffd")}
    assert json_row({"prompt": "a", **dict.fromkeys([*given, "max_tokens", "stop"])}).settings == {}
    assert json_row({"prompt": "a", "max_completion_tokens": 8, "max_tokens": 9}).settings == {"max_tokens": 8}


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


@pytest.mark.parametrize(
    ("line", "id"),
    [
        (b'{"prompt": 5, "id": "a"}', "a"),
        (b'{"id": 7.0}', 7),
        (b'{"custom_id": "b", "body": {"messages": []}}', "b"),
        (b'{"prompt": "caf\xe9", "id": "c"}', "c"),
        (b'{"prompt": "a", "id": true}', "true"),
        (b'{"prompt": "a", "id": 1.5}', "1.5"),
        (b'{"prompt": "a", "custom_id": ["x"], "id": 1}', '["x"]'),
    ],
)
def test_row_that_fails_keeps_its_id(line: bytes, id: str | int) -> None:
    [row] = rows_in(line, "jsonl")
    assert row.error and (row.id, row.conversation) == (id, None)


CITY = {"type": "object", "properties": {"city": {"enum": ["Köln"]}}}


def schema_form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        (schema_form(CITY), schema_grammar(CITY)),
        ({"type": "json_object"}, schema_grammar({"type": "object"})),
        ({"type": "text"}, None),
        (None, None),
    ],
)
def test_json_row_has_a_schema_of_its_own(form: Any, grammar: Grammar | None) -> None:
    body = {"response_format": form}
    row = json_row({"custom_id": "a", "body": {"messages": [USER], **body}})
    assert (row.grammar, row.unused, row.error) == (grammar, (), None)
    assert json_row({"prompt": "a", **body}).grammar == grammar
    rendered = json_row({"id": "a", **body}, template="{response_format}")
    assert (rendered.error, rendered.grammar) == (None, None)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"type": "structural_tag"}, "invalid `response_format`: {'type': 'structural_tag'}; its type must be"),
        ({"type": "json_schema"}, "invalid `response_format`: {'type': 'json_schema'}; its type must be"),
        ("json", "invalid `response_format`: 'json'; its type must be"),
        (schema_form(5), "invalid `response_format`: cannot use the schema: it is not a JSON object"),
    ],
)
def test_json_row_with_an_invalid_schema_is_an_error(form: Any, message: str) -> None:
    row = json_row({"custom_id": "a", "body": {"messages": [USER], "response_format": form}})
    assert (row.id, problem(row)[0]) == ("a", "invalid_request")
    assert problem(row)[1].startswith(message)


def notices_of(data: str, shape: Shape) -> list[tuple[str, str]]:
    notices = RowNotices()
    found = [notices.of(row) for row in rows_in(data, shape)]
    return [(notice.message, notice.hint) for notice in (*found, notices.of_keys) if notice]


def test_keys_without_effect_are_noted_once() -> None:
    bodies: list[dict[str, Any]] = [
        {"messages": [USER], "min_tokens": 5, "stream": True, "user": "u", "logprobs": False, "bad_words": []},
        {"messages": [USER], "min_tokens": 6, "reasoning_effort": "low"},
        {"messages": [USER], "temperature": 1, "priority": True},
    ]
    requests = [{"custom_id": str(number), "note": 1, "body": body} for number, body in enumerate(bodies)]
    plain = {"prompt": "a", "min_tokens": 5, "note": [1]}
    found = notices_of("\n".join(map(json.dumps, [*requests, plain, [1]])), "jsonl")
    [(message, hint)] = found
    assert message == "ignored keys: min_tokens, note, priority"
    assert "--set help" in hint
    assert notices_of(json.dumps(plain), "jsonl") == [("ignored keys: min_tokens, note", hint)]
    assert not json_row(plain, template="{note}").unused


@pytest.mark.parametrize(("shape", "text", "message"), cases.rows("duplicate_ids"))
def test_first_duplicate_id_is_noted(shape: Shape, text: str, message: str | None) -> None:
    assert [found for found, _ in notices_of(text, shape)] == ([message] if message else [])


@pytest.mark.parametrize("depth", [900, 990, 100_000])
def test_deeply_nested_json_is_an_error_row(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for fields in (f'"prompt": {nested}', f'"prompt": "a", "id": {nested}', f'"prompt": "a", "stop": {nested}'):
        first, second = rows_in(f'{{{fields}}}\n{{"prompt": "b"}}', "jsonl")
        assert problem(first)[0] in ("invalid_json", "invalid_request", "invalid_setting")
        assert second.prompt == "b"
    rows_in(f'{{"a": {nested}}}', "jsonl", template="{a}")


def test_error_row_has_the_known_id_and_prompt_and_a_short_message() -> None:
    row = json_row({"custom_id": "a", "prompt": "Why?", "seed": "x"})
    assert (row.number, row.id, row.prompt) == (1, "a", "Why?")
    message = problem(json_row({"prompt": ["x" * 1_000_000]}))[1]
    assert len(message) == 400
    assert message.endswith("x…")


def test_csv_prompts_are_in_a_column() -> None:
    table = 'id,question,n\r\na,"Why, then?",1\r\n\r\n,"a ""b""\nc",2\r\n7, x ,\r\n'
    rows = rows_in("\ufeff" + table, "csv", template="{question}")
    assert rows == (
        input_row(1, "a", "Why, then?", Conversation().user("Why, then?")),
        input_row(2, 2, 'a "b"\nc', Conversation().user('a "b"\nc')),
        input_row(3, "7", " x ", Conversation().user(" x ")),
    )


def test_row_without_an_id_gets_its_number() -> None:
    rows = rows_in('x\n{"custom_id": "b"}\n\n{"prompt": "b", "id": ""}\n', "jsonl")
    assert [row.id for row in rows] == [1, "b", 4]
    assert [row.id for row in rows_in("id,prompt\n,a\n,b\n", "csv")] == [1, 2]


@pytest.mark.parametrize(("header", "record", "options"), cases.rows("delimiters"))
def test_csv_delimiter_is_found_in_the_header(header: str, record: str, options: dict[str, str]) -> None:
    if header == options.get("template", "")[1:-1]:
        header = f'"{header}"'  # a comma in quotes separates nothing
    [row] = rows_in(f"{header}\r\n{record}\r\n", "csv", **options)
    assert (row.id, row.prompt) == ("a" if "id" in header else 1, "Why, then?")


@pytest.mark.parametrize(
    ("shape", "text", "delimiter", "message"),
    [
        ("csv", "id;text;prompt", ",", "the input has no column `prompt`"),
        ("csv", "id;text", None, "the input has no column `prompt`"),
        ("csv", "prompt;prompt", None, "the input has more than one column `prompt`"),
        ("jsonl", "{}", ";", "--delimiter does not apply to jsonl"),
    ],
)
def test_delimiter_that_does_not_fit_is_an_error(shape: Shape, text: str, delimiter: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        rows_in(f"{text}\na;b;c", shape, delimiter=delimiter)
    assert caught.value.message == message and caught.value.hint
    if text == "id;text":
        assert "id, text" in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "header", "names"),
    [
        ("csv", "note,prompt,note", "`note`"),
        ("tsv", "note\tprompt\t note \tb\tb", "`note`, `b`"),
        ("csv", "prompt,größe,größe,größe", "`größe`"),
    ],
)
def test_columns_of_one_name_are_an_error(shape: Shape, header: str, names: str) -> None:
    with pytest.raises(UsageError) as caught:
        rows_in(f"{header}\n", shape)
    assert caught.value.message == f"the input has more than one column {names}" and caught.value.hint
    [row] = rows_in("Note,prompt,note\na,b,c\n", "csv")
    assert row.prompt == "b"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("prompt,note,,\na,b,,\n", [{"prompt": "a", "note": "b"}]),
        ("prompt;;\na;;\nb; ;\nc\n", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]),
        ("prompt,,note,\na,,b,\n", [{"prompt": "a", "note": "b"}]),
        (",prompt,,\n0,a,,\n", [{"": "0", "prompt": "a"}]),  # an index, as pandas writes it
    ],
)
def test_columns_without_names_and_values_are_left_out(text: str, fields: list[dict[str, str]]) -> None:
    rows = rows_in(text, "csv", include_input=True)
    assert [row.input for row in rows] == fields and [row.error for row in rows] == [None] * len(fields)


def test_value_without_a_name_is_an_error_of_its_row() -> None:
    good, bad = rows_in(",,prompt,,\n,,a,,\n,x,b,c,\n", "csv")
    assert good.prompt == "a" and problem(bad) == ("invalid_record", "column 2 has a value, but no name")
    [long, short] = rows_in("prompt,note,\na,b,,c\na\n", "csv")
    assert problem(long) == ("invalid_record", "it has 4 fields, but the header has 3")
    assert problem(short) == ("invalid_record", "it has 1 field, but the header has 3")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"prompt": "a", "prompt": "b"}', "prompt"),
        ('{"prompt": "a", "note": 1, "n\\u006fte": 1}', "note"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
    ],
)
def test_key_that_occurs_twice_is_an_error_of_its_row(line: str, key: str) -> None:
    bad, good = rows_in(f'{line}\n{{"prompt": "a", "x": [{{"y": 1}}, {{"y": 2}}]}}', "jsonl")
    assert problem(bad) == ("invalid_json", f"the key `{key}` occurs more than once") and good.prompt == "a"


def test_tsv_column_defaults_to_prompt() -> None:
    assert prompts(rows_in("custom_id\t prompt \nx\ta,b\ny\t'c\n", "tsv")) == [(1, "a,b"), (2, "'c")]
    assert [row.id for row in rows_in("custom_id\tprompt\tid\nx\ta\ty\n\ta\tz\n", "tsv")] == ["x", "z"]


def test_record_of_another_length_is_an_error_row() -> None:
    short, long, empty, good = rows_in('id,prompt\na\nb,c,d\ne," "\nf,g', "csv")
    assert (short.id, problem(short)) == ("a", ("invalid_record", "it has 1 field, but the header has 2"))
    assert (long.id, problem(long)) == ("b", ("invalid_record", "it has 3 fields, but the header has 2"))
    assert (empty.id, problem(empty)) == ("e", ("no_prompt", "the prompt is empty"))
    assert good.prompt == "g"


def test_csv_field_may_be_large() -> None:
    (row,) = rows_in("prompt\n" + "x" * 300_000, "csv")
    assert row.prompt == "x" * 300_000


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("Sum up: {text}", "Sum up: a {b}"),
        ("{text}{text}{ m }", "a {b}a {b}3"),
        ("{{text}} {{{text}}} }}", "{text} {a {b}} }"),
        ("{list} {none} {yes}", '["é", {"a": null}] null true'),
        ("{a.b!r:>9}", "odd"),
        ("\n{text}\n", "\na {b}\n"),
    ],
)
def test_template_renders_fields(template: str, prompt: str) -> None:
    fields = {"text": "a {b}", "m": 3, "list": ["é", {"a": None}], "none": None, "yes": True, "a.b!r:>9": "odd"}
    row = json_row({**fields, "id": "x", "seed": 1, "prompt": 5, "messages": 6}, template=template + "{id}")
    assert (row.id, row.prompt, row.settings) == ("x", f"{prompt}x", {"seed": 1})
    assert row.conversation == Conversation().user(f"{prompt}x")


def test_template_has_the_fields_of_a_request() -> None:
    request = {"custom_id": "a", "body": {"text": "b", "system": "Be brief."}}
    assert json_row(request, template="{custom_id}: {text}").conversation == Conversation((), "Be brief.").user("a: b")
    assert json_row({"title": "t", "body": {"x": 1}}, template="{title} {body} {x}").prompt == 't {"x": 1} 1'


def test_template_field_is_not_a_setting() -> None:
    fields = {"n": 300, "stop": 5, "system": ["x"], "seed": 1}
    row = json_row(fields, template="{n} words, {stop} stops, {system}")
    assert row == input_row(
        1, 1, '300 words, 5 stops, ["x"]', Conversation().user(row.prompt or ""), settings={"seed": 1}
    )
    assert problem(json_row(fields, template="{stop}{system}"))[1].startswith("invalid `n`: 300")


def test_template_reads_only_fields() -> None:
    lines = '{"text": "a", "id": 4}\n{"text.__class__": "b"}'
    row, _ = rows_in(lines, "jsonl", template="{text.__class__}")
    assert problem(row) == ("unknown_field", "no field `text.__class__`; the fields are: text, id")
    assert row.id == 4
    row, _ = rows_in('{}\n{"text": "a"}', "jsonl", template="{text}")
    assert problem(row)[1] == "no field `text`; the fields are: none"
    assert problem(json_row({"text": " "}, template="{text}")) == ("no_prompt", "the prompt is empty")


@pytest.mark.parametrize(
    ("name", "data", "shape"),
    [
        ("a.txt", b"{", "txt"),
        ("a.jsonl", b"Why?", "jsonl"),
        ("a.NDJSON", b"", "jsonl"),
        ("a.csv", b"{", "csv"),
        ("-", b"Why?", "txt"),
        ("-", b"\xef\xbb\xbf\r\n \t{}", "jsonl"),
        ("/dev/fd/63", b'{"prompt": 1}', "jsonl"),
    ],
)
def test_input_type_is_from_the_name_or_the_bytes(name: str, data: bytes, shape: str) -> None:
    assert InputOptions().detect_shape(Path(name), data) == shape


INPUTS: list[tuple[Shape, str]] = [
    ("txt", "\ufeff\n# one\na\r\n\u3000\n  b é\n#\nc"),
    ("jsonl", '\ufeff\n{"prompt": "a"}\n \n\n{\n{"prompt": "b é", "id": 7}\r\n{"prompt": "c"}'),
    ("csv", '\ufeff\nid,prompt\r\nx,"a\n\n""é"", b"\n\n\ny\nz,"c\rw"\nz,d\r\n"\r",e'),
    ("tsv", 'prompt\n"a\r\n\tb"\n\n\nc'),
]


@pytest.mark.parametrize(("shape", "text"), INPUTS)
def test_rows_are_read_again_and_have_keys(shape: Shape, text: str) -> None:
    """They do not depend on line ends, or on blank lines and comments."""
    with open_rows(text, shape) as rows:
        known = list(rows.known_rows())
        assert [row.number for row in rows] == [row.number for row in rows] == [number for _, number in known]
    assert len({digest for digest, _ in known}) == len(known) > 1
    with open_rows(text.replace("\n", "\n\n", 1).replace("\r\n", "\n"), shape) as rows:
        assert [digest for digest, _ in rows.known_rows()][1:] == [digest for digest, _ in known[1:]]


@pytest.mark.slow
def test_unclosed_quote_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.batch.table_rows.MAX_FIELD_BYTES", 16_000_000)
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
        results = open_stream(print, rows.kind_for(Path("out.jsonl")), rows.known_rows())
        assert (results.size, rows.is_whole) == (min(lines, HEAD_ROWS), is_whole)
        assert [row.number for _, row in rows.missing_rows(results)] == [*range(1, lines + 1)]
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
        missing = rows.missing_rows(open_stream(print, rows.kind_for(Path("out.jsonl")), rows.known_rows()))
        assert next(missing)[1].prompt == "a"
        if change == "append":
            (tmp_path / "old").write_text("a\nb\nc\n")
        os.utime(tmp_path / "old", ns=(1, 1))
        with pytest.raises(BatchError) as caught:
            next(missing)
    assert caught.value.message == f"{path} was changed while the batch ran"
    assert caught.value.hint == "unchanged rows keep their answers"


def test_lines_may_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.batch.readers.MAX_LINE_BYTES", 3_000_000)
    line = b"a" * 3_000_000
    data = b"\n".join([b"x", line, line, b"", b"y", line])
    assert [row.number for row in rows_in(data)] == [1, 2, 3, 5, 6]
    for longer in (data + b"a", data.replace(b"\n\ny", b"a\n\ny"), b"a" + line):
        with pytest.raises(UsageError, match=r"has a line that is larger than 3 MB"):
            rows_in(longer)


# Generated inputs.

SCRAPS = [*(bytes([each]) for each in b'{}":,[]\n\r\t# \x001'), b"prompt", b"messages"]
BYTES = st.binary(max_size=60) | st.lists(
    st.sampled_from([*SCRAPS, b"\xff", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b'"prompt":"a"', b"\\ud800", b"id,prompt\n"])
).map(b"".join)


def validate_rows(rows: tuple[InputRow, ...]) -> None:
    """Rows are in order, have a conversation or an error, and can be written."""
    assert rows
    assert [row.number for row in rows] == sorted({row.number for row in rows})
    for row in rows:
        assert (row.error is None) == (row.conversation is not None)
        json.dumps(output_object(row, error=asdict(row.error or RowError("a", "b"))), ensure_ascii=False).encode()
        if row.conversation:
            assert row.conversation.messages[-1] == Message("user", row.prompt or "")
            assert row.prompt and row.prompt.strip()


@given(BYTES, st.sampled_from(SHAPES), st.sampled_from([None, "{a}", "{text}"]))
def test_any_bytes_give_rows_or_a_usage_error(data: bytes, shape: Shape, template: str | None) -> None:
    try:
        rows = rows_in(data, shape, template=template)
    except UsageError as error:
        assert error.message
        return
    validate_rows(rows)
    if shape == "jsonl":  # each line that is not blank is a row
        lines = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").split("\n")
        assert [row.number for row in rows] == [number for number, line in enumerate(lines, 1) if line.strip()]
