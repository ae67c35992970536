"""Chat: moving through the session's tree, saving every turn, and evaluating each prefix only once."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from chats import children, contents, finish, make_chat, text
from disks import full_disk
from scripted_backend import ScriptedBackend, endless, replies

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.reply_recorder import save_interval
from cerebrum_cli.chat.session import Session
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.errors import EngineError, Interrupted, ModelNotFound, PromptTooLong, SessionError
from cerebrum_cli.core.events import Event, NoticeEvent, TokenEvent
from cerebrum_cli.core.tools import Round, ToolCall


def prompt(*turns: str) -> str:
    """The prompt of a conversation of questions and replies; a reply begins with a space."""
    *earlier, question = turns
    pairs = zip(earlier[::2], earlier[1::2], strict=True)
    return "S\n" + "".join(f"User: {asked}\nAI:{reply}\n" for asked, reply in pairs) + f"User: {question}\nAI:"


SCRIPT = {
    prompt("One?"): " First.",
    prompt("One?", " First.", "Two?"): " Second.",
    prompt("One?", " First.", "Two?", " Second.", "Three?"): " Third.",
    prompt("Two?"): " Other.",
}

Start = Callable[..., Chat]


@pytest.fixture
def start_chat(store: Store, tmp_path: Path, chatml_model: Path) -> Iterator[Start]:
    """A factory of chats whose model is loaded as each of these in turn, then always as the last one."""
    with contextlib.ExitStack() as stack:

        def start(*backends: Callable[[], ScriptedBackend], store: Store = store) -> Chat:
            left = list(backends)
            chat = make_chat(store, tmp_path, chatml_model, lambda: (left.pop(0) if len(left) > 1 else left[0])())
            stack.callback(chat.close)
            return chat

        yield start


def model(script: Mapping[str, str] = SCRIPT, context_size: int = 500) -> Callable[[], ScriptedBackend]:
    return lambda: ScriptedBackend(replies(script), context_size=context_size)


@pytest.fixture
def chat(start_chat: Start) -> Chat:
    return start_chat(model())


@pytest.fixture
def endless_chat(start_chat: Start) -> Chat:
    """A chat with a model that never ends a reply, and may repeat itself."""
    chat = start_chat(lambda: ScriptedBackend(endless({prompt("One?"): " and so on"}), context_size=500))
    chat.settings = replace(chat.settings, loop_check=False)
    return chat


def ask(chat: Chat, *questions: str) -> list[str]:
    """The replies to questions."""
    return [text(chat.send(question)) for question in questions]


def session_of(store: Store, name: str) -> Session:
    session = store.find(name)
    assert session
    return session


def test_chat_evaluates_only_new_tokens_of_each_turn(chat: Chat) -> None:
    assert ask(chat, "One?") == ["First."]
    assert finish(chat.send("Two?")).cached_tokens == len(prompt("One?") + " First.")
    assert finish(chat.send("Three?")).prompt_tokens == len(prompt("One?", " First.", "Two?", " Second.", "Three?"))
    assert contents(chat) == ["One?", "First.", "Two?", "Second.", "Three?", "Third."]


def test_chat_samples_unless_its_model_is_to_be_greedy(chat: Chat) -> None:
    assert chat.settings.temperature == 0  # as Cerebrum's cards recommend
    list(chat.change_settings({"format": "collective-cognition"}))
    assert (chat.settings.temperature, chat.settings.origin("temperature")) == (0.7, "default")
    list(chat.change_settings({"temperature": 0.0}))
    assert chat.settings.temperature == 0


# Undo, redo, retry and continue.


def test_undo_keeps_the_turn_in_the_tree_and_its_prefix_evaluated(chat: Chat, store: Store) -> None:
    ask(chat, "One?", "Two?")
    assert chat.tree.undo() == "Two?"
    assert contents(chat) == ["One?", "First."]
    assert finish(chat.send("Two?")).cached_tokens >= len(prompt("One?") + " First.")
    assert len(children(store, chat.tree.messages[1].id)) == 2
    assert [chat.tree.undo() for _ in range(2)] == ["Two?", "One?"]
    assert chat.conversation.messages == ()


def test_redo_restores_undone_turns_one_by_one(chat: Chat) -> None:
    ask(chat, "One?", "Two?", "Three?")
    whole = contents(chat)
    assert [chat.tree.undo() for _ in range(3)] == ["Three?", "Two?", "One?"]
    assert [chat.tree.redo() for _ in range(2)] == ["One?", "Two?"]
    assert contents(chat) == whole[:4]
    with pytest.raises(PromptTooLong):
        ask(chat, "x" * 5000)
    assert chat.tree.redo() == "Three?"
    chat.tree.undo()
    chat.switch_session(chat.tree.session)  # as after a restart
    assert (chat.tree.redo(), contents(chat)) == ("Three?", whole)


def test_retry_keeps_the_previous_reply_in_the_tree(chat: Chat, store: Store) -> None:
    ask(chat, "One?")
    before, again = chat.tree.require_reply(), list(chat.retry(replace(chat.settings, temperature=0.5)))
    assert text(again) == "First."
    assert finish(again).cached_tokens == len(prompt("One?")) - 1  # the last token of a prompt is always evaluated
    versions = [before, chat.tree.require_reply()]
    assert [reply.metadata.params and reply.metadata.params["temperature"] for reply in versions] == [0, 0.5]
    assert children(store, versions[0].parent) == ["First.", "First."]


def test_continue_extends_a_truncated_reply(endless_chat: Chat) -> None:
    list(endless_chat.change_settings({"max_tokens": 4}))
    assert ask(endless_chat, "One?") == ["and"]
    list(endless_chat.change_settings({"max_tokens": 6}))
    assert text(endless_chat.continue_reply()) == " so on"
    assert contents(endless_chat) == ["One?", "and so on"]
    assert endless_chat.tree.require_reply().message.tokens == tuple(b" and so on")


def test_continuation_that_never_begins_leaves_the_reply(endless_chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    list(endless_chat.change_settings({"max_tokens": 4}))
    ask(endless_chat, "One?")

    def interrupt(*_: object) -> int:
        raise Interrupted(signal.SIGINT, "")

    for begin in (endless_chat.continue_reply, lambda: endless_chat.reply_from("and")):
        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            patched.setattr(type(endless_chat.loaded.prompts), "count", interrupt)
            list(begin())
        assert contents(endless_chat) == ["One?", "and"]
    events = endless_chat.continue_reply()
    next(events)  # of its prompt
    events.close()
    assert contents(endless_chat) == ["One?", "and"]
    assert endless_chat.tree.require_reply().metadata.finish_reason == "length"
    assert text(endless_chat.continue_reply()) == " so"


def test_continue_keeps_the_calls_of_a_truncated_reply(start_chat: Start, store: Store) -> None:
    chat = start_chat(lambda: ScriptedBackend(lambda held, seed: ord("x"), context_size=500))
    chat.settings = replace(chat.settings, loop_check=False, max_tokens=2)
    ask(chat, "One?")
    truncated = chat.tree.require_reply()
    called = replace(truncated.message, rounds=(Round((ToolCall("now", {}, "12:00"),), "Wait.", tokens=(1,)),))
    store.update_message(chat.tree.require_session(), called, truncated.metadata)
    list(chat.continue_reply())
    assert chat.tree.require_reply().message == replace(called, content="xxxx", tokens=tuple(b"xxxx"))
    list(chat.retry())
    assert chat.tree.require_reply().message.rounds == ()


def test_continue_refuses_a_reply_that_fills_the_largest_context(endless_chat: Chat) -> None:
    ask(endless_chat, "One?")
    before = contents(endless_chat)
    with pytest.raises(SessionError, match="the reply fills the context of 500 tokens, the largest"):
        list(endless_chat.continue_reply())
    assert contents(endless_chat) == before


def test_continue_completes_a_character_split_between_tokens(start_chat: Start) -> None:
    chat = start_chat(lambda: ScriptedBackend(endless({prompt("One?"): " 🦜🦜"}), context_size=200))
    versions: list[Message] = []
    for limit in (3, 5, 8, 8):
        list(chat.change_settings({"max_tokens": limit}))
        list(chat.continue_reply() if versions else chat.send("One?"))
        versions.append(chat.tree.require_reply().message)
    assert [reply.content for reply in versions[:2]] == ["", "🦜"]
    assert versions[-1].content.startswith("🦜🦜 🦜🦜") and "\ufffd" not in versions[-1].content[:-1]
    assert bytes(versions[-1].tokens or ()).decode("utf-8", "ignore").startswith(" 🦜🦜 🦜🦜")


# What is saved, and when.


def test_chat_saves_the_part_of_an_interrupted_reply(endless_chat: Chat) -> None:
    events = endless_chat.send("One?")
    for event in events:
        if isinstance(event, TokenEvent) and event.tokens == (ord("d"),):
            break
    events.close()
    assert contents(endless_chat) == ["One?", "and"]
    assert endless_chat.tree.require_reply().metadata.finish_reason == "cancelled"
    events = endless_chat.send("Two?")
    next(events)
    events.close()
    assert contents(endless_chat)[2:] == ["Two?", ""]


def test_chat_saves_a_question_before_its_reply_can_be_interrupted(chat: Chat) -> None:
    """Ctrl-C while it is saved would cancel loading for the next question, and /retry would have none."""
    chat.send("One?")
    assert contents(chat) == ["One?"]
    assert (chat.tree.undo(), chat.tree.redo()) == ("One?", "One?")


def test_chat_saves_a_reply_while_it_is_generated(
    endless_chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerebrum_cli.chat.reply_recorder.save_interval", lambda elapsed_s: 0.0)
    events = endless_chat.send("One?")
    for event in events:
        if isinstance(event, TokenEvent) and event.tokens == (ord("o"),):
            with contextlib.closing(Store(tmp_path / "sessions.db")) as other:
                reply = other.messages(session_of(other, "one"))[-1]
            assert (reply.message.content, reply.metadata.finish_reason) == ("and so", None)
            break
    events.close()
    assert contents(endless_chat) == ["One?", "and so"]


def test_reply_is_saved_every_second_and_a_long_one_less_often() -> None:
    assert [save_interval(elapsed_s) for elapsed_s in (0, 50, 500)] == [1, 1, 10]


def test_chat_locks_a_new_session_before_others_see_it(chat: Chat, store: Store) -> None:
    class Watched(History):
        seen: ClassVar[list[list[str]]] = []

        def lock(self, session: Session) -> None:
            with contextlib.closing(Store(store.path)) as other:
                self.seen.append(other.names())
            super().lock(session)

    chat.tree.history = Watched(store, chat.tree.history.locks)
    assert ask(chat, "One?") == ["First."]
    assert (Watched.seen, store.names()) == ([[]], ["one"])


def test_chat_removes_a_question_that_does_not_fit(chat: Chat, store: Store) -> None:
    chat.tree.rename("mine")
    with pytest.raises(PromptTooLong):
        ask(chat, "x" * 500)
    assert store.summaries() == []
    ask(chat, "One?")
    assert store.names() == ["mine"]
    for send in (chat.send, chat.edit_question):
        with pytest.raises(PromptTooLong):
            list(send("x" * 500))
        assert contents(chat) == ["One?", "First."]
    assert ask(chat, "Two?") == ["Second."]
    assert chat.tree.undo() == "Two?"
    assert text(chat.edit_question("Two?")) == "Other."
    assert contents(chat) == ["Two?", "Other."]


# A conversation longer than the context.

X, Y, Z = (letter * 80 for letter in "xyz")


def notices(events: list[Event]) -> list[NoticeEvent]:
    return [event for event in events if isinstance(event, NoticeEvent)]


def test_chat_drops_the_oldest_turns_from_the_context_with_a_notice(start_chat: Start) -> None:
    script = {
        prompt(X): " First.",
        prompt(X, " First.", Y): " Second.",
        prompt(Y, " Second.", Z): " Third.",
        prompt(Y, " Second.", Z, " Third.", "And?"): " Fourth.",
        prompt(X, " First.", "Well?"): " Fifth.",
    }
    chat = start_chat(model(script, 300))  # which fits two of three turns
    ask(chat, X, Y)
    events = list(chat.send(Z))
    [notice] = notices(events)
    assert notice.message == "the context of 300 tokens is full: dropped the 2 oldest messages from it"
    assert notice.hint == "the session keeps them; /set ctx N makes room for more"
    assert text(events) == "Third."
    assert contents(chat) == [X, "First.", Y, "Second.", Z, "Third."]
    assert [message.content for message in chat.conversation.messages] == [Y, "Second.", Z, "Third."]
    after = list(chat.send("And?"))
    assert finish(after).cached_tokens == len(prompt(Y, " Second.", Z) + " Third.")
    assert not notices(after)
    for _ in range(3):
        chat.tree.undo()  # restores turns that were dropped
    assert [message.content for message in chat.conversation.messages] == [X, "First."]
    assert ask(chat, "Well?") == ["Fifth."]


def test_continue_drops_the_oldest_turns_for_a_reply_that_filled_the_context(start_chat: Start) -> None:
    story = " once upon a time" * 10
    script = {prompt(X): " First.", prompt(X, " First.", Y): " Second."}
    script |= {prompt(X, " First.", Y, " Second.", Z): story, prompt(Z): story}
    chat = start_chat(model(script, 450))
    ask(chat, X, Y)
    truncated = list(chat.send(Z))
    assert finish(truncated).reason == "context"
    assert story.lstrip().startswith(text(truncated)) and not notices(truncated)
    events = list(chat.continue_reply())
    assert chat.tree.require_reply().message.content == story.lstrip() == text(truncated) + text(events)
    [notice] = notices(events)
    assert "is full: dropped the 4 oldest messages" in notice.message
    assert contents(chat) == [X, "First.", Y, "Second.", Z, story.lstrip()]


def test_larger_context_restores_dropped_turns(start_chat: Start) -> None:
    asked = "x" * 60
    script = {
        prompt(asked): " 1.",
        prompt(asked, " 1.", asked): " 2.",
        prompt(asked, " 1.", asked, " 2.", "More?"): " whole.",
        prompt(asked, " 2.", "More?"): " short.",
        prompt(asked, " 2.", "More?", " short.", "And?"): " still short.",
        prompt(asked, " 1.", asked, " 2.", "More?", " short.", "And?"): " whole again.",
    }
    chat = start_chat(model(script, 200), model(script, 600))
    assert ask(chat, asked, asked, "More?") == ["1.", "2.", "short."]
    assert len(chat.conversation.messages) == len(chat.tree.messages) - 2
    list(chat.change_settings({"ctx": 600}))
    again = list(chat.send("And?"))
    assert text(again) == "whole again."
    assert len(chat.conversation.messages) == len(chat.tree.messages)
    assert finish(again).prompt_tokens > 175


# Other settings, another model, another session.


def test_change_settings_switches_the_model_within_a_session(chat: Chat, store: Store) -> None:
    ask(chat, "One?")
    before = chat.loaded
    with pytest.raises(ModelNotFound):
        list(chat.change_settings({"model": "missing"}))
    assert chat.loaded is before
    list(chat.change_settings({"model": "large", "ctx": 400}))
    assert chat.loaded is not before
    assert ask(chat, "Two?") == ["Second."]
    assert (session_of(store, "one").model, chat.loaded.model.reference) == ("large", "large")
    assert [stored.metadata.model for stored in chat.tree.messages[1::2]] == ["small", "large"]


@pytest.mark.parametrize("slots", [1, 4])
def test_switch_session_saves_and_drops_what_was_evaluated(start_chat: Start, slots: int) -> None:
    question = "One, in more than sixty-four tokens, since fewer are not worth a file of their own?"
    script = {prompt(question): " First.", prompt(question, " First.", "Two?"): " Second.", prompt("Other?"): " Third."}
    backend = ScriptedBackend(replies(script), slots, context_size=500, kv_unified=slots > 1)
    chat = start_chat(lambda: backend)
    ask(chat, question)
    first = chat.tree.session
    assert chat.switch_session(None) is None
    assert not any(backend.memory)
    ask(chat, "Other?")
    assert chat.switch_session(first) is None
    again = list(chat.send("Two?"))
    assert (text(again), finish(again).cached_tokens) == ("Second.", len(prompt(question) + " First."))
    assert chat.close() is None


def test_delete_keeps_the_lock_of_the_open_session_and_of_those_in_other_processes(chat: Chat, store: Store) -> None:
    sessions = []
    for _ in range(3):
        chat.switch_session(None)
        ask(chat, "One?")
        sessions.append(chat.tree.require_session())
    elsewhere = History(store, chat.tree.history.locks)
    elsewhere.lock(sessions[0])
    with pytest.raises(SessionError, match="open in another process"):
        chat.delete_session(sessions[0])
    assert chat.delete_session(sessions[1]) == 2
    with pytest.raises(SessionError, match="open in another process"):
        elsewhere.lock(sessions[2])
    elsewhere.release()
    chat.tree.undo()
    assert chat.delete_session(sessions[2]) == 2
    with pytest.raises(SessionError, match="nothing to redo"):
        chat.tree.redo()
    assert store.names() == [sessions[0].name]


def test_rename_works_before_and_after_the_session_exists(chat: Chat, store: Store) -> None:
    chat.tree.rename("mine")
    ask(chat, "One?")
    assert store.names() == ["mine"]
    chat.tree.rename("ours")
    assert store.names() == ["ours"]
    chat.switch_session(None)
    with pytest.raises(SessionError, match="session 'ours' already exists"):
        chat.tree.rename("ours")


# Failures: whatever goes wrong, the conversation can be continued.


def broken_model() -> ScriptedBackend:
    raise EngineError("loading was interrupted")


def test_chat_removes_a_question_that_cannot_be_answered(start_chat: Start) -> None:
    chat = start_chat(model(), broken_model, broken_model, model())
    ask(chat, "One?")
    with pytest.raises(EngineError):
        list(chat.change_settings({"ctx": 100}))
    with pytest.raises(EngineError):
        ask(chat, "Two?")
    assert contents(chat) == ["One?", "First."]
    assert ask(chat, "Two?") == ["Second."]
    assert contents(chat) == ["One?", "First.", "Two?", "Second."]


def test_chat_on_a_full_disk_generates_nothing(start_chat: Start, tmp_path: Path) -> None:
    chat = start_chat(model(), store=Store(tmp_path / "sessions.db"))
    with full_disk(), pytest.raises(SessionError, match=r"sessions\.db") as caught:
        ask(chat, "One?")
    assert caught.value.hint == "free disk space, or use --no-log"
    assert ask(chat, "One?") == ["First."]


def test_chat_shows_a_reply_that_cannot_be_saved(start_chat: Start, tmp_path: Path) -> None:
    chat = start_chat(model(), store=Store(tmp_path / "sessions.db"))
    ask(chat, "One?")
    shown = ""
    with contextlib.ExitStack() as stack, pytest.raises(SessionError):
        for event in chat.send("Two?"):
            if isinstance(event, TokenEvent):
                if not shown:
                    stack.enter_context(full_disk())
                shown += event.text
    assert shown == "Second."
    assert contents(chat) == ["One?", "First."]
    assert ask(chat, "Two?") == ["Second."]
