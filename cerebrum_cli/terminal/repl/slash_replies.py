"""The slash commands for the last question and its replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.sampling import samplers_in_effect
from cerebrum_cli.core.settings import OPTIONS, Settings
from cerebrum_cli.core.votes import ASK_FOR_ANSWER, MAX_VOTES, parse_votes
from cerebrum_cli.replies.reply import MajorityVote
from cerebrum_cli.terminal.repl.clipboard import copy_to_clipboard
from cerebrum_cli.terminal.repl.questions import shorten_question
from cerebrum_cli.terminal.repl.repl import Repl, context_text
from cerebrum_cli.terminal.tables import excerpt, print_table, sampling_text, stats_line

T = TypeVar("T")
PARTS = ("question", "answer")  # of a turn; both can be edited
TEMPERATURES = ("0", "1", "2")  # whole numbers that /retry reads as temperatures; others are seeds


def undo(repl: Repl, argument: str) -> str:
    return moved("Undone", argument, repl.chat.undo)


def redo(repl: Repl, argument: str) -> str:
    return moved("Restored", argument, repl.chat.redo)


def moved(done: str, count: str, move: Callable[[], str]) -> str:
    """Move by one turn, or by `count` or fewer if there are fewer, and return their questions. Raises SessionError."""
    questions = [shorten_question(move())]
    with suppress(SessionError):  # fewer turns than asked for
        while len(questions) < int(count or 1):
            questions.append(shorten_question(move()))
    return "\n".join(f"{done}: {question}" for question in questions)


def edit(repl: Repl, argument: str) -> str | None:
    part = argument or "question"
    if part not in PARTS:
        raise UsageError.invalid("/edit", part, " or ".join(PARTS))
    stored = repl.chat.require_question() if part == "question" else repl.chat.require_reply()
    text = repl.input.edit(stored.message.content)
    if not text.strip() or text == stored.message.content:
        return "no changes"
    if part == "answer":
        repl.chat.replace_reply(text)
        return "reply replaced; /continue continues it"
    repl.show_question(text)
    repl.render(repl.chat.edit_question(text))
    return None


def retry(repl: Repl, argument: str) -> None:
    settings = retry_settings(repl.chat.settings, argument)
    last = repl.chat.last_reply
    if settings.temperature == 0 and last and (last.metadata.params or {}).get("temperature") == 0:
        problem = "at temperature 0 the reply is usually the same"
        repl.streams.notice(NoticeEvent(problem, "/retry 0.7 samples a different one"))
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


def vote(repl: Repl, argument: str) -> None:
    votes, _, question = argument.partition(" ")
    try:
        bounds = parse_votes(votes)
    except UsageError as error:
        expected = f"a number from 1 to {MAX_VOTES} or auto, as in /votes 8, and optionally a question"
        raise UsageError.invalid("/votes", votes, expected) from error
    settings = repl.chat.settings.for_samples("/votes")
    repl.vote(question.strip(), settings, MajorityVote(bounds.needing(repl.min_votes)))


def continue_reply(repl: Repl, argument: str) -> None:
    repl.render(repl.chat.reply_from(argument) if argument else repl.chat.continue_reply())


def choose_reply(repl: Repl, argument: str) -> None:
    replies = repl.chat.replies
    current = repl.chat.last_reply
    if argument:
        repl.chat.choose_reply(numbered(argument, replies, "/replies"))
        repl.show_last_exchange()
        return
    rows = []
    for number, stored in enumerate(replies, 1):
        is_current = "*" if stored == current else ""
        rows.append((is_current, number, excerpt(stored.message.content or "(no answer)")))
    print_table(repl.streams, ("", "reply", "begins with"), rows, shorten="begins with")


def numbered(argument: str, items: Sequence[T], command: str) -> T:
    """The item of a number, counted from 1. Raises UsageError."""
    if argument.isdecimal() and 0 < int(argument) <= len(items):
        return items[int(argument) - 1]
    raise UsageError.invalid(command, argument, f"a number from 1 to {len(items)}")


def show_calls(repl: Repl, _: str) -> None:
    calls = [call for part in repl.chat.require_reply().message.rounds for call in part.calls]
    if not calls:
        raise UsageError("the last reply called no functions", "/tools lists those that it may call")
    for call in calls:
        repl.streams.answer(f"{call}\n-> {call.result.rstrip()}\n")


def copy_reply(repl: Repl, argument: str) -> None:
    text = repl.chat.require_reply().message.content
    part = "the reply"
    if argument:
        from cerebrum_cli.terminal.markdown.blocks import code_blocks

        blocks = code_blocks(text)
        if not blocks:
            raise UsageError("the last reply has no code blocks", "/copy copies the whole reply")
        text = numbered(argument, blocks, "/copy").text
        part = f"code block {argument}"
    if not text.strip():
        raise UsageError(f"nothing to copy: {part} is empty", "/retry asks again")
    repl.streams.write_line("", f"copied {part} via {copy_to_clipboard(repl.streams, text)}")


def show_final_answer(repl: Repl, _: str) -> None:
    from cerebrum_cli.answers.final import final_answer  # compiling its patterns is slow

    last = repl.chat.require_reply()
    question = repl.chat.conversation.messages[-2].content
    answer = final_answer(question, last.message.content, last.metadata.finish_reason in ("stop", None))
    if answer is None:
        raise UsageError("the last reply has no final answer", ASK_FOR_ANSWER)
    repl.streams.answer(answer.text + "\n")


def show_stats(repl: Repl, _: str) -> None:
    last = repl.chat.require_reply()
    generated = repl.chat.generated
    if generated is None:
        raise UsageError("the last reply has no statistics: they are not saved", "ask something first, or /retry")
    loaded = repl.chat.loaded
    sampling = sampling_text(samplers_in_effect(last.metadata.params or {}))
    line = stats_line(generated.finish, loaded.model.name, loaded.format_name, loaded.repacks, sampling)
    repl.streams.write_line("", line)


def show_tokens(repl: Repl, _: str) -> str:
    repl.wait_for(repl.chat.load())
    if usage := repl.chat.context_usage:
        return context_text(*usage)
    if repl.chat.loaded.is_remote:
        return "the server does not state its context"
    return "tokens are unknown: the chat template fails for this conversation"


def show_prompt(repl: Repl, _: str) -> None:
    repl.wait_for(repl.chat.load())
    repl.streams.answer(repl.chat.transcript)
