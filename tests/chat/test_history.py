"""History: exchanges are saved as new sessions or appended to the one they continue."""

import contextlib
import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cases import rows
from command_line import CommandLine, Finished
from scripted_command import app_for, run_here

from cerebrum_cli.chat.archive import ArchivedSession
from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.model_messages import session_params
from cerebrum_cli.chat.reply_recorder import messages_to_drop
from cerebrum_cli.chat.session import ReplyMetadata, Session, suggest_name
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Conversation, Message, conversation_from_messages
from cerebrum_cli.core.events import FinishEvent, RoundEvent, SequenceId, Timings
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.tools import Round, ToolCall
from cerebrum_cli.library.installed import NANO, InstalledModel
from cerebrum_cli.library.registry import RegistryEntry
from cerebrum_cli.main import run
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.terminal.streams import Streams

TIMINGS = Timings(load_s=1.0, prefill_s=0.5, ttft_s=0.75, decode_s=0.3, prefill_tokens=16, decode_steps=1)
FINISH = FinishEvent(SequenceId(0), "stop", 20, 4, 2, seed=2**32 - 2, context_size=256, timings=TIMINGS)


def finished(text: str, reasoning: str | None, tokens: tuple[int, ...], finish: FinishEvent = FINISH) -> Reply:
    reply = Reply()
    reply.begin(tokens, [("thinking", reasoning or ""), ("answer", text)])
    reply.emit(finish)
    return reply


FOUR = finished("Four.", "2 and 2", (7, 8))
SIX = finished("Six.", None, (9,))
MODEL = InstalledModel("mine", (NANO,), entry=RegistryEntry("mine", NANO, 1, "00", 1, "local"))
LOADED: Any = SimpleNamespace(model=MODEL, format_name="chatml", format_setting="chatml", served_name=None)
SETTINGS = Settings(temperature=0.5, max_tokens=10, stop=("\n\n",))
SAMPLING = {"temperature": 0.5, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "dry_multiplier": 0.0}
PENALTIES = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
PARAMS = {**SAMPLING, **PENALTIES, "max_tokens": 10, "stop": ["\n\n"], "think": None}
SUM = Conversation(system_prompt="Be brief.").user("What is 2 + 2? Think.")


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with contextlib.closing(History(Store(tmp_path / "sessions.db"), tmp_path / "locks")) as history:
        yield history


def test_record_stores_how_the_reply_was_generated(history: History) -> None:
    question, reply = history.store.messages(history.record(None, SUM, FOUR, LOADED, SETTINGS))
    assert question.metadata == ReplyMetadata()
    assert reply.message.reasoning == "2 and 2"
    how = {"finish_reason": "stop", "model": "mine", "format": "chatml", "vocabulary": MODEL.vocabulary}
    timings = {**TIMINGS._asdict(), "prompt_tokens": 20, "cached_tokens": 4}
    assert reply.metadata == ReplyMetadata(**how, params=PARAMS, seed=2**32 - 2, timings=timings)


def read_back(history: History, session: Session) -> Conversation:
    return Conversation(tuple(stored.message for stored in history.store.messages(session)), session.system_prompt)


def test_history_adds_an_interrupted_reply_to_an_unanswered_question(history: History) -> None:
    answered = history.record(None, SUM, FOUR, LOADED, SETTINGS)
    history.store.add_message(answered, Message("user", "And 3 + 3?"))
    session = history.acquire_named(None)
    assert session
    whole = SUM.assistant("Four.", (7, 8), "2 and 2").user("And 3 + 3?").assistant("")
    assert read_back(history, session) == whole
    assert history.store.messages(session)[-1].metadata == ReplyMetadata(finish_reason="cancelled")
    empty = history.store.create("empty", "chat")
    assert [history.acquire(each) for each in (session, empty)] == [session, empty]


@pytest.mark.parametrize(("question", "name"), rows("session_names"))
def test_suggest_name_uses_the_first_words(question: str, name: str) -> None:
    assert suggest_name(Conversation(system_prompt="You are brief.").user(question).assistant("Yes.")) == name
    assert suggest_name(Conversation()) == "session"


def test_continued_session_replaces_the_system_prompt_if_given(history: History) -> None:
    question = Conversation(system_prompt="of the settings").user("And 3 + 3?")
    for own, instead, prompt in (("own", None, "own"), (None, None, None), ("own", "now", "now"), ("own", "", "")):
        session = history.record(None, replace(SUM, system_prompt=own), FOUR, LOADED, SETTINGS)
        whole = history.prepend(session, MODEL, question, instead)
        assert whole == replace(SUM, system_prompt=prompt).assistant("Four.", (7, 8), "2 and 2").user("And 3 + 3?")
        history.record(session, whole, SIX, LOADED, SETTINGS)
        latest = history.acquire_named(None)
        assert latest and history.conversation(latest, MODEL) == whole.assistant("Six.", (9,))


