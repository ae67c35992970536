"""Exports: formats parse back unchanged, malformed input is reported in one line, and files are complete or absent."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from installations import source_of

from cerebrum_cli.chat.archive import ArchivedSession, parse_conversation
from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.session import ReplyMetadata, Session
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Conversation, Message, Text
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.settings import fold
from cerebrum_cli.core.tools import Round, ToolCall
from cerebrum_cli.replies.interface import Model, open_source

SUMS = Conversation(system_prompt="Be brief.").user("What is 2 + 2?\n").assistant("Four.", (1, 2)).user("And 3 + 3?")
SHAREGPT = {
    "id": "sums",
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "What is 2 + 2?\n"},
        {"from": "gpt", "value": "Four."},
        {"from": "human", "value": "And 3 + 3?"},
    ],
}
READ_BACK = Conversation(system_prompt="Be brief.").user("What is 2 + 2?\n").assistant("Four.").user("And 3 + 3?")


@pytest.mark.parametrize(
    ("content", "finish_reason", "model", "expected"),
    [
        ("One, tw", "cancelled", "small", "One, tw\n\n*(interrupted)*"),
        ("One, tw", None, "small", "One, tw\n\n*(interrupted)*"),  # the process was killed
        ("One, tw", "length", "small", "One, tw\n\n*(truncated)*"),
        ("One, two.", "stop", "small", "One, two."),
        ("My own.", None, None, "My own."),  # imported, or written by the user
        ("```py\nx =", "length", "small", "```py\nx =\n```\n\n*(truncated)*"),
        ("```\n1\n```", "length", "small", "```\n1\n```\n\n*(truncated)*"),
    ],
)
def test_markdown_notes_why_a_reply_is_incomplete(
    store: Store, content: str, finish_reason: str | None, model: str | None, expected: str
) -> None:
    metadata = ReplyMetadata(finish_reason=finish_reason, model=model)
    session = create_session(store, (Message("assistant", content), metadata))
    assert archived(store, session).export("markdown") == (f"# talk\n\n## User\n\nOne?\n\n## Assistant\n\n{expected}\n")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (SUMS.openai_messages, None),
        ({"name": "sums", "model": "a", "messages": SUMS.openai_messages}, "sums"),
        ({"messages": [{"role": "developer", "content": "Be brief."}, *SUMS.openai_messages[1:]]}, None),
        ([{**each, "content": [{"type": "text", "text": each["content"]}]} for each in SUMS.openai_messages], None),
        (SHAREGPT, "sums"),
        ([SHAREGPT], "sums"),
        ({"conversations": [{"from": each["role"], "value": each["content"]} for each in SUMS.openai_messages]}, None),
    ],
)
def test_parse_conversation_accepts_both_formats_and_their_names(value: object, name: str | None) -> None:
    assert parse_conversation(json.dumps(value), "here") == (name, READ_BACK)


USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "c"}


def test_conversation_nested_too_deeply_is_not_json() -> None:
    with pytest.raises(SessionError, match=r"^chat\.json is not JSON: "):
        parse_conversation("[" * 100_000, "chat.json")


def test_questions_in_a_row_are_joined_and_keep_markup() -> None:
    parts = [{"type": "text", "text": "<think>And?</think>"}]
    messages = [SYSTEM, USER, {"role": "user", "content": parts}, {**REPLY, "content": "<think>Hm.</think>\n\nb"}, USER]
    expected = Conversation(system_prompt="c").user("a\n\n<think>And?</think>").assistant("b", None, "Hm.").user("a")
    assert parse_conversation(json.dumps(messages), "here")[1] == expected


@pytest.mark.parametrize("export_format", ["json", "sharegpt"])
def test_reasoning_and_alternatives_survive_an_export(store: Store, tmp_path: Path, export_format: str) -> None:
    session = create_session(store, (Message("assistant", "First.", reasoning="Hm.\nSo."), ReplyMetadata()))
    [question, first] = store.messages(session)
    for reply, tokens, reason in (("Oth", (1, 2), "cancelled"), ("Other.", (1, 2, 3), "stop")):  # and continued
        metadata = ReplyMetadata(model="small", finish_reason=reason)
        session = store.add_message(store.move(session, question.id), Message("assistant", reply, tokens), metadata)
    assert [stored.message.content for stored in store.replies(question)] == ["First.", "Oth", "Other."]
    store.add_message(store.move(session, first.id), Message("user", "A question that failed"))
    session = store.move(session, first.id)
    assert "Other." not in archived(store, session).export(export_format)
    every = History(store, None).archived(session, alternatives=True)
    text = every.export(export_format)
    exported = json.loads(text)
    assert [(other["place"], "Other." in other.values()) for other in exported["alternatives"]] == [(2, True)]
    (tmp_path / "talk.json").write_text(text)
    imported = store.messages(History(store, None).import_file(tmp_path / "talk.json", "again"))
    assert [(each.message.content, each.message.reasoning) for each in imported] == [
        ("One?", None),
        ("First.", "Hm.\nSo."),
    ]
    assert "## Alternatives\n\n### Assistant (message 2)\n\nOther." in every.export("markdown")
    assert "Other." not in archived(store, session).export("markdown")


ROUNDS = (
    Round(
        (ToolCall("weather", {"city": 'Tromsø "N"', "days": [1, {"a": None}]}, "Dry.\n```\n"), ToolCall("now", {}, ""))
    ),
    Round((ToolCall("python", {"code": "print(1)\n"}, "1"),), "Let me see.", "Hm."),
)


@pytest.fixture
def called(store: Store) -> Session:
    """A session with a reply that calls functions, and one that also ends with calls."""
    dry, nothing = (
        Message("assistant", "Dry.", rounds=ROUNDS, reasoning="So."),
        Message("assistant", "", rounds=ROUNDS[1:]),
    )
    return create_session(store, (dry, ReplyMetadata()), (nothing, ReplyMetadata(finish_reason="cancelled")))


@pytest.mark.parametrize("export_format", ["json", "sharegpt"])
def test_calls_of_functions_survive_an_export(
    store: Store, tmp_path: Path, called: Session, export_format: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(archived(store, called).export(export_format))
    imported = History(store, None).import_file(path, "again")
    assert [stored.message for stored in store.messages(imported)] == [
        stored.message for stored in store.messages(called)
    ]
    messages = json.loads(archived(store, imported).export("json"))["messages"]
    assert [message["role"] for message in messages[:4]] == ["user", "assistant", "tool", "tool"]
    assert json.loads(messages[1]["tool_calls"][0]["function"]["arguments"]) == ROUNDS[0].calls[0].arguments
    assert messages[3]["tool_call_id"] == messages[1]["tool_calls"][1]["id"]


def test_markdown_fences_calls_whatever_they_contain(store: Store, called: Session) -> None:
    text = archived(store, called).export("markdown")
    weather = """````\nweather(city='Tromsø "N"', days=[1, {'a': None}])\n-> Dry.\n```\n````"""
    reply = f"## Assistant\n\n{weather}\n\n```\nnow()\n->\n```\n\nLet me see.\n\n"
    assert f"{reply}```\npython(code='print(1)\\n')\n-> 1\n```\n\nDry.\n\n## User" in text
    assert text.endswith("-> 1\n```\n\n*(interrupted)*\n")


