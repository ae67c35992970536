"""Failures in a chat: whatever goes wrong, the conversation can be continued."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chats import Loadable, contents, finish, make_chat, text
from disks import full_disk
from scripted_backend import ScriptedBackend, endless, replies

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.errors import EngineError, PromptTooLong, SessionError
from cerebrum_cli.core.events import Event, LoadEvent, TokenEvent
from cerebrum_cli.engine.backend import Backend, StopFlag

FIRST_PROMPT = "S\nUser: One?\nAI:"
SECOND_PROMPT = f"{FIRST_PROMPT} First.\nUser: Two?\nAI:"
SCRIPT = {
    FIRST_PROMPT: " First.",
    SECOND_PROMPT: " Second.",
    "S\nUser: Two?\nAI:": " Other.",
    f"{FIRST_PROMPT} \nUser: Two?\nAI:": " Third.",
}


class BrokenModel:
    """A model that cannot be loaded."""

    def open(self, tell: Callable[[Event], None], stop: StopFlag) -> Backend:
        raise EngineError("loading was interrupted")


@pytest.fixture(autouse=True)
def short_busy_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait briefly for a locked session database."""
    monkeypatch.setattr("cerebrum_cli.chat.database.BUSY_TIMEOUT_S", 0.05)


@pytest.fixture
def start_chat(store: Store, tmp_path: Path, chatml_model: Path) -> Iterator[Callable[..., Chat]]:
    """A factory of chats whose model is loaded as each of these in turn, then always as the last one."""
    chats: list[Chat] = []

    def start(*backends: Callable[[], Loadable]) -> Chat:
        remaining = list(backends)
        chats.append(
            make_chat(
                store, tmp_path, chatml_model, lambda: (remaining.pop(0) if len(remaining) > 1 else remaining[0])()
            )
        )
        return chats[-1]

    yield start
    for chat in chats:
        chat.close()


def working_model() -> ScriptedBackend:
    return ScriptedBackend(replies(SCRIPT), context_size=200)


def test_chat_reloads_the_model_after_a_failed_load(start_chat: Callable[..., Chat]) -> None:
    chat = start_chat(BrokenModel, working_model)
    with pytest.raises(EngineError, match="loading was interrupted"):
        list(chat.send("One?"))
    assert chat.session is None
    assert text(chat.send("One?")) == "First."
    assert contents(chat) == ["One?", "First."]


def test_chat_removes_a_question_that_cannot_be_answered(start_chat: Callable[..., Chat]) -> None:
    chat = start_chat(working_model, BrokenModel, BrokenModel, working_model)
    list(chat.send("One?"))
    with pytest.raises(EngineError):
        list(chat.change_settings({"ctx": 100}))
    with pytest.raises(EngineError):
        list(chat.send("Two?"))
    assert contents(chat) == ["One?", "First."]
    assert text(chat.send("Two?")) == "Second."
    assert contents(chat) == ["One?", "First.", "Two?", "Second."]


def test_interrupted_model_change_restores_the_previous_model(start_chat: Callable[..., Chat]) -> None:
    chat = start_chat(
        working_model, lambda: ScriptedBackend(replies(SCRIPT), load_events=(LoadEvent(0.5),)), working_model
    )
    list(chat.send("One?"))
    change = chat.change_settings({"model": "large", "ctx": 100})
    next(change)
    change.close()
    assert chat.author.model.reference == "small"
    assert text(chat.send("Two?")) == "Second."


def test_chat_removes_a_turn_that_cannot_be_saved(start_chat: Callable[..., Chat], tmp_path: Path) -> None:
    chat = start_chat(working_model)
    list(chat.send("One?"))
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as other:
        events = chat.send("Two?")
        with pytest.raises(SessionError):
            for event in events:
                if isinstance(event, TokenEvent) and not other.in_transaction:
                    other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    assert contents(chat) == ["One?", "First."]
    assert text(chat.send("Two?")) == "Second."


@pytest.fixture
def start_detaching_chat(tmp_path: Path, chatml_model: Path) -> Iterator[Callable[[], Chat]]:
    """A factory of chats that continue without a writable database."""
    chats: list[Chat] = []

    def start() -> Chat:
        store = Store(tmp_path / "sessions.db", detaches=True)
        chats.append(make_chat(store, tmp_path, chatml_model, working_model))
        return chats[-1]

    yield start
    for chat in chats:
        chat.close()


def test_chat_continues_on_a_full_disk(start_detaching_chat: Callable[[], Chat], tmp_path: Path) -> None:
    chat = start_detaching_chat()
    with full_disk():
        assert text(chat.send("One?")) == "First."
        assert text(chat.send("Two?")) == "Second."
        assert chat.unsaved_notice
        assert chat.unsaved_notice.message.startswith(f"this chat is not saved: {tmp_path}/sessions.db: ")
        assert chat.undo() == "Two?"
        assert contents(chat) == ["One?", "First."]
        chat.rename("mine")
    with contextlib.closing(Store(tmp_path / "sessions.db")) as saved:
        assert saved.summaries() == []


