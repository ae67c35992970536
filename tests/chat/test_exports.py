"""A session as Markdown and as messages, which parse back unchanged."""

import json

import pytest

from cerebrum_cli.chat.archive import ArchivedSession
from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.session import ReplyMetadata, Session
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Message, conversation_from_messages
from cerebrum_cli.core.tools import Round, ToolCall


@pytest.mark.parametrize(
    ("content", "finish_reason", "model", "expected"),
    [
        ("One, tw", "cancelled", "small", "One, tw\n\n*(interrupted)*"),
        ("One, tw", None, "small", "One, tw\n\n*(interrupted)*"),  # the process was killed
        ("One, tw", "length", "small", "One, tw\n\n*(truncated)*"),
        ("One, two.", "stop", "small", "One, two."),
        ("My own.", None, None, "My own."),  # written by the user
        ("```py\nx =", "length", "small", "```py\nx =\n```\n\n*(truncated)*"),
        ("```\n1\n```", "length", "small", "```\n1\n```\n\n*(truncated)*"),
    ],
)
def test_markdown_notes_why_a_reply_is_incomplete(
    store: Store, content: str, finish_reason: str | None, model: str | None, expected: str
) -> None:
    metadata = ReplyMetadata(finish_reason=finish_reason, model=model)
    session = create_session(store, (Message("assistant", content), metadata))
    assert archived(store, session).markdown == (f"# talk\n\n## User\n\nOne?\n\n## Assistant\n\n{expected}\n")


def test_json_has_openai_messages_with_reasoning(store: Store) -> None:
    session = create_session(store, (Message("assistant", "First.", reasoning="Hm.\nSo."), ReplyMetadata()))
    session = store.update_session(session, system_prompt="Be brief.")
    exported = archived(store, session).object
    assert (exported["name"], exported["model"]) == ("talk", "small")
    assert exported["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First.", "reasoning_content": "Hm.\nSo."},
    ]


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


def test_calls_of_functions_survive_an_export(store: Store, called: Session) -> None:
    messages = json.loads(archived(store, called).json)["messages"]
    assert [message["role"] for message in messages[:4]] == ["user", "assistant", "tool", "tool"]
    assert json.loads(messages[1]["tool_calls"][0]["function"]["arguments"]) == ROUNDS[0].calls[0].arguments
    assert messages[3]["tool_call_id"] == messages[1]["tool_calls"][1]["id"]
    read_back = conversation_from_messages(messages, "talk.json", is_request=False)
    assert list(read_back.messages) == [stored.message for stored in store.messages(called)]


def test_markdown_fences_calls_whatever_they_contain(store: Store, called: Session) -> None:
    text = archived(store, called).markdown
    weather = """````\nweather(city='Tromsø "N"', days=[1, {'a': None}])\n-> Dry.\n```\n````"""
    reply = f"## Assistant\n\n{weather}\n\n```\nnow()\n->\n```\n\nLet me see.\n\n"
    assert f"{reply}```\npython(code='print(1)\\n')\n-> 1\n```\n\nDry.\n\n## User" in text
    assert text.endswith("-> 1\n```\n\n*(interrupted)*\n")


def archived(store: Store, session: Session) -> ArchivedSession:
    return History(store, None).archived(session)


def create_session(store: Store, *turns: tuple[Message, ReplyMetadata]) -> Session:
    session = store.create("talk", "chat", model="small")
    for number, (reply, metadata) in enumerate(turns):
        session = store.add_message(session, Message("user", ("One?", "Two?", "Three?")[number]))
        session = store.add_message(session, reply, metadata)
    return session
