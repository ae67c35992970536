"""What each slash command of a chat does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.answers.extract import final_answer
from cerebrum_cli.answers.vote import parse_votes
from cerebrum_cli.application.chat.archive import SUFFIX_FORMATS, export_to_file, format_transcript, session_rows
from cerebrum_cli.application.inference.question import read_text
from cerebrum_cli.application.inference.voting import VOTE_TEMPERATURE, MajorityVote
from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import Settings, parse_value
from cerebrum_cli.terminal.repl.clipboard import copy
from cerebrum_cli.terminal.repl.slash_table import (
    ELSEWHERE,
    PARTS,
    SETTABLE,
    USUAL,
    Line,
    help_text,
    near_setting,
    setting_key,
)
from cerebrum_cli.terminal.repl.terminal_io import shortened
from cerebrum_cli.terminal.streams import columns
from cerebrum_cli.terminal.tables import PIPE_WIDTH, gauge_text, print_sessions, settings_lines, stats_line

if TYPE_CHECKING:
    from cerebrum_cli.sessions.rows import StoredMessage
    from cerebrum_cli.terminal.repl.repl import Repl

TEMPERATURES = ("0", "1", "2")  # whole numbers that /retry takes for temperatures; others are seeds


def show_help(repl: Repl, _: Line) -> None:
    repl.streams.answer(help_text(columns(repl.streams.out) if repl.streams.out_is_terminal else PIPE_WIDTH))


def leave(repl: Repl, _: Line) -> None:
    repl.left = True


def begin_anew(repl: Repl, _: Line) -> None:
    repl.chat.switch_session(None)
    repl.last = None
    repl.streams.info("a new conversation begins")


def lead(repl: Repl, line: Line) -> None:
    if line.argument:
        repl.chat.set_system_prompt(None if line.argument == USUAL else line.argument)
    shown = repl.chat.conversation.system_prompt
    repl.streams.info(f"system prompt: {shown}" if shown else "the format's own system prompt")


def change_model(repl: Repl, line: Line) -> None:
    if line.argument:
        with otherwise(f"the model stays {repl.chat.loaded.model.reference}"):
            repl.wait(repl.chat.change_settings({"model": line.argument, "format": None}))
    opened = repl.chat.loaded
    repl.streams.info(f"this is {opened.model.reference}, asked in the format {opened.format_name}")


def change_setting(repl: Repl, line: Line) -> None:
    key, _, value = line.argument.partition(" ")
    key, value = setting_key(key), value.strip()
    if key in ELSEWHERE:
        raise UsageError(f"{key} is not set here", f"{ELSEWHERE[key]} does that")
    if key not in SETTABLE:
        near = f"did you mean {meant}? " if (meant := near_setting(key)) else ""
        what = f"there is no setting {key}" if key else "which setting?"
        raise UsageError(what, f"{near}known are {', '.join(SETTABLE)}")
    with otherwise(f"{key} stays as it was"):
        repl.wait(repl.chat.change_settings({key: parse_value(key, value) if value else None}))
    repl.streams.info(settings_lines({key: getattr(repl.chat.settings, key)}))


def show_settings(repl: Repl, _: Line) -> None:
    chat = repl.chat
    values = {key: value for key, value in asdict(chat.settings).items() if key not in ELSEWHERE}
    shown = {"model": chat.loaded.model.reference, **values, "format": chat.loaded.format_name}
    gauge = chat.context_usage
    repl.streams.info(settings_lines({**shown, "ctx": gauge[1] if gauge else chat.settings.ctx}))


def take_back(repl: Repl, _: Line) -> None:
    question = repl.chat.undo()
    if question is None:
        raise UsageError("there is nothing to take back", "ask something first")
    repl.last = None
    repl.streams.info(f"taken back: {shortened(question)}")


def try_again(repl: Repl, line: Line) -> None:
    settings = retried(repl.chat.settings, line.argument)
    if settings.temperature == 0 and repl.chat.last_question:
        what = "at temperature 0 the same conversation gets the same reply"
        repl.streams.notice(NoticeEvent(what, "/retry 0.7 samples another"))
    repl.play(repl.chat.retry(settings))


def retried(settings: Settings, argument: str) -> Settings:
    """Return the settings of one more try: a whole number above 2 is a seed, any other a temperature."""
    if not argument:
        return settings
    if argument.isdecimal() and argument not in TEMPERATURES:
        if settings.temperature == 0:
            raise UsageError("a seed changes nothing at temperature 0", "/set temperature 0.7 first")
        return replace(settings, seed=parse_value("seed", argument))
    try:
        return replace(settings, temperature=parse_value("temperature", argument))
    except UsageError as error:
        raise UsageError(f"/retry {argument}", "give a temperature, as in /retry 0.7, or a seed") from error


def take_votes(repl: Repl, line: Line) -> None:
    votes, _, question = line.argument.partition(" ")
    try:
        poll = MajorityVote(parse_votes(votes))
    except UsageError as error:
        what = f"/votes {votes}".rstrip()
        raise UsageError(
            what, "give how many chains, as in /votes 8 or /votes auto, then a question or none"
        ) from error
    settings = repl.chat.settings
    if settings.temperature == 0:
        settings = replace(settings, temperature=VOTE_TEMPERATURE)
    repl.decide(question.strip(), settings, poll)


def edit(repl: Repl, line: Line) -> None:
    chat, part = repl.chat, line.argument or "question"
    if part not in PARTS:
        raise UsageError(f"/edit {part}", f"edit the {' or the '.join(PARTS)}")
    stored = chat.last_question if part == "question" else chat.last_reply
    if stored is None:
        raise UsageError(f"there is no {part} to edit", "ask something first")
    before = stored.message.content
    text = repl.lines.edit(before)
    if not text.strip() or text == before:
        repl.streams.info("nothing is changed")
    elif part == "question":
        repl.play(chat.edit_question(text))
    else:
        chat.replace_reply(text)
        repl.streams.info("the reply is yours now, and the conversation goes on from it")


def go_on(repl: Repl, _: Line) -> None:
    repl.play(repl.chat.continue_reply())


def fork(repl: Repl, line: Line) -> None:
    repl.streams.info(f"this is {repl.chat.fork(line.argument or None).name} now")


def list_sessions(repl: Repl, _: Line) -> None:
    print_sessions(repl.streams, session_rows(repl.chat.history.store))


def load(repl: Repl, line: Line) -> None:
    chat = repl.chat
    session = chat.history.get(_given(line, "a session", "/sessions lists them"))
    chat.switch_session(session)
    repl.last = None
    repl.streams.info(f"this is {session.name} now")
    if session.model and session.model != chat.loaded.model.reference:
        repl.streams.notice(
            NoticeEvent(f"it was led with {session.model}", f"/model {session.model} goes on with that")
        )


def save(repl: Repl, line: Line) -> None:
    name = _given(line, "a name", "as in /save holidays")
    repl.chat.rename(name)
    repl.streams.info(f"this is {name} now; every turn is kept as it is said")


def export(repl: Repl, line: Line) -> None:
    path = Path(_given(line, "a file", "as in /export talk.md")).expanduser()
    chat = repl.chat
    if chat.session is None:
        raise UsageError("nothing has been said yet", "ask something first")
    if SUFFIX_FORMATS.get(path.suffix) == "transcript":  # that takes the model's vocabulary
        repl.wait(chat.load())
    export_to_file(path, chat.history.store, chat.session, chat.loaded)
    repl.streams.info(f"{path} is written")


def attach(repl: Repl, line: Line) -> None:
    path = Path(_given(line, "a file", "as in /file notes.txt")).expanduser()
    repl.files.append((str(path), read_text(path)))
    repl.streams.info(f"{path} stands before the next question")


def show_tokens(repl: Repl, _: Line) -> None:
    repl.wait(repl.chat.load())
    gauge = repl.chat.context_usage
    repl.streams.info(gauge_text(*gauge) if gauge else "the model is being loaded")


def show_stats(repl: Repl, _: Line) -> None:
    if repl.last is None or repl.last.reply is None:
        raise UsageError("nothing has been said yet", "ask something first")
    opened = repl.chat.loaded
    repl.streams.info(stats_line(repl.last.reply.finish, opened.model.name, opened.format_name))


def copy_reply(repl: Repl, line: Line) -> None:
    text = _last_reply(repl).message.content
    what = "the reply"
    if line.argument:
        from cerebrum_cli.terminal.markdown.code_blocks import code_blocks

        blocks = code_blocks(text)
        if not line.argument.isdecimal() or not 0 < int(line.argument) <= len(blocks):
            has = f"the last reply has {len(blocks)} code block{'' if len(blocks) == 1 else 's'}"
            raise UsageError(f"/copy {line.argument}: {has}", "give the number that stands above one")
        text, what = blocks[int(line.argument) - 1], f"code block {line.argument}"
    repl.streams.info(f"{what} is copied by {copy(repl.streams, text)}")


def show_final(repl: Repl, _: Line) -> None:
    last = _last_reply(repl)
    answer = final_answer(last.message.content, is_complete=last.metadata.finish_reason in ("stop", None))
    if answer is None:
        raise UsageError("the last reply states no final answer", "ask for one")
    repl.streams.answer(answer + "\n")


def show_prompt(repl: Repl, _: Line) -> None:
    repl.wait(repl.chat.load())
    repl.streams.answer(format_transcript(repl.chat.loaded.responder, repl.chat.conversation))


def show_thought(repl: Repl, _: Line) -> None:
    thought = _last_reply(repl).metadata.reasoning
    if not thought:
        raise UsageError("there was no thought before the last reply", "some models mark none")
    repl.streams.answer(thought + "\n")


@contextlib.contextmanager
def otherwise(what: str) -> Iterator[None]:
    """Say what is so all the same where Ctrl-C ends what is done here."""
    try:
        yield
    except Interrupted as error:
        if error.exit_code != 128 + signal.SIGINT:
            raise
        raise Interrupted(signal.SIGINT, what) from error


def _last_reply(repl: Repl) -> StoredMessage:
    reply = repl.chat.last_reply
    if reply is None:
        raise UsageError("there is no reply yet", "ask something first")
    return reply


def _given(line: Line, what: str, how: str) -> str:
    if not line.argument:
        raise UsageError(f"/{line.name} needs {what}", how)
    return line.argument


COMMANDS: dict[str, Callable[[Repl, Line], None]] = {
    "help": show_help,
    "exit": leave,
    "clear": begin_anew,
    "system": lead,
    "model": change_model,
    "set": change_setting,
    "params": show_settings,
    "undo": take_back,
    "retry": try_again,
    "votes": take_votes,
    "edit": edit,
    "continue": go_on,
    "fork": fork,
    "sessions": list_sessions,
    "load": load,
    "save": save,
    "export": export,
    "file": attach,
    "tokens": show_tokens,
    "stats": show_stats,
    "copy": copy_reply,
    "final": show_final,
    "prompt": show_prompt,
    "think": show_thought,
}
