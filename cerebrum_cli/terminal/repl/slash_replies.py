"""The slash commands for the last question and its replies."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.sampling import samplers_in_effect
from cerebrum_cli.core.settings import OPTIONS, Settings, sampling_text
from cerebrum_cli.terminal.repl.clipboard import copy_to_clipboard
from cerebrum_cli.terminal.repl.questions import shorten_question
from cerebrum_cli.terminal.repl.repl import Repl, context_text
from cerebrum_cli.terminal.sinks import stats_line

PARTS = ("question", "answer")  # of a turn; both can be edited
TEMPERATURES = ("0", "1", "2")  # whole numbers that /retry reads as temperatures; others are seeds


def undo(repl: Repl, argument: str) -> str:
    """Undo one turn, or `argument` turns, or fewer if there are fewer."""
    if argument and not (argument.isdecimal() and int(argument)):
        raise UsageError.invalid("/undo", argument, "a number of turns")
    questions = [repl.chat.tree.undo()]
    with suppress(SessionError):  # fewer turns than asked for
        while len(questions) < int(argument or 1):
            questions.append(repl.chat.tree.undo())
    return "\n".join(f"Undone: {shorten_question(question)}" for question in questions)


def redo(repl: Repl, _: str) -> str:
    return f"Restored: {shorten_question(repl.chat.tree.redo())}"


def edit(repl: Repl, argument: str) -> str | None:
    part = argument or "question"
    if part not in PARTS:
        raise UsageError.invalid("/edit", part, " or ".join(PARTS))
    stored = repl.chat.tree.require_question() if part == "question" else repl.chat.tree.require_reply()
    text = repl.input.edit(stored.message.content)
    if not text.strip() or text == stored.message.content:
        return "no changes"
    if part == "answer":
        repl.chat.tree.replace_reply(text)
        return "reply replaced; /continue continues it"
    repl.show_question(text)
    repl.render(repl.chat.edit_question(text))
    return None


def parts(_: Repl, __: str) -> Iterable[str]:
    return PARTS


def retry(repl: Repl, argument: str) -> None:
    settings = retry_settings(repl.chat.settings, argument)
    last = repl.chat.tree.last_reply
    if settings.temperature == 0 and last and (last.metadata.params or {}).get("temperature") == 0:
        problem = "at temperature 0 the reply is usually the same"
        repl.streams.note(NoticeEvent(problem, "/retry 0.7 samples a different one"))
    repl.render(repl.chat.retry(settings))


def retry_settings(settings: Settings, argument: str) -> Settings:
    """Settings of a retry: a whole number above 2 is a seed, any other number a temperature."""
    if not argument:
        return settings
    if argument.isdecimal() and argument not in TEMPERATURES:
        if settings.temperature == 0:
            raise UsageError("a seed has no effect at temperature 0", "use /set temperature 0.7 first")
        return replace(settings, seed=OPTIONS["seed"].parse([argument]))
    try:
        return replace(settings, temperature=OPTIONS["temperature"].parse([argument]))
    except UsageError as error:
        raise UsageError.invalid("/retry", argument, "a temperature, such as 0.7, or a seed above 2") from error


def continue_reply(repl: Repl, argument: str) -> None:
    repl.render(repl.chat.reply_from(argument) if argument else repl.chat.continue_reply())


def copy_reply(repl: Repl, argument: str) -> str:
    text = repl.chat.tree.require_reply().message.content
    part = "the reply"
    if argument:
        from cerebrum_cli.terminal.markdown.blocks import code_blocks

        blocks = code_blocks(text)
        if not blocks:
            raise UsageError("the last reply has no code blocks", "/copy copies the whole reply")
        if not (argument.isdecimal() and 0 < int(argument) <= len(blocks)):
            raise UsageError.invalid("/copy", argument, f"a number from 1 to {len(blocks)}")
        text = blocks[int(argument) - 1].text
        part = f"code block {argument}"
    if not text.strip():
        raise UsageError(f"nothing to copy: {part} is empty", "/retry asks again")
    return f"copied {part} via {copy_to_clipboard(repl.streams, text)}"


def show_stats(repl: Repl, _: str) -> str | None:
    chat = repl.chat
    repl.wait_for(chat.load())
    generated, usage = chat.generated, chat.context_usage
    if generated is None and usage is None:
        raise UsageError("the last reply has no statistics: they are not saved", "ask something first, or /retry")
    if generated:
        sampling = sampling_text(samplers_in_effect(chat.tree.require_reply().metadata.params or {}))
        model, format_name = chat.loaded.served_name or chat.loaded.model.name, chat.loaded.format_name
        line = stats_line(generated.finish, model, format_name, chat.loaded.engine.repacks, sampling)
        repl.show_result(line)
    return context_text(*usage) if usage else None


def show_prompt(repl: Repl, _: str) -> None:
    repl.wait_for(repl.chat.load())
    repl.streams.answer(repl.chat.transcript)
