"""`cerebrum sessions` and `ask -c`: exchanges are saved, continued, found, exported and deleted."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, CommandLine, assert_error, endless_reply_grammar, fixed_reply_grammar
from person import Person
from tiny_models import CHATML_TEMPLATE, write_mistral

from cerebrum_cli.chat.archive import states_to_delete
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Conversation


def ask(user: CommandLine, question: str, reply: str, *more: str | Path, code: int = 0) -> str:
    """Ask with a grammar that allows only `reply`, and return standard error."""
    done = user.run("ask", "--grammar", fixed_reply_grammar(reply, user.home), *more, question)
    assert (done.code, done.out) == (code, f"{reply.strip()}\n"), done.err
    return done.err


def listed(user: CommandLine) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = user.run("sessions", "list", "--json").object
    return sessions


def shown(user: CommandLine, name: str) -> dict[str, Any]:
    session: dict[str, Any] = user.run("sessions", "show", name, "--json").object
    return session


def database(user: CommandLine) -> Path:
    return user.home / "data" / "cerebrum" / "sessions" / "sessions.db"


def turns(session: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in session["messages"]]


def test_ask_saves_the_exchange_and_how_it_was_generated(user: CommandLine) -> None:
    ask(user, "What is four by five?", "Twenty.", "--temperature", "0.5", "--seed", "7", "-s", "Be brief.")
    [row] = listed(user)
    expected = ("what-is-four-by-five", "ask", "small", "embedded", 2, "What is four by five?")
    assert tuple(row[key] for key in ("name", "origin", "model", "format", "messages", "first")) == expected
    session = shown(user, "what-is-four-by-five")
    assert session["system_prompt"] == "Be brief."
    assert turns(session) == [("user", "What is four by five?"), ("assistant", "Twenty.")]
    reply = session["messages"][1]
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


def test_ask_continue_without_a_prompt_continues_a_reply_that_was_cut_off(user: CommandLine) -> None:
    whole = user.run("ask", "-n", "12", "--no-log", "Why?").out
    first = user.run("ask", "-n", "5", "Why?")
    assert first.err == "note: answer truncated at 5 tokens\n      raise --max-tokens; cerebrum ask -c continues it\n"
    more = user.run("ask", "-c", "-n", "3", "--no-log")
    last = user.run("ask", "-c", "-n", "7", "--json").object
    assert last["text"] == whole.rstrip("\n") and last["text"].startswith((first.out + more.out).replace("\n", ""))
    assert user.contents("why") == ["Why?", last["text"]]
    refused = user.run("ask", "-c", "--dry-run")
    assert_error(refused, 2, "no prompt given")
    ask(user, "Is it complete?", "Yes.")
    assert_error(user.run("ask", "-c"), 1, "nothing to continue: the reply is complete", 'cerebrum ask -c "..."')


@pytest.mark.slow
def test_ask_continue_uses_the_sessions_model_and_system_prompt(user: CommandLine, mistral_model: Path) -> None:
    assert user.run("pull", mistral_model, "--name", "other").code == 0
    ask(user, "One?", " First.", "-m", "other", "--format", "cerebrum", "-s", "Count.")
    ask(user, "Two?", " Second.", "--continue")
    session = shown(user, "one")
    assert turns(session) == [("user", "One?"), ("assistant", "First."), ("user", "Two?"), ("assistant", "Second.")]
    assert {message["model"] for message in session["messages"][1::2]} == {"other"}
    prompt = user.run("ask", "-c", "--dry-run", "Three?").out
    assert prompt == "<s>Count.\nUser: One?\nAI: First.\nUser: Two?\nAI: Second.\nUser: Three?\nAI:"
    other = user.run("ask", "-c", "-m", "small", "--dry-run", "Three?").out
    assert other.startswith("<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n")


def test_ask_saves_nothing_with_no_log_raw_or_dry_run(user: CommandLine) -> None:
    ask(user, "Is this private?", "Yes.", "--no-log")
    assert user.run("ask", "--raw", "-n", "2", "once upon").code == 0
    assert user.run("ask", "--dry-run", "Why?").code == 0
    assert listed(user) == []
    (user.config / "config.toml").write_text("no_log = true\n")
    ask(user, "Is this private?", "Yes.")
    chatted = user.run("chat", "-n", "2", "--session", "tea", stdin="Hi\n/undo\n/sessions\n")
    assert "note: this chat is not saved: no_log is on" in chatted.err
    assert "tea " in chatted.out and not list(user.home.rglob("*.state"))
    assert listed(user) == []
    ask(user, "Is this public?", "Yes.", "--set", "no_log=off")
    assert [row["name"] for row in listed(user)] == ["is-this-public"]
    assert user.run("chat", "-c", "-n", "2", stdin="Hi\n").code == 0
    assert user.contents("is-this-public") == ["Is this public?", "Yes."]
    (user.config / "config.toml").unlink()
    assert user.run("sessions", "rm", "-y", "is-this-public").code == 0
    done = user.run("sessions", "list")
    assert (done.code, done.out, done.err) == (0, "", "no saved sessions; cerebrum ask and cerebrum chat create them\n")


@pytest.fixture
def twins(new_user: CommandLine, chatml_model: Path) -> tuple[Path, Path]:
    """Two files of one name and prompt format whose vocabularies differ, in the folders a and b."""
    first, second = new_user.home / "a" / "model.gguf", new_user.home / "b" / "model.gguf"
    for path in (first, second):
        path.parent.mkdir()
    shutil.copy(chatml_model, first)
    return first, write_mistral(second, chat_template=CHATML_TEMPLATE)


@pytest.mark.slow
def test_session_of_a_path_continues_in_any_directory(new_user: CommandLine, twins: tuple[Path, Path]) -> None:
    ask(new_user, "One?", "First.", "-m", "./a/model.gguf")
    elsewhere = new_user.home / "elsewhere"
    elsewhere.mkdir()
    done = new_user.run("ask", "-c", "-n", "2", "--json", "Two?", directory=elsewhere)
    assert (done.code, done.object["file"]) == (0, str(twins[0])), done.err
    done = new_user.run("chat", "-c", "-n", "2", stdin="Three?\n", directory=elsewhere)
    assert done.code == 0, done.err
    session = shown(new_user, "one")
    assert session["model"] == str(twins[0])
    assert [message["model"] for message in session["messages"][1::2]] == [str(twins[0])] * 3


@pytest.mark.slow
def test_tokens_of_another_vocabulary_are_not_replayed(new_user: CommandLine, twins: tuple[Path, Path]) -> None:
    model, other = twins
    ask(new_user, "One?", "First.", "-m", model)
    other.replace(model)
    continued = new_user.run("ask", "-c", "-m", model, "--dry-run", "--json", "Two?").object
    conversation = Conversation().user("One?").assistant("First.").user("Two?")
    messages = new_user.home / "messages.json"
    messages.write_text(json.dumps([{"role": each.role, "content": each.content} for each in conversation.messages]))
    expected = new_user.run("ask", "-m", model, "--messages", messages, "--dry-run", "--json").object
    assert continued == expected


@pytest.mark.slow
def test_ask_saves_the_part_of_an_interrupted_answer(user: CommandLine) -> None:
    process = user.start("ask", "--grammar", str(endless_reply_grammar(user.home)), "Talk!")
    assert process.stdout
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=20)[0]
    assert process.returncode == 130
    reply = shown(user, "talk")["messages"][1]
    assert reply["finish_reason"] == "cancelled"
    assert user.run("sessions", "show", "talk").out.endswith(f"{reply['content']}\n\n*(interrupted)*\n")
    assert reply["content"].endswith(out.decode().strip()[-10:])


def test_sessions_are_listed_and_searched(user: CommandLine) -> None:
    ask(user, "Where do cats sleep?", "On the warm stove.")
    dated = f"where-do-cats-sleep-{date.today().isoformat()}"  # another session of the same first words
    ask(user, "Where do cats sleep?", "On the bed.")
    done = user.run("sessions", "search", "warm stove")
    assert (done.code, done.out) == (0, "where-do-cats-sleep  assistant: On the warm stove.\n")
    rows = user.run("sessions", "search", "slee", "--json").object  # the beginning of a word
    assert {row["excerpt"] for row in rows} == {"Where do cats sleep?"}
    done = user.run("sessions", "search", "fish")
    assert (done.code, done.out, done.err) == (0, "", "No matches\n")
    ask(user, "More!", "Three.", "-c")
    head, first, second = user.run("sessions", "list").out.splitlines()
    assert head.split() == ["name", "messages", "updated", "model", "first", "message"]
    assert (first.split()[:2], second.split()[:2]) == ([dated, "4"], ["where-do-cats-sleep", "2"])
    assert first.endswith("  Where do cats sleep?")


def test_sessions_export_and_import_round_trip(user: CommandLine) -> None:
    ask(user, "Is it *so*?", "It is.", "-s", "Be brief.")
    conversation = Conversation(system_prompt="Be brief.").user("Is it *so*?").assistant("It is.")
    for export_format in ("json", "sharegpt"):
        file = user.home / f"{export_format}.json"
        file.write_text(user.run("sessions", "export", "is-it-so", "--as", export_format).out)
        done = user.run("sessions", "import", file, "--name", export_format)
        assert (done.code, done.err) == (0, f"Imported as {export_format}; continue with cerebrum chat -c\n")
        with closing(Store(database(user))) as store:
            session = store.find(export_format)
            assert session and store.conversation(session) == conversation
    again = user.run("sessions", "import", user.home / "json.json", "--name", "json")
    assert (again.code, again.err.splitlines()[0]) == (1, 'error: session "json" already exists')
    markdown = "# is-it-so\n\n## System\n\nBe brief.\n\n## User\n\nIs it *so*?\n\n## Assistant\n\nIt is.\n"
    assert user.run("sessions", "export", "is-it-so").out == user.run("sessions", "show", "is-it-so").out == markdown


@pytest.mark.slow
def test_sessions_export_transcript_is_the_exact_prompt_and_reply(user: CommandLine, mistral_model: Path) -> None:
    assert user.run("pull", mistral_model, "--name", "other").code == 0
    ask(user, "One?", " First.", "-m", "other", "--format", "cerebrum", "-s", "Count.")
    ask(user, "Two?", " Second.", "-c", "--format", "cerebrum")
    done = user.run("sessions", "export", "one", "--as", "transcript")
    assert (done.code, done.out) == (0, "<s>Count.\nUser: One?\nAI: First.\nUser: Two?\nAI: Second.\n")
    ask(user, "Three?", " Third.", "-m", "small", "--no-log")
    ask(user, "Four?", "Fourth.", "-m", "small")
    assert user.run("sessions", "export", "four", "--as", "transcript").out.endswith(
        "<|im_start|>user\nFour?<|im_end|>\n<|im_start|>assistant\nFourth.\n"
    )


def test_sessions_rm_erases_all_traces(user: CommandLine) -> None:
    ask(user, "Who hides the zebra?", "A walrus.")
    ask(user, "What stays?", "This.")
    directory = user.home / "data" / "cerebrum" / "sessions"
    refused = user.run("sessions", "rm", "who-hides-the-zebra")
    assert (refused.code, refused.err) == (1, "who-hides-the-zebra not deleted; confirm with -y\n")
    done = user.run("sessions", "rm", "who-hides-the-zebra", "-y")
    assert (done.code, done.err) == (0, "who-hides-the-zebra deleted (2 messages)\n")
    files = [file for file in directory.rglob("*") if file.is_file()]
    for word in (b"zebra", b"walrus", b"hides"):
        assert [file.name for file in files if word in file.read_bytes()] == []
    assert [file.name for file in files if file.suffix == ".lock"] == []
    assert {file.stat().st_mode & 0o077 for file in (directory, *directory.rglob("*"))} == {0}
    assert turns(shown(user, "what-stays")) == [("user", "What stays?"), ("assistant", "This.")]


@pytest.mark.slow
def test_sessions_rm_deletes_only_the_states_of_the_session(user: CommandLine) -> None:
    states = user.home / ".cache" / "cerebrum" / "states"

    def ask_at_length(letter: str, *more: str) -> dict[str, Any]:
        question, reply = f"{letter * 300}?", f"{letter} are long answers."
        done = user.run("ask", "--json", "--grammar", fixed_reply_grammar(reply, user.home), *more, question)
        assert done.code == 0, done.err
        answer: dict[str, Any] = done.object
        return answer

    ask_at_length("a")
    ask_at_length("b")
    kept = set(states.iterdir())
    ask_at_length("c")
    assert len(set(states.iterdir()) - kept) == 1
    ask_at_length("d", "--no-log")
    assert user.run("sessions", "rm", "c" * 40, "-y").code == 0
    assert set(states.iterdir()) == kept
    assert ask_at_length("b")["cached_tokens"] > 200
    assert user.run("sessions", "rm", "a" * 40, "b" * 40, "-y").code == 0
    assert len(listed(user)) == 1


@pytest.mark.parametrize(
    ("states", "deleted", "kept", "left"),
    [
        (["qrrrrrrrrr", "qssssssss"], ["rrrrrrrrr"], ["ssssssss"], ["qssssssss"]),
        (["qrrrrrrrrr", "q", "qx", ""], [], ["rrrrrrrrr"], ["qrrrrrrrrr", "q"]),
        (["qrrrrrrrrrqno", "qrrrrrrrrr"], ["no!"], ["rrrrrrrrr"], ["qrrrrrrrrr"]),
        (["qrrrrrrrrr question", "qrrrrrrrrr.\n"], [], ["rrrrrrrrr"], ["qrrrrrrrrr.\n"]),
        (["q", "qx"], [""], [], []),
    ],
    ids=("one of two", "beginnings", "fork", "unanswered fork", "no replies"),
)
def test_states_to_delete_are_found_by_their_replies(
    states: list[str], deleted: list[str], kept: list[str], left: list[str]
) -> None:
    """Each character is a token; of a reply, the last one was not evaluated."""

    def packed(texts: list[str]) -> list[bytes]:
        return [text.encode("utf-32-le") for text in texts]

    files = {Path(text): packed([text])[0] for text in states}
    found = states_to_delete(files, packed(deleted), packed(kept))
    assert files.keys() - found == set(map(Path, left))


def test_ask_prints_an_answer_that_cannot_be_saved(user: CommandLine) -> None:
    database(user).parent.mkdir(parents=True)
    database(user).write_text("not a database, but long enough to be taken for one" * 50)
    err = ask(user, "Why?", "So.")
    assert err.startswith("note: this exchange was not saved: ")
    assert "Traceback" not in err


@pytest.mark.slow
def test_sessions_rm_deletes_several_and_old_ones(user: CommandLine) -> None:
    for question in ("One", "Two", "Three", "Four"):
        ask(user, question, "So.")
    done = user.run("sessions", "rm", "one", "two", "-y")
    assert (done.code, done.err) == (0, "one deleted (2 messages)\ntwo deleted (2 messages)\n")
    with closing(sqlite3.connect(database(user), isolation_level=None)) as sessions:
        sessions.execute("UPDATE sessions SET updated = updated - 40 * 86400 WHERE name = 'three'")
    assert user.run("sessions", "rm", "--older-than", "8w", "-y").err == "no session is older than 8w\n"
    refused = user.run("sessions", "rm", "--older-than", "30d")
    assert (refused.code, refused.err) == (1, "three not deleted; confirm with -y\n")
    assert user.run("sessions", "rm", "--older-than", "30d", "-y").code == 0
    assert [row["name"] for row in listed(user)] == ["four"]
    for arguments, problem in ((["--older-than", "soon"], "invalid --older-than: 'soon'"), ([], "no session given")):
        done = user.run("sessions", "rm", *arguments)
        assert (done.code, done.err.splitlines()[0]) == (2, f"error: {problem}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_sessions_at_a_terminal(user: CommandLine) -> None:
    for number in range(2):
        ask(user, f"Number {number} **bold**?", f"# Title {number}")
    env = user.environment({"TERM": "xterm-256color", "PAGER": "cat"})

    def at_terminal(*arguments: str) -> Person:
        person = Person([COMMAND, "sessions", *arguments], env, user.home)
        assert person.end() == 0
        return person

    assert [line.split()[0] for line in at_terminal("list", "-n", "1").screen.lines] == ["name", "number-1-bold"]
    assert "\x1b[1mNumber\x1b[0m" in at_terminal("search", "numb 1").output
    assert "Number 1 bold?" in at_terminal("show", "number-1-bold").screen.lines