def test_load_conversation_drops_tokens_of_unfinished_reasoning(history: History) -> None:
    """Its markup is unclosed, so everything after it would be reasoning."""
    truncated = finished("", "2 and", (7,), FINISH._replace(reason="cancelled"))
    session = history.record(None, SUM, truncated, LOADED, SETTINGS)
    assert history.conversation(session, MODEL) == SUM.assistant("", None, "2 and")
    assert history.store.messages(session)[-1].message.tokens == (7,)


def test_load_conversation_keeps_tokens_of_the_same_vocabulary_only(history: History, chatml_model: Path) -> None:
    session = history.record(None, SUM, FOUR, LOADED, SETTINGS)
    assert history.conversation(session, MODEL) == SUM.assistant("Four.", (7, 8), "2 and 2")
    renamed = InstalledModel("other", (NANO,), entry=RegistryEntry("other", NANO, 1, "00", 1, "local"))
    for other in (replace(MODEL, paths=(chatml_model,)), renamed):
        assert history.conversation(session, other) == SUM.assistant("Four.", None, "2 and 2")
    [_, reply] = history.store.messages(session)
    history.store.update_message(session, reply.message, replace(reply.metadata, vocabulary=None))
    assert history.conversation(session, MODEL) == SUM.assistant("Four.", None, "2 and 2")


def test_record_keeps_calls_of_functions_and_their_tokens(history: History, chatml_model: Path) -> None:
    reply = finished("Let me see.", "Hm.", (1, 2), FINISH)
    called = Round((ToolCall("weather", {"days": [1]}, "Dry."),), "Let me see.", "Hm.", (1, 2))
    reply.emit(RoundEvent(called))
    reply.begin((3,), [("answer", "Dry.")])
    session = history.record(None, SUM, reply, LOADED, SETTINGS)
    expected = Message("assistant", "Dry.", (3,), rounds=(called,))
    assert history.conversation(session, MODEL) == SUM.add(expected)
    untokenized = replace(expected, tokens=None, rounds=(replace(called, tokens=None),))
    other = replace(MODEL, paths=(chatml_model,))
    assert history.conversation(session, other) == SUM.add(untokenized)