def test_session_object_lists_calls_with_results(store: Store, called: Session) -> None:
    messages = archived(store, called).object["messages"]
    assert messages[3]["calls"] == [{"name": "python", "arguments": {"code": "print(1)\n"}, "result": "1"}]
    assert "calls" not in messages[0]


# Files, and transcripts exactly as the model sees them.

FIRST_PROMPT = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
SECOND_PROMPT = "<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
OWN, OTHER = ReplyMetadata(model="small", finish_reason="stop"), ReplyMetadata(model="other", finish_reason="stop")


@pytest.fixture
def loaded(tmp_path: Path, chatml_model: Path) -> Iterator[Model]:
    """The small model, with only its vocabulary loaded."""
    small = open_source(source_of(chatml_model, fold({}), "small", vocabulary_only=True))
    list(small.load())
    yield small
    small.engine.close()


def archived(store: Store, session: Session) -> ArchivedSession:
    return History(store, None).archived(session)


def create_session(store: Store, *turns: tuple[Message, ReplyMetadata]) -> Session:
    session = store.create("talk", "chat", model="small")
    for number, (reply, metadata) in enumerate(turns):
        session = store.add_message(session, Message("user", ("One?", "Two?", "Three?")[number]))
        session = store.add_message(session, reply, metadata)
    return session


def transcript(store: Store, session: Session, loaded: Model) -> str:
    assert store.path
    path = store.path.with_name("talk.txt")
    archived(store, session).write(path, loaded)
    text = path.read_text()
    path.unlink()
    return text


def test_transcript_tokenizes_another_models_reply_again(store: Store, loaded: Model) -> None:
    second = Message("assistant", "Second.", loaded.engine.vocabulary.tokenize((Text("Second."),)))
    session = create_session(store, (Message("assistant", "First.", (31999, 7)), OTHER), (second, OWN))
    assert transcript(store, session, loaded) == f"{FIRST_PROMPT}First.{SECOND_PROMPT}Second.\n"
    session = store.move(session, store.messages(session)[1].id)
    assert transcript(store, session, loaded) == f"{FIRST_PROMPT}First.\n"


def test_transcript_includes_reasoning_without_an_answer(store: Store, loaded: Model) -> None:
    tokens = loaded.engine.vocabulary.tokenize((Text("<think>", True), Text("hm")))
    metadata = ReplyMetadata(model=loaded.model.reference, vocabulary=loaded.model.vocabulary)
    session = create_session(store, (Message("assistant", "", tokens, reasoning="hm"), metadata))
    assert transcript(store, session, loaded) == f"{FIRST_PROMPT}<think>hm\n"