@pytest.mark.parametrize("stage", ["question", "reply"])
def test_chat_keeps_its_turns_when_the_disk_gets_full(
    start_detaching_chat: Callable[[], Chat], tmp_path: Path, stage: str
) -> None:
    chat = start_detaching_chat()
    assert text(chat.send("One?")) == "First."
    assert chat.unsaved_notice is None
    with contextlib.ExitStack() as stack:
        if stage == "question":
            stack.enter_context(full_disk())
        said = ""
        for event in chat.send("Two?"):
            if isinstance(event, TokenEvent):
                said += event.text
                if stage == "reply" and not chat.unsaved_notice:
                    stack.enter_context(full_disk())
        assert (said, bool(chat.unsaved_notice)) == ("Second.", True)
        assert contents(chat) == ["One?", "First.", "Two?", "Second."]
    with contextlib.closing(Store(tmp_path / "sessions.db")) as saved:
        [summary] = saved.summaries()
        assert summary.messages == (2 if stage == "question" else 3)


def test_chat_continues_a_session_that_cannot_be_locked(
    start_detaching_chat: Callable[[], Chat], tmp_path: Path
) -> None:
    first = start_detaching_chat()
    list(first.send("One?"))
    first.close()
    second = start_detaching_chat()
    (tmp_path / "locks").rename(tmp_path / "other")
    (tmp_path / "locks").write_text("not a directory")
    second.session = second.history.acquire_latest()
    assert text(second.send("Two?")) == "Second."
    assert contents(second) == ["One?", "First.", "Two?", "Second."]
    assert second.unsaved_notice


def test_killed_chat_leaves_no_empty_session(store: Store, start_chat: Callable[..., Chat], tmp_path: Path) -> None:
    chat = start_chat(working_model)
    events = chat.send("One?")
    next(events)
    with contextlib.closing(Store(tmp_path / "sessions.db")) as other:  # what a new process would find
        assert [summary.messages for summary in other.summaries()] == [1]
    events.close()


def test_chat_deletes_the_session_if_its_first_question_does_not_fit(
    start_chat: Callable[..., Chat], store: Store
) -> None:
    chat = start_chat(working_model)
    chat.rename("mine")
    with pytest.raises(PromptTooLong):
        list(chat.send("x" * 300))
    assert store.summaries() == []
    assert text(chat.send("One?")) == "First."
    assert [summary.session.name for summary in store.summaries()] == ["mine"]


def test_edit_question_restores_the_turn_if_the_new_one_does_not_fit(start_chat: Callable[..., Chat]) -> None:
    chat = start_chat(working_model)
    list(chat.send("One?"))
    with pytest.raises(PromptTooLong):
        list(chat.edit_question("x" * 300))
    assert contents(chat) == ["One?", "First."]
    assert text(chat.edit_question("Two?")) == "Other."
    assert contents(chat) == ["Two?", "Other."]


def test_chat_reports_a_name_taken_by_another_process(start_chat: Callable[..., Chat], store: Store) -> None:
    chat = start_chat(working_model)
    chat.rename("tea")
    store.create("tea", "chat")
    with pytest.raises(SessionError, match='session "tea" already exists'):
        list(chat.send("One?"))
    assert chat.session is None


PARROTS = "🦜🦜"
BYTES = {FIRST_PROMPT: f" {PARROTS}", f"{FIRST_PROMPT} {PARROTS}\nUser: Two?\nAI:": " Yes."}


def test_continue_completes_a_character_split_between_tokens(start_chat: Callable[..., Chat]) -> None:
    chat = start_chat(lambda: ScriptedBackend(endless(BYTES), context_size=200))
    list(chat.change_settings({"max_tokens": 3}))
    list(chat.send("One?"))
    assert chat.last_reply
    assert chat.last_reply.message.content == ""
    list(chat.change_settings({"max_tokens": 5}))
    list(chat.continue_reply())
    assert chat.last_reply.message.content == "🦜"
    list(chat.change_settings({"max_tokens": 8}))
    list(chat.continue_reply())
    list(chat.continue_reply())
    content = chat.last_reply.message.content
    assert content.startswith("🦜🦜 🦜🦜")
    assert "\ufffd" not in content[:-1]
    assert bytes(chat.last_reply.message.tokens or ()).decode("utf-8", "ignore").startswith(" 🦜🦜 🦜🦜")


def test_chat_saves_no_prompt_cache_when_it_is_disabled(start_chat: Callable[..., Chat], tmp_path: Path) -> None:
    chat = start_chat(lambda: ScriptedBackend(replies({f"S\nUser: {'x' * 80}\nAI:": " Yes."}), context_size=200))
    list(chat.change_settings({"cache_gb": 0}))
    list(chat.send("x" * 80))
    assert chat.close() is None
    assert not list(tmp_path.glob("states/*"))


def test_larger_context_restores_dropped_turns(store: Store, tmp_path: Path, chatml_model: Path) -> None:
    question = "x" * 60
    turn = f"User: {question}\nAI:"
    script = {
        (one := f"S\n{turn}"): " 1.",
        (two := f"{one} 1.\n{turn}"): " 2.",
        f"{two} 2.\nUser: More?\nAI:": " whole.",
        f"S\n{turn} 2.\nUser: More?\nAI:": " short.",
        f"S\n{turn} 2.\nUser: More?\nAI: short.\nUser: And?\nAI:": " still short.",
        f"{two} 2.\nUser: More?\nAI: short.\nUser: And?\nAI:": " whole again.",
    }
    sizes = [175, 600]
    chat = make_chat(store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(script), context_size=sizes.pop(0)))
    for prompt in (question, question, "More?"):
        last = text(chat.send(prompt))
    assert (last, chat.dropped_count) == ("short.", 2)
    list(chat.change_settings({"ctx": 600}))
    again = list(chat.send("And?"))
    assert text(again) == "whole again."
    assert chat.dropped_count == 0
    assert finish(again).prompt_tokens > 175
    chat.close()