def test_session_defaults_apply_to_the_same_file_by_any_path(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = InstalledModel("model", (tmp_path / "model.gguf",))
    params = session_params(SETTINGS, model)
    session = history.store.create("talk", "chat", model=model.reference, format="chatml", params=params)
    monkeypatch.chdir(tmp_path)
    for layer in ({}, {"model": "./model.gguf"}, {"model": "model.gguf"}):
        defaults = session.add_defaults(layer)
        assert (defaults["format"], defaults["temperature"]) == ("chatml", 0.5)
    assert set(replace(session, origin="ask").add_defaults({})) == {"model", "format"}
    for reference in ("model", "../model.gguf"):
        assert session.add_defaults({"model": reference}) == {"model": reference}


def test_record_keeps_given_reasoning_and_omits_the_tokens_of_a_reply_ended_by_a_stop_string(history: History) -> None:
    given = SUM.assistant("Four.", None, "2 and 2").user("And 3 + 3?")
    stopped = finished("Six", None, (5, 6, 7), FINISH._replace(by_stop_string=True))
    for reply, expected in ((SIX, given.assistant("Six.", (9,))), (stopped, given.assistant("Six"))):
        assert history.conversation(history.record(None, given, reply, LOADED, SETTINGS), MODEL) == expected


# Locks: one process at a time holds a session; `test_locks.py` has how a lock ends.


def test_session_open_in_another_process_is_refused(chatml_model: Path, tmp_path: Path) -> None:
    def run(*arguments: str | Path, piped: bytes = b"") -> Finished:
        return run_here({"reply": "Yes."}, tmp_path, *arguments, piped=piped)

    chat, delete = ("chat", "-m", chatml_model), ("sessions", "rm", "tea", "-y")
    assert run(*chat, "--session", "tea", piped=b"One?\n").code == 0
    directory = tmp_path / "data" / "cerebrum" / "sessions"
    problem = "error: session 'tea' is open in another process"
    with contextlib.closing(History(Store(directory / "sessions.db"), directory / "locks")) as other:
        other.lock(other.get("tea"))
        for arguments in ((*chat, "--session", "tea"), ("ask", "-m", chatml_model, "-c", "Two?"), delete):
            done = run(*arguments)
            assert (done.code, done.err.splitlines()[0]) == (1, problem)
        assert run(*chat, "-q", piped=b"/load tea\n").err.splitlines()[0] == problem
    assert run(*chat, piped=b"/load tea\n").err == "> /load tea\nNow in session 'tea'\n> One?\nYes.\n"
    assert run(*delete).code == 0
    assert run("sessions", "list", "--json").object == []


def test_ask_saves_its_exchange_if_a_chat_takes_the_name(chatml_model: Path, tmp_path: Path) -> None:
    out, err = StringIO(), StringIO()
    app = app_for({"reply": "Yes."}, tmp_path, Streams(out, err, None, False, False, False))
    open_file = app.open_file

    def create_and_open(*arguments: Any) -> Any:
        with contextlib.closing(Store(app.sessions_path)) as store:
            store.create("tea", "chat", question=Message("user", "Who else?"))
        return open_file(*arguments)

    app.open_file = create_and_open
    assert run(["ask", "-m", str(chatml_model), "--session", "tea", "--json", "One?"], app) == 0
    assert json.loads(out.getvalue())["session"] == "tea-2"
    assert err.getvalue() == "note: session 'tea' exists by now; this exchange is saved as 'tea-2'\n"
    assert CommandLine(tmp_path).contents("tea-2") == ["One?", "Yes."]


def test_refused_model_frees_the_session(chatml_model: Path, tmp_path: Path) -> None:
    run_here({"reply": "Short."}, tmp_path, "ask", "Why?", "-m", chatml_model)
    gc.disable()  # which would free it, too
    try:
        refused = run_here({}, tmp_path, "chat", "-c", "-m", "nosuch", piped=b"")
        again = run_here({"reply": "x"}, tmp_path, "chat", "-c", piped=b"")
    finally:
        gc.enable()
    assert (refused.code, again.code, again.err) == (3, 0, "")


# A full context: many turns are dropped together, so that it is rare.


@pytest.mark.parametrize(("what", "sizes", "limit", "drop"), rows("full_contexts"))
def test_full_context_drops_the_oldest_half_where_that_helps(
    what: str, sizes: list[int], limit: int, drop: int
) -> None:
    conversation = Conversation(system_prompt="S")
    for number, size in enumerate(sizes):
        conversation = conversation.assistant("x" * size) if number % 2 else conversation.user("x" * size)

    def count(conversation: Conversation) -> int:
        """Its tokens, with 20 of the system prompt."""
        return 20 + sum(len(message.content) for message in conversation.messages)

    assert messages_to_drop(conversation, count, limit, size=400) == drop


# A session as Markdown and as messages, which parse back unchanged.


@pytest.mark.parametrize(("what", "content", "finish_reason", "model", "shown"), rows("incomplete_replies"))
def test_markdown_notes_why_a_reply_is_incomplete(
    store: Store, what: str, content: str, finish_reason: str | None, model: str | None, shown: str
) -> None:
    metadata = ReplyMetadata(finish_reason=finish_reason, model=model)
    session = create_session(store, (Message("assistant", content), metadata))
    assert archived(store, session).markdown == f"# talk\n\n## User\n\nOne?\n\n## Assistant\n\n{shown}\n"


WEATHER = ToolCall("weather", {"city": 'Tromsø "N"', "days": [1, {"a": None}]}, "Dry.\n```\n")
ROUNDS = (
    Round((WEATHER, ToolCall("now", {}, ""))),
    Round((ToolCall("python", {"code": "print(1)\n"}, "1"),), "Let me see.", "Hm."),
)


def test_calls_of_functions_survive_an_export_and_are_fenced_whatever_they_contain(store: Store) -> None:
    dry = Message("assistant", "Dry.", rounds=ROUNDS, reasoning="So.")
    nothing = Message("assistant", "", rounds=ROUNDS[1:])
    session = create_session(store, (dry, ReplyMetadata()), (nothing, ReplyMetadata(finish_reason="cancelled")))
    messages = json.loads(archived(store, session).json)["messages"]
    assert [message["role"] for message in messages[:4]] == ["user", "assistant", "tool", "tool"]
    assert json.loads(messages[1]["tool_calls"][0]["function"]["arguments"]) == WEATHER.arguments
    assert messages[3]["tool_call_id"] == messages[1]["tool_calls"][1]["id"]
    read_back = conversation_from_messages(messages, "talk.json", is_request=False)
    assert list(read_back.messages) == [stored.message for stored in store.messages(session)]
    text = archived(store, session).markdown
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
