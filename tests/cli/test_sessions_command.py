"""`cerebrum sessions` and `ask -c`: exchanges are saved, continued, found and deleted."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, CommandLine, assert_error, fixed_reply_grammar
from person import Person
from prompt_toolkit.history import FileHistory

from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Message


def ask(user: CommandLine, question: str, reply: str, *more: str) -> None:
    """Ask with a grammar that allows only `reply`."""
    done = user.run("ask", "--grammar", fixed_reply_grammar(reply, user.home), *more, question)
    assert (done.code, done.out) == (0, f"{reply}\n"), done.err


def listed(user: CommandLine) -> Any:
    return user.run("sessions", "list", "--json").object


def database(user: CommandLine) -> Path:
    return user.home / "data" / "cerebrum" / "sessions" / "sessions.db"


def test_ask_saves_how_a_reply_was_generated(user: CommandLine) -> None:
    ask(user, "What is four by five?", "Twenty.", "--temperature", "0.5", "--seed", "7")
    reply = user.messages("what-is-four-by-five")[1]
    assert (reply["finish_reason"], reply["seed"], reply["params"]["temperature"]) == ("stop", 7, 0.5)
    assert reply["timings"]["prompt_tokens"] > 0


def test_ask_continue_extends_the_sampled_tokens(user: CommandLine) -> None:
    first = user.run("ask", "--dry-run", "--json", "Who are you?").object["token_ids"]
    ask(user, "Who are you?", "Nobody: much.")
    second = user.run("ask", "-c", "--dry-run", "--json", "And now?").object
    with closing(Store(database(user))) as store:
        [summary] = store.summaries()
        tokens = store.messages(summary.session)[1].message.tokens
    assert tokens
    assert second["token_ids"][: len(first) + len(tokens)] == [*first, *tokens]
    assert second["prompt"].endswith("And now?<|im_end|>\n<|im_start|>assistant\n")
    assert len(listed(user)) == 1  # a dry run saves nothing


def test_chat_continues_a_reply_of_ask_that_was_truncated(user: CommandLine) -> None:
    whole = user.run("ask", "-n", "12", "--no-log", "Why?").out
    first = user.run("ask", "-n", "5", "Why?")
    hint = "raise --max-tokens; resume it with /continue in cerebrum chat -c"
    assert first.err == f"note: answer truncated at 5 tokens\n      {hint}\n"
    assert_error(user.run("ask", "-c"), 2, "no prompt given")
    assert user.run("chat", "-c", "-n", "7", "--temperature", "0", stdin="/continue\n").code == 0
    assert user.contents("why") == ["Why?", whole.rstrip("\n")]


def test_sessions_rm_erases_all_traces(user: CommandLine) -> None:
    ask(user, "Who hides the zebra?", "A walrus.")
    ask(user, "What stays?", "This.")
    directory = user.home / "data" / "cerebrum" / "sessions"
    refused = user.run("sessions", "rm", "who-hides-the-zebra")
    assert (refused.code, refused.err) == (1, "who-hides-the-zebra not deleted; confirm with -y\n")
    state = user.home / ".cache" / "cerebrum" / "states" / "ab.state"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text("zebra")
    done = user.run("sessions", "rm", "who-hides-the-zebra", "-y")
    assert (done.code, done.err) == (0, "who-hides-the-zebra deleted (2 messages)\n")
    files = [file for file in directory.rglob("*") if file.is_file()]
    for word in (b"zebra", b"walrus", b"hides"):
        assert [file.name for file in files if word in file.read_bytes()] == []
    assert [file.name for file in files if file.suffix == ".lock"] == []
    assert not state.exists()
    assert {file.stat().st_mode & 0o077 for file in (directory, *directory.rglob("*"))} == {0}
    assert user.contents("what-stays") == ["What stays?", "This."]


@pytest.mark.slow
def test_sessions_rm_deletes_those_older_than_any_age(user: CommandLine) -> None:
    for question in ("Three", "Four"):
        ask(user, question, "So.")
    with closing(sqlite3.connect(database(user), isolation_level=None)) as sessions:
        sessions.execute("UPDATE sessions SET updated = updated - 40 * 86400 WHERE name = 'three'")
    refused = user.run("sessions", "rm", "--older-than", "30d")
    assert (refused.code, refused.err) == (1, "three not deleted; confirm with -y\n")
    assert user.run("sessions", "rm", "--older-than", "30d", "-y").code == 0
    for digits in (10, 400, 5000):
        assert user.run("sessions", "rm", "-y", "--older-than", f"{'9' * digits}d").code == 0
    assert [row["name"] for row in listed(user)] == ["four"]


def test_session_listings_strip_control_sequences_unlike_messages(user: CommandLine) -> None:
    ask(user, "Why?", "Because.")
    name, reply = "a\x1b]0;x\x07b\nc", "Be\x1b[31m cause.\x9b1m"
    with closing(sqlite3.connect(database(user), isolation_level=None)) as sessions:
        sessions.execute("UPDATE sessions SET name = ?, model = ?", (name, "m\x1b[0m"))
        sessions.execute("UPDATE messages SET content = ? WHERE role = 'assistant'", (reply,))
    listing = [user.run("sessions", *command).out for command in (("list",), ("search", "cause"))]
    assert [line.split()[:2] for line in listing[0].splitlines()][1] == ["ab", "c"]
    assert listing[1].splitlines() == [f"ab c  {listed(user)[0]['created'][:10]}  assistant: Be cause."]
    assert "".join(listing).replace("\n", "").isprintable()
    title, _, messages = user.run("sessions", "show", name).out.partition("\n")
    assert title.isprintable() and reply in messages


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_sessions_at_a_terminal(user: CommandLine) -> None:
    for number in range(2):
        ask(user, f"Number {number} **bold**?", f"# Title {number}")
    ask(user, "Named?", "Yes.", "--session", "named")
    env = user.environment({"TERM": "xterm-256color", "PAGER": "cat"})

    def at_terminal(*arguments: str) -> Person:
        person = Person([COMMAND, "sessions", *arguments], env, user.home)
        assert person.end() == 0
        return person

    def names(*arguments: str) -> list[str]:
        return [line.split()[0] for line in at_terminal("list", *arguments).screen.lines]

    hidden = "not listed: 2 answers in pipes or files; --all lists them"
    assert at_terminal("list").screen.lines[-1] == hidden
    assert names("--all") == ["name", "number-0-bold", "number-1-bold", "named"]
    ask(user, "More?", "Yes.", "--session", "number-1-bold")
    assert names("-n", "1") == ["name", "number-1-bold", "not"]
    [row] = user.run("sessions", "search", "numb 1", "--json").object
    line = f"number-1-bold  {row['created'][:10]}  user: Number 1 **bold**?"
    assert line in at_terminal("search", "numb 1").screen.lines
    assert "Number 1 **bold**?" in at_terminal("show", "number-1-bold").screen.lines


def test_sessions_rm_forgets_the_questions_typed_at_the_prompt(user: CommandLine) -> None:
    history = FileHistory(str(user.home / "data" / "cerebrum" / "history"))
    typed = ["Who was I?", "Why?", '"""\nTwo\n\nlines\n"""', "+1 to C++", 'Is it "foo"', "2"]
    typed += ["A\u2028B", "/set top_k 2", "/help", "Who are you?", "/file a.txt, b c.txt Why?", "Twice?"]
    for text in typed:
        history.store_string(text)
    gone = ("Who was I?", "A\u2028B", "Two\n\nlines", "# file.txt\nWhy?", "+1 to C++", 'Is it "foo"', "2", "", "Twice?")
    for question in (*gone, "Who are you?", "Twice?"):
        with closing(Store(database(user))) as store:
            name = "kept" if question == "Who are you?" or store.find("kept") else "gone"
            session = store.find(name) or store.create(name, "chat")
            store.add_message(session, Message("user", question))
    assert user.run("sessions", "rm", "-y", "gone").code == 0
    assert list(history.load_history_strings()) == ["Twice?", "Who are you?", "/help", "/set top_k 2"]
