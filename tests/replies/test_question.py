"""From a question to a reply: its argument, files, pipe or messages; what the reply continues, shows and tells."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from asking import running_engine
from cases import rows
from hypothesis import given, strategies as st
from installations import model_on
from scripted_backend import END, ScriptedBackend
from templates import TEMPLATES, chosen_format

from cerebrum_cli.attachments.prompt_sources import PromptSources, fence_file, parse_messages
from cerebrum_cli.cli.options import template_variables
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, conversation_from_messages
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import FinishEvent, FinishReason, NoticeEvent, RoundEvent, SequenceId, Timings, TokenEvent
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.settings import EMBEDDED, Settings
from cerebrum_cli.core.tools import Round, ToolCall
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import Outcome, Row
from cerebrum_cli.replies.reply import Reply

PARSED = rows("parsed_messages")
USER = {"role": "user", "content": "Why?"}


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


@pytest.mark.parametrize(
    ("prompt", "piped", "problem"),
    [
        (None, b"ok\n\xc3", r"^standard input is not UTF-8 text \(byte 3\)$"),
        ("caf\udce9", b"x", r"^the prompt is not UTF-8 text$"),
    ],
)
def test_question_that_is_not_utf_8_is_refused(prompt: str | None, piped: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        ask(prompt, piped=piped)


def outline(value: Any) -> Any:
    """A value of dataclasses as JSON, without what is empty."""
    if isinstance(value, dict):
        return {key: outline(each) for key, each in value.items() if each not in (None, ())}
    return [outline(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", PARSED)
def test_messages_list_is_parsed(name: str) -> None:
    messages, expected = PARSED[name]
    assert outline(asdict(parse_messages(json.dumps(messages), "m.json"))) == expected


@pytest.mark.parametrize(("messages", "problem"), rows("refused_messages"))
def test_messages_that_are_ambiguous_are_refused(messages: list[Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_messages(json.dumps(messages), "m.json")
    assert problem in caught.value.message
    assert caught.value.hint


def test_calls_of_messages_may_have_half_a_character_and_no_ids() -> None:
    calls = [{"function": {"name": "\ud83d", "arguments": {"of": of}}} for of in (1, "\ud83d")]
    results = [{"role": "tool", "content": text} for text in ("one", "two")]
    messages = [USER, {"role": "assistant", "content": "So.", "tool_calls": calls}, *results]
    prefill = parse_messages(json.dumps(messages), "m.json").prefill
    expected = ToolCall("\ufffd", {"of": 1}, "one"), ToolCall("\ufffd", {"of": "\ufffd"}, "two")
    assert prefill and prefill.rounds[0].calls == expected


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000])
def test_messages_that_python_cannot_parse_are_not_json(text: str) -> None:
    with pytest.raises(UsageError, match=r"^m\.json is not JSON: "):
        parse_messages(text, "m.json")


def test_configured_system_prompt_does_not_change_messages() -> None:
    text = json.dumps([{"role": "system", "content": "Be brief."}, USER])
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


SEQUENCE = SequenceId(0)
FINISH = FinishEvent(
    sequence=SEQUENCE,
    reason="stop",
    prompt_tokens=20,
    cached_tokens=4,
    completion_tokens=5,
    seed=7,
    context_size=256,
    timings=Timings(load_s=1.0, prefill_s=0.5, ttft_s=0.75, decode_s=0.3, prefill_tokens=16, decode_steps=4),
)


def test_reply_object_has_texts_counts_and_timings() -> None:
    reply = Reply()
    for event in (TokenEvent(SEQUENCE, "hm", "thinking"), TokenEvent(SEQUENCE, "The answer is 4."), FINISH):
        assert not reply.is_finished
        reply.emit(event)
    answer = reply.as_object("4")
    assert (answer["text"], answer["reasoning"], answer["final_answer"]) == ("The answer is 4.", "hm", "4")
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (20, 5)
    times = {"load_s": 1.0, "prefill_s": 0.5, "ttft_s": 0.75, "decode_s": 0.3}
    speeds = {"prompt_tokens_per_second": 32.0, "tokens_per_second": 13.33, "draft_n": 0, "draft_n_accepted": 0}
    assert reply.timings_object == {**times, **speeds}


@pytest.mark.parametrize(("text", "reasoning", "reason", "message"), rows("reply_notices"))
def test_reply_notice_names_the_exhausted_limit(
    text: str, reasoning: str | None, reason: FinishReason, message: str | None
) -> None:
    reply = Reply()
    reply.begin((), [("thinking", reasoning or ""), ("answer", text)])
    reply.emit(FINISH._replace(reason=reason))
    notice = reply.notice()
    assert (notice and notice.message) == message
    assert reason != "context" or (notice and notice.hint == "raise --ctx, or ask for less")


def test_reply_notice_reports_nothing_after_the_results_of_functions() -> None:
    reply = Reply()
    called = Round((ToolCall("python", {"code": "print(42)"}, "42"),), "Let me compute.")
    for event in (TokenEvent(SEQUENCE, "Let me compute."), RoundEvent(called), FINISH):
        reply.emit(event)
    notice = reply.notice()
    assert notice and notice.message == "the model wrote nothing after the results of its functions"


# Replies that continue a last message.

REST = b" 4."
MESSAGES = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "It is", "reasoning_content": "Two and two."},
]
STRICT = (  # a template that demands content
    "{% for message in messages %}[{{ message.content or raise_exception('empty') }}]{% endfor %}"
)
SHOWS_SYSTEM_LAST = (
    "{% if messages[0].role == 'system' %}{% set system, messages = messages[0].content, messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if loop.last and system and message.role == 'user' %}[{{ system }}\n\n"
    "{% else %}[{% endif %}{{ message.content }}]{% endfor %}"
)
QWEN = "qwen3.8"


@contextmanager
def opened(template: str, begun: str = "It is") -> Iterator[Model]:
    """A model that goes on after the beginning of a reply, with a named format, or a template or its name."""

    def model(held: tuple[int, ...], seed: int) -> int:
        _, _, rest = bytes(held).rpartition(begun.encode())
        return REST[len(rest)] if len(rest) < len(REST) else END

    with running_engine(ScriptedBackend(model, context_size=1000)) as engine:
        is_named = template in ("chatml", "cerebrum", SERVER)
        source = None if is_named else TEMPLATES.get(template, template)
        yield model_on(engine, chosen_format(template if is_named else EMBEDDED, source))


def begun(*more: dict[str, Any], **last: Any) -> Conversation:
    """Messages, of which the last has these keys, after others."""
    return conversation_from_messages([*more, MESSAGES[0], {**MESSAGES[1], **last}], "m")


@pytest.mark.parametrize(
    ("template", "reasoning", "prompt"),
    [
        ("chatml", None, "<|im_start|>assistant\nIt is"),
        ("cerebrum", None, "User: 2 + 2?\nAI: It is"),
        ("mistral", None, "[/INST] It is"),
        ("deepseek-r1", "Two and two.", "<｜Assistant｜><think>\nTwo and two.\n</think>\n\nIt is"),
        (QWEN, "Two and two.", "assistant\n<think>\nTwo and two.\n</think>\n\nIt is"),
    ],
)
def test_reply_continues_the_last_message(template: str, reasoning: str | None, prompt: str) -> None:
    asked = Ask(begun(), Settings())
    with opened(template) as model:
        shown, ids = model.preview(asked.conversation)
        assert shown.endswith(prompt) and bytes(ids).endswith(prompt.encode())
        streamed = model.respond(asked)
        assert "".join(streamed) == "It is 4."
        [event] = [event for event in run_rows(model, [Row(0, asked)]) if isinstance(event, Outcome)]
        assert isinstance(event.result, Reply)
        for reply in (streamed, event.result):
            assert (reply.text, reply.reasoning, reply.finish.completion_tokens) == ("It is 4.", reasoning, 3)
            assert bytes(reply.tokens or ()).endswith(b"It is 4.")
        following = reply.conversation.user("Why?")
        assert [message.content for message in following.messages] == ["2 + 2?", "It is 4.", "Why?"]
        assert "It is 4." in model.prompts.text(following)


@pytest.mark.parametrize("last", [{"content": " \n"}, {"content": None, "reasoning_content": "2 + 2?"}])
@pytest.mark.parametrize("template", ["chatml", "cerebrum", "mistral", STRICT], ids=lambda name: name[:8])
def test_reply_without_visible_text_has_not_begun(template: str, last: dict[str, str | None]) -> None:
    asked = begun(**{"reasoning_content": None, **last})
    with opened(template) as model:
        assert model.preview(asked) == model.preview(Conversation().user("2 + 2?"))
        assert "".join(model.respond(Ask(asked, Settings(), Grammar("gbnf", "root ::= [0-9]*")))) == ""


@pytest.mark.parametrize("template", [QWEN, "deepseek-r1"])
def test_beginning_of_a_reply_may_be_reasoning_alone(template: str) -> None:
    asked = begun(content=None)
    with opened(template) as model, opened("chatml") as chatml:
        assert model.prompts.text(asked).endswith("<think>\nTwo and two.")
        assert not [*model.prompts.notices(asked)]
        assert [notice.message for notice in chatml.prompts.notices(asked)] == ["the prompt format has no reasoning"]


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nTwo and", "Two and 4.", ""),
        ("<think>\nTwo.</think>", "Two.", "4."),
        ("<think>Two.</think>It is", "Two.", "It is 4."),
    ],
)
def test_beginning_of_a_reply_may_have_reasoning_in_its_text(text: str, reasoning: str, answer: str) -> None:
    with opened(QWEN, text) as model:
        reply = model.respond(Ask(begun(content=text, reasoning_content=None), Settings()))
        assert "".join(reply) == answer
        assert (reply.text, reply.reasoning) == (answer, reasoning)


def test_system_prompt_that_only_a_last_question_shows_precedes_a_reply_that_has_begun() -> None:
    with opened(SHOWS_SYSTEM_LAST) as model:
        asked = begun({"role": "system", "content": "S."})
        assert model.prompts.text(replace(asked, prefill=None)) == "[S.\n\n2 + 2?]"
        assert model.prompts.text(asked) == "[S.\n\n2 + 2?][It is"
        assert "".join(model.respond(Ask(asked, Settings()))).endswith("It is 4.")


def test_reply_that_has_begun_is_refused_with_a_grammar_and_on_servers_with_templates() -> None:
    with opened("chatml") as model, opened(SERVER) as served:
        with pytest.raises(UsageError, match="a schema or grammar cannot apply to a reply that has begun"):
            model.respond(Ask(begun(), Settings(), Grammar("gbnf", "root ::= .*"))).wait()
        with pytest.raises(UsageError, match="a server that builds the prompt cannot continue a reply"):
            served.respond(Ask(begun(), Settings())).wait()
        with pytest.raises(UsageError, match="the server builds the prompt, which is not known here"):
            served.preview(begun())
