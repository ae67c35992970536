"""Reading a question from the argument, files and a pipe, or a conversation from a messages list."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cases import rows
from hypothesis import given, strategies as st

from cerebrum_cli.attachments.prompt_sources import PromptSources, fence_file, parse_messages
from cerebrum_cli.cli.options import template_variables
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.tools import Round, ToolCall

USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "So."}
CALLS = {
    "role": "assistant",
    "reasoning_content": "Hm.",
    "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": [1]}'}},
        {"id": "b", "type": "function", "function": {"name": "now", "arguments": {}}},
    ],
}
RESULTS = (
    {"role": "tool", "tool_call_id": "b", "content": None},
    {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "Dry.\n"}]},
)
ROUNDS = (Round((ToolCall("weather", {"city": "Oslo", "days": [1]}, "Dry.\n"), ToolCall("now", {})), "", "Hm."),)
SHORT = Conversation().user("Why?")
CALLED = SHORT.add(Message("assistant", "Dry.", rounds=ROUNDS))
CALLED_AFTER_TEXT = SHORT.add(Message("assistant", "So.", rounds=(replace(ROUNDS[0], content="So."),)))


def no_notices(notice: NoticeEvent) -> None:
    raise AssertionError(notice)


def ask(
    prompt: str | None = None,
    *files: Path,
    messages: Path | None = None,
    raw: bool = False,
    piped: bytes | None = None,
    system: str | None = None,
) -> Conversation:
    sources = PromptSources(prompt, files, messages, raw, no_notices)
    stream = BytesIO(piped) if piped is not None else None
    sources.validate(stream)
    return sources.read(stream, Settings(system=system), system)


def question_text(*arguments: Any, **options: Any) -> str:
    (message,) = ask(*arguments, **options).messages
    assert message.role == "user"
    return message.content


def write(directory: Path, name: str, data: bytes | str) -> Path:
    path = directory / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# Argument, files and piped input.


def test_question_joins_files_prompt_and_piped_input(tmp_path: Path) -> None:
    code, notes = write(tmp_path, "a.py", "x = 1\n\n"), write(tmp_path, "notes", "  b\n")
    expected = f"{code}:\n```py\nx = 1\n```\n\n{notes}:\n```\n  b\n```\n\nWhy?\n\npiped\ntext"
    assert question_text("Why?\n", code, notes, piped=b"piped\ntext\n\n") == expected
    assert question_text("-", piped=b"\xef\xbb\xbf Why?\n") == " Why?"
    bare = write(tmp_path, "a", b"\xef\xbb\xbfx\xef\xbb\xbfy")
    assert question_text(" ", bare, piped=b"\n") == f"{bare}:\n```\nx\ufeffy\n```"


def test_raw_question_joins_its_sources_directly(tmp_path: Path) -> None:
    file = write(tmp_path, "a", "a \n")
    assert ask("b ", file, raw=True, piped=b"c\n", system="unread") == Conversation().user("a \nb c\n")
    assert question_text(" ", raw=True) == " "


@given(st.text(alphabet="`~ab\n", max_size=40))
def test_no_line_of_a_file_closes_its_fence(text: str) -> None:
    opening, *lines, closing = fence_file("a", text).split("\n")[1:]
    assert closing == opening
    assert closing not in "\n".join(lines)
    assert "\n".join(lines) == text.rstrip()


def test_piped_text_that_is_not_utf_8_is_refused_with_the_offset() -> None:
    with pytest.raises(UsageError, match=r"^standard input is not UTF-8 text \(byte 3\)$"):
        ask(piped=b"ok\n\xc3")


def test_argument_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^the prompt is not UTF-8 text$"):
        ask("caf\udce9", piped=b"x")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], Conversation().user("Why?")),
        ([SYSTEM, USER], Conversation((), "Be brief.").user("Why?")),
        ([USER, ASSISTANT, USER], Conversation().user("Why?").assistant("So.").user("Why?")),
        ({"model": "m", "messages": [USER]}, Conversation().user("Why?")),
        ([{**USER, "name": "x"}], Conversation().user("Why?")),
        ([{"role": "user", "content": "\ud83d cut off"}], Conversation().user("\ufffd cut off")),
        ([SYSTEM, SYSTEM, USER, USER], Conversation((), "Be brief.\n\nBe brief.").user("Why?\n\nWhy?")),
        ([USER, ASSISTANT, ASSISTANT, USER], Conversation().user("Why?").assistant("So.\n\nSo.").user("Why?")),
        ([{**SYSTEM, "role": "developer"}, USER], Conversation((), "Be brief.").user("Why?")),
        ([{**USER, "content": [{"type": "text", "text": text} for text in ("Why", "?")]}], Conversation().user("Why?")),
        ([USER, {**ASSISTANT, "content": None, "tool_calls": []}], Conversation().user("Why?")),
        (
            [USER, {"role": "assistant", "reasoning_content": "Hm."}, USER],
            Conversation().user("Why?").assistant("", None, "Hm.").user("Why?"),
        ),
        ([USER, {**ASSISTANT, "content": " \n"}], Conversation().user("Why?")),
        ([USER, CALLS, *RESULTS, {**ASSISTANT, "content": "Dry."}, USER], CALLED.user("Why?")),
        ([USER, ASSISTANT, {**CALLS, "content": ""}, *RESULTS, ASSISTANT, USER], CALLED_AFTER_TEXT.user("Why?")),
        (
            [USER, CALLS, *RESULTS],
            replace(Conversation().user("Why?"), prefill=Message("assistant", "", rounds=ROUNDS)),
        ),
        ([USER, ASSISTANT], replace(Conversation().user("Why?"), prefill=Message("assistant", "So."))),
        (
            [USER, {**ASSISTANT, "reasoning_content": "Hm."}, USER],
            Conversation().user("Why?").assistant("So.", None, "Hm.").user("Why?"),
        ),
    ],
)
def test_messages_list_is_parsed(messages: Any, expected: Conversation) -> None:
    assert parse_messages(json.dumps(messages), "m.json") == expected


def test_calls_of_messages_may_have_half_a_character() -> None:
    function = {"name": "\ud83d", "arguments": {"a": "\ud83d"}}
    called = {**ASSISTANT, "tool_calls": [{"function": function}]}
    read = parse_messages(json.dumps([USER, called, {"role": "tool", "content": "x"}, USER]), "m.json")
    assert read.messages[1].rounds[0].calls == (ToolCall("\ufffd", {"a": "\ufffd"}, "x"),)


@pytest.mark.parametrize(("messages", "problem"), rows("refused_messages"))
def test_messages_that_are_ambiguous_are_refused(messages: list[Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_messages(json.dumps(messages), "m.json")
    assert problem in caught.value.message
    assert caught.value.hint


def test_calls_without_ids_have_results_in_their_order() -> None:
    calls = [{"function": {"name": "sum", "arguments": {"of": number}}} for number in (1, 2)]
    results = [{"role": "tool", "content": text} for text in ("one", "two")]
    messages = [USER, {**ASSISTANT, "tool_calls": calls}, *results]
    prefill = parse_messages(json.dumps(messages), "m.json").prefill
    assert prefill and prefill.rounds[0].calls == (ToolCall("sum", {"of": 1}, "one"), ToolCall("sum", {"of": 2}, "two"))


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000])
def test_messages_that_python_cannot_parse_are_not_json(text: str) -> None:
    with pytest.raises(UsageError, match=r"^m\.json is not JSON: "):
        parse_messages(text, "m.json")


def test_configured_system_prompt_does_not_change_messages() -> None:
    text = json.dumps([SYSTEM, {"role": "user", "content": "Why?"}])
    question = PromptSources(None, (), Path("-"), raw=False, on_notice=no_notices)
    configured = Settings(system="From config.toml.")
    assert question.read(BytesIO(text.encode()), configured, None).system_prompt == "Be brief."
    assert question.read(BytesIO(text.encode()), configured, "Given.").system_prompt == "Given."


def test_template_variables_are_json_or_text() -> None:
    nested = "[" * 100_000
    values = {"true": True, "1": 1, "x=y": "x=y", '"1"': "1", "": "", '{"g": [null]}': {"g": [None]}, "[": "["}
    for text, value in {**values, nested: nested}.items():
        assert template_variables(["a=last", "b=2", f"a={text}"]) == {"a": value, "b": 2}
    assert template_variables(()) == {}


def test_the_length_of_a_question_is_estimated_before_it_is_read(tmp_path: Path) -> None:
    text = write(tmp_path, "a.txt", "four" * 100)
    files = (text, write(tmp_path, "b.pdf", "%PDF" * 100), tmp_path, tmp_path / "none")
    sources = PromptSources("word" * 10, files, text, raw=False, on_notice=no_notices)
    assert sources.expected_tokens(None) == 10 + 100 + 100
    assert sources.expected_tokens(BytesIO()) > 1000
