"""A chat moves through its session's tree, keeps every turn as it goes, and evaluates nothing twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_backend import ScriptedBackend, endless, replies

from cerebrum_cli.application.chat import Chat
from cerebrum_cli.application.history import History
from cerebrum_cli.application.model import Model
from cerebrum_cli.application.opening import Opened
from cerebrum_cli.application.responder import LocalResponder
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.formats.plain import CEREBRUM
from cerebrum_cli.ground.errors import PromptTooLong, SessionError
from cerebrum_cli.ground.events import Event, FinishEvent, TokenEvent
from cerebrum_cli.ground.settings import Settings
from cerebrum_cli.sessions.store import Store

ONE = "S\nUser: One?\nAI:"
TWO = f"{ONE} First.\nUser: Two?\nAI:"
SCRIPT = {ONE: " First.", TWO: " Second.", f"{TWO} Second.\nUser: Three?\nAI:": " Third."}
LONG = {ONE: " and so on"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "sessions.db")
    yield store
    store.close()


@pytest.fixture
def chat(store: Store) -> Iterator[Chat]:
    """Return a chat with a model that has its replies by heart."""
    yield from talking(store, ScriptedBackend(replies(SCRIPT), context_size=500))


@pytest.fixture
def endless_chat(store: Store) -> Iterator[Chat]:
    """Return a chat with a model that never ends by itself."""
    yield from talking(store, ScriptedBackend(endless(LONG), context_size=500))


def talking(store: Store, backend: ScriptedBackend, **settings: object) -> Iterator[Chat]:
    engine = Engine(backend.open)
    responder = LocalResponder(engine, lambda _: CEREBRUM, backend.context_size)
    opened = Opened(Model("small", (Path("small.gguf"),)), "cerebrum", engine, responder)
    yield Chat(History(store), opened, Settings(system="S", **settings))  # type: ignore[arg-type]
    engine.close()


def text(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenEvent))


def finish(events: Iterable[Event]) -> FinishEvent:
    [ended] = [event for event in events if isinstance(event, FinishEvent)]
    return ended


def said(chat: Chat) -> list[str]:
    return [stored.message.content for stored in chat.path]


def test_each_turn_reads_only_what_is_new(chat: Chat) -> None:
    assert text(chat.say("One?")) == "First."
    second = finish(chat.say("Two?"))
    assert second.cached_tokens == len(f"{ONE} First.")
    assert finish(chat.say("Three?")).prompt_tokens == len(f"{TWO} Second.\nUser: Three?\nAI:")
    assert said(chat) == ["One?", "First.", "Two?", "Second.", "Three?", "Third."]


def test_a_turn_is_kept_with_how_it_came_to_be(chat: Chat, store: Store) -> None:
    list(chat.say("One?"))
    session = store.find("one")
    assert session
    assert (session.origin, session.model, session.format, session.system_prompt) == ("chat", "small", "cerebrum", "S")
    question, reply = store.messages(session)
    assert (question.message.role, reply.parent) == ("user", question.id)
    assert reply.message.tokens == tuple(b" First.")
    assert (reply.said.finish_reason, reply.said.model, reply.said.format) == ("stop", "small", "cerebrum")


def test_what_is_taken_back_is_not_evaluated_again_and_stays_in_the_tree(chat: Chat, store: Store) -> None:
    list(chat.say("One?"))
    list(chat.say("Two?"))
    assert chat.undo() == "Two?"
    assert said(chat) == ["One?", "First."]
    assert finish(chat.say("Two?")).cached_tokens >= len(f"{ONE} First.")
    assert len(store.children(chat.path[1].id)) == 2
    assert chat.undo() == "Two?"
    assert chat.undo() == "One?"
    assert chat.undo() is None
    assert chat.conversation.messages == ()


def test_a_reply_is_tried_again_beside_the_one_there_was(chat: Chat, store: Store) -> None:
    list(chat.say("One?"))
    before = chat.last_reply
    again = list(chat.retry(replace(chat.settings, temperature=0.5)))
    assert text(again) == "First."
    assert finish(again).cached_tokens == len(ONE) - 1  # the last token of a prompt is always evaluated
    assert before
    assert [each.said.params and each.said.params["temperature"] for each in store.children(before.parent)] == [0, 0.5]
    with pytest.raises(SessionError, match="there is no question to answer"):
        chat.undo()
        list(chat.retry())


def test_a_cut_reply_is_gone_on_with_where_it_ended(endless_chat: Chat) -> None:
    chat = endless_chat
    chat.settings = replace(chat.settings, max_tokens=4)
    assert text(chat.say("One?")) == "and"
    assert chat.last_reply
    assert chat.last_reply.message.tokens == tuple(b" and")
    chat.settings = replace(chat.settings, max_tokens=6)
    assert text(chat.go_on()) == " so on"
    assert chat.last_reply.message.content == "and so on"
    assert chat.last_reply.message.tokens == tuple(b" and so on")
    assert said(chat) == ["One?", "and so on"]


def test_only_a_cut_reply_can_be_gone_on_with(chat: Chat) -> None:
    with pytest.raises(SessionError, match="there is no reply to go on with"):
        list(chat.go_on())
    list(chat.say("One?"))
    with pytest.raises(SessionError, match="has ended by itself"):
        list(chat.go_on())
    assert said(chat) == ["One?", "First."]


def test_a_reply_that_is_closed_early_is_kept_as_far_as_it_came(endless_chat: Chat, store: Store) -> None:
    events = endless_chat.say("One?")
    for event in events:
        if isinstance(event, TokenEvent) and event.token == ord("d"):
            break
    events.close()
    assert said(endless_chat) == ["One?", "and"]
    assert endless_chat.last_reply
    assert endless_chat.last_reply.said.finish_reason == "cancelled"


def test_a_question_closed_before_the_first_word_has_an_empty_answer(endless_chat: Chat) -> None:
    events = endless_chat.say("One?")
    next(events)
    events.close()
    assert said(endless_chat) == ["One?", ""]


def test_what_was_said_is_there_while_it_is_said(
    endless_chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerebrum_cli.application.chat.SAVE_EVERY_S", 0.0)
    events = endless_chat.say("One?")
    for event in events:
        if isinstance(event, TokenEvent) and event.token == ord("o"):
            other = Store(tmp_path / "sessions.db")
            session = other.find("one")
            assert session
            assert other.messages(session)[-1].message.content == "and so"
            assert other.messages(session)[-1].said.finish_reason is None
            other.close()
            break
    events.close()
    assert said(endless_chat) == ["One?", "and so"]


def test_a_question_that_does_not_fit_is_taken_back(chat: Chat) -> None:
    list(chat.say("One?"))
    with pytest.raises(PromptTooLong):
        list(chat.say("x" * 500))
    assert said(chat) == ["One?", "First."]
    assert text(chat.say("Two?")) == "Second."


def test_a_fork_goes_on_alone(chat: Chat, store: Store) -> None:
    with pytest.raises(SessionError, match="nothing has been said yet"):
        chat.fork()
    list(chat.say("One?"))
    assert chat.fork("other").name == "other"
    list(chat.say("Two?"))
    first = store.find("one")
    assert first
    assert [stored.message.content for stored in store.messages(first)] == ["One?", "First."]
    assert said(chat) == ["One?", "First.", "Two?", "Second."]


def test_another_system_prompt_leads_from_now_on(chat: Chat, store: Store) -> None:
    chat.lead("T")
    assert chat.conversation.system_prompt == "T"
    chat.lead("S")
    list(chat.say("One?"))
    chat.lead("T")
    session = store.find("one")
    assert session
    assert session.system_prompt == chat.conversation.system_prompt == "T"
