"""The slash commands of a chat: a function for each, and their table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from cerebrum_cli.core.declaration import NONE
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.inspection import LeastCertain, parse_likeliest
from cerebrum_cli.core.sampling import SAMPLERS, samplers_in_effect
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.core.settings import OPTIONS, SHORTHANDS, Settings, keys_of
from cerebrum_cli.core.text import format_names
from cerebrum_cli.core.votes import MAX_VOTES, parse_votes
from cerebrum_cli.replies.reply import MajorityVote
from cerebrum_cli.terminal.repl.clipboard import copy_to_clipboard
from cerebrum_cli.terminal.repl.questions import shorten_question
from cerebrum_cli.terminal.repl.repl import LIST_SESSIONS, Repl, context_text, model_text
from cerebrum_cli.terminal.repl.slash_lines import (
    DEFAULT,
    KEYS,
    PARTS,
    SETTABLE,
    SETTABLE_ON_SERVERS,
    SHOWN,
    SlashCommand,
    find_slash,
    help_text,
    parse_path,
    setting_hint,
    setting_key,
    split_paths,
)
from cerebrum_cli.terminal.tables import (
    PIPE_WIDTH,
    excerpt,
    print_latest,
    print_prompts,
    print_table,
    print_uncertain,
    sampling_text,
    settings_lines,
    stats_line,
)

if TYPE_CHECKING:
    pass

T = TypeVar("T")
LIKELIEST = "3"  # alternatives that /why shows by default
LOADED = ("format", "ctx")  # settings whose values are known once the model is loaded
TEMPERATURES = ("0", "1", "2")  # whole numbers that /retry reads as temperatures; others are seeds


def show_help(repl: Repl, argument: str) -> None:
    rows = [(group, ", ".join(slash.usage for slash in commands)) for group, commands in COMMAND_GROUPS.items()]
    rows += [("", ""), *KEYS]
    if slash := find_slash(argument.removeprefix("/"), SLASH_COMMANDS):
        rows = [(slash.usage, slash.help)]
    width = repl.streams.columns if repl.streams.out_is_terminal else PIPE_WIDTH
    repl.streams.answer(help_text(rows, width))


def exit_chat(repl: Repl, _: str) -> None:
    repl.is_done = True


def start_new(repl: Repl, _: str) -> str:
    repl.switch_session(None)
    return "New conversation"


def set_system_prompt(repl: Repl, argument: str) -> str:
    if argument:
        repl.chat.set_system_prompt(None if argument == DEFAULT else argument)
    repl.wait_for(repl.chat.load())
    shown = repl.chat.conversation.system_prompt
    if shown is None:
        shown = repl.chat.loaded.format.default_system
    return f"system prompt: {shown}" if shown else "no system prompt"


def change_model(repl: Repl, argument: str) -> str:
    if argument:
        repl.wait_for(repl.chat.change_settings({"model": argument, "format": None}))
    loaded = repl.chat.loaded
    return f"{model_text(loaded)}, prompt format: {loaded.format_name}"


def change_setting(repl: Repl, argument: str) -> str:
    name, _, value = argument.partition(" ")
    key = setting_key(name)
    value = value.strip()
    if not key:
        return list_settings(repl, asdict(repl.chat.settings))
    if key not in (*SETTABLE, *SHORTHANDS):
        raise UsageError(f"unknown setting {key!r}", setting_hint(argument))
    expected = OPTIONS[keys_of(key)[0]].expected
    if not value and "off" in expected:
        raise UsageError(f"/set {key} needs a value", f"{expected}; or {DEFAULT} to reset it")
    return apply_setting(repl, key, value or DEFAULT, key)


def apply_setting(repl: Repl, key: str, value: str, source: str) -> str:
    """Change a setting, or reset it, and return its new value; `source` names it in errors."""
    changes = dict.fromkeys(keys_of(key))
    if value != DEFAULT:
        for changed in changes:
            changes[changed] = OPTIONS[changed].parse([value], source)
    repl.wait_for(repl.chat.change_settings(changes))
    settings = repl.chat.settings
    shown = {changed: getattr(settings, changed) for changed in changes}
    return settings_lines(shown, settings.origins if value == DEFAULT else {})


def show_settings(repl: Repl, _: str) -> str:
    settings = repl.chat.settings
    defaults = Settings()
    shown = [*settings.samplers, *LOADED]
    for key in OPTIONS:
        if key not in SAMPLERS and getattr(settings, key) != getattr(defaults, key):
            shown.append(key)
    return list_settings(repl, shown)


def list_settings(repl: Repl, shown: Collection[str]) -> str:
    chat = repl.chat
    values = {**asdict(chat.settings), "format": chat.loaded.format_name}
    if usage := chat.context_usage:
        values["ctx"] = usage[1]
    settable = SETTABLE_ON_SERVERS if chat.loaded.is_remote else SETTABLE
    listed = {"model": chat.loaded.model.reference}
    for key, value in values.items():
        if key in shown and key in (*settable, *LOADED):
            listed[key] = value
    return settings_lines(listed, chat.settings.origins)


def use_prompt(repl: Repl, argument: str) -> str | None:
    if not argument:
        print_prompts(repl.streams, [saved.as_object() for saved in repl.chat.installation.prompts.read_all()])
        return None
    saved = SavedPrompt("no saved prompt") if argument == NONE else repl.chat.installation.prompts.find(argument)
    repl.wait_for(repl.chat.use(saved))
    repl.pending_prompt = saved if saved.prompt else None
    return f"using {saved.name}{' for the next question' if saved.prompt else ''}"


def undo(repl: Repl, _: str) -> str:
    return f"Undone: {shorten_question(repl.chat.undo())}"


def redo(repl: Repl, _: str) -> str:
    return f"Restored: {shorten_question(repl.chat.redo())}"


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


def continue_reply(repl: Repl, argument: str) -> None:
    repl.render(repl.chat.reply_from(argument) if argument else repl.chat.continue_reply())


def fork(repl: Repl, argument: str) -> str:
    return f"Now in session {repl.chat.fork(argument or None).name!r}"


def list_sessions(repl: Repl, _: str) -> None:
    print_latest(repl.streams, repl.chat.history.rows)


def load_session(repl: Repl, argument: str) -> None:
    repl.switch_session(argument)
    repl.streams.info(f"Now in session {argument!r}")
    repl.show_last_exchange()
    repl.streams.report(repl.chat.difference)


def rename_session(repl: Repl, argument: str) -> str:
    repl.chat.rename(argument)
    if repl.chat.is_saved:
        return f"Session saved as {argument!r}; every turn is saved automatically"
    return f"Session named {argument!r}; it is not saved"


def export_session(repl: Repl, argument: str) -> str:
    path = parse_path(argument)
    repl.wait_for(repl.chat.export(path))
    return f"wrote {path}"


def attach_file(repl: Repl, argument: str) -> str | None:
    if argument == NONE:
        repl.detach_files()
        return None
    paths, question = split_paths(argument)
    files = repl.reader.read(paths, repl.streams.notice)
    repl.pending_files += files
    if not question:
        return f"{format_names([name for name, _ in files])} will be prepended to your next question"
    repl.ask(question)
    return None


def show_tokens(repl: Repl, _: str) -> str:
    repl.wait_for(repl.chat.load())
    if usage := repl.chat.context_usage:
        return context_text(*usage)
    if repl.chat.loaded.is_remote:
        return "the server does not state its context"
    return "tokens are unknown: the chat template fails for this conversation"


def show_stats(repl: Repl, _: str) -> None:
    last = repl.chat.require_reply()
    generated = repl.chat.generated
    if generated is None:
        raise UsageError("the last reply has no statistics: they are not saved", "ask something first, or /retry")
    loaded = repl.chat.loaded
    sampling = sampling_text(samplers_in_effect(last.metadata.params or {}))
    line = stats_line(generated.finish, loaded.model.name, loaded.format_name, loaded.repacks, sampling)
    repl.streams.write_line("", line)


def explain_reply(repl: Repl, argument: str) -> None:
    count = parse_likeliest("number of alternatives", argument or LIKELIEST)
    reply = repl.chat.given_reply()
    least_certain = LeastCertain(reply)
    repl.wait_for(repl.chat.inspect(reply, count), least_certain)
    print_uncertain(repl.streams, least_certain.tokens(repl.chat.loaded.detokenize))


def change_tools(repl: Repl, argument: str) -> str:
    if argument == "off":
        repl.chat.tools = ()
    elif argument:
        repl.chat.tools = repl.display.calls.tools_of([*repl.chat.tools, argument])
    return ", ".join(tool.spec.name for tool in repl.chat.tools) or "no functions; /tools FILE adds some"


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
    from cerebrum_cli.answers.final import answers_to  # compiling its patterns is slow

    last = repl.chat.require_reply()
    question = repl.chat.conversation.messages[-2].content
    answer, _stated = answers_to(question, last.message.content, last.metadata.finish_reason in ("stop", None))
    if answer is None:
        raise UsageError("the last reply states no final answer", "ask for one")
    repl.streams.answer(answer + "\n")


def show_prompt(repl: Repl, _: str) -> None:
    repl.wait_for(repl.chat.load())
    repl.streams.answer(repl.chat.transcript)


def think(repl: Repl, argument: str) -> str | None:
    if argument in SHOWN:
        return apply_setting(repl, "show_thinking", SHOWN[argument], "/think")
    if argument:
        return apply_setting(repl, "think", argument, "/think")
    reasoning = repl.chat.require_reply().message.reasoning
    if not reasoning:
        raise UsageError("the last reply has no reasoning", "not every model marks its reasoning")
    repl.streams.answer(reasoning + "\n")
    return None


COMMAND_GROUPS = {
    "Chat": (
        SlashCommand("help", show_help, "[WORD]", "show commands and keys, or explain a command"),
        SlashCommand("exit", exit_chat, "", "exit; so do /quit, /bye, /q and Ctrl-D", aliases=("quit", "bye", "q")),
        SlashCommand("clear", start_new, "", "start a new conversation; this one stays saved"),
        SlashCommand(
            "file",
            attach_file,
            "PATHS [QUESTION]",
            "prepend files, directories, globs or web pages to a question; `none` detaches them",
            "path",
            required=("a file", "for example /file notes.txt"),
        ),
    ),
    "Settings": (
        SlashCommand(
            "system",
            set_system_prompt,
            "[TEXT|default]",
            "show or set the system prompt; `default` restores the format's own",
        ),
        SlashCommand("model", change_model, "[MODEL]", "show the model, or switch to another", "model"),
        SlashCommand(
            "set",
            change_setting,
            "[KEY [VALUE]]",
            "list all settings, change one, or reset it (`default`, or no value)",
            "setting",
        ),
        SlashCommand(
            "use",
            use_prompt,
            "[NAME]",
            "list saved prompts, or use one for the next question, with its settings; `none` drops it",
            "prompt",
        ),
        SlashCommand(
            "tools",
            change_tools,
            "[python|FILE|off]",
            "list the functions that the model may call, add some, or remove all (`off`)",
            "path",
        ),
        SlashCommand("params", show_settings, "", "show the settings in effect, and where they come from"),
        SlashCommand(
            "think",
            think,
            "[MODE|show|hide]",
            "show the last reasoning, set thinking (on, off, tokens, effort), or show or hide it live",
            "think",
        ),
    ),
    "Last question": (
        SlashCommand("undo", undo, "", "undo the last turn"),
        SlashCommand("redo", redo, "", "restore the last undone turn"),
        SlashCommand("edit", edit, "[answer]", "edit the last question, or its reply, in your editor", "part"),
        SlashCommand(
            "retry",
            retry,
            "[TEMP|SEED]",
            "answer again; a whole number above 2 is a seed, another number a temperature",
        ),
        SlashCommand("votes", vote, "K [QUESTION]", "vote with K samples on a question (default: the last one)"),
    ),
    "Sessions": (
        SlashCommand("sessions", list_sessions, "", "list saved sessions"),
        SlashCommand(
            "load", load_session, "NAME", "switch to another session", "session", required=("a session", LIST_SESSIONS)
        ),
        SlashCommand(
            "save",
            rename_session,
            "NAME",
            "rename this session (sessions are always saved)",
            required=("a name", "for example /save holidays"),
        ),
        SlashCommand("fork", fork, "[NAME]", "continue in a copy of this session"),
        SlashCommand(
            "export",
            export_session,
            "FILE",
            "write the session as .md, .json (OpenAI messages) or .txt (exact prompt)",
            "path",
            required=("a file", "for example /export talk.md"),
        ),
    ),
    "Last reply": (
        SlashCommand(
            "continue",
            continue_reply,
            "[TEXT]",
            "continue a reply that was cut off or edited, or reply again from TEXT on",
        ),
        SlashCommand("replies", choose_reply, "[N]", "list all replies to the last question, or switch to the N-th"),
        SlashCommand("calls", show_calls, "", "show the last reply's function calls, with all results"),
        SlashCommand("copy", copy_reply, "[N]", "copy the last reply, or its N-th code block"),
        SlashCommand("final", show_final_answer, "", "show the last reply's final answer"),
    ),
    "Details": (
        SlashCommand("stats", show_stats, "", "show speed and token counts of the last reply"),
        SlashCommand(
            "why",
            explain_reply,
            "[N]",
            "show the last reply's least certain tokens, each with N alternatives (default: 3)",
        ),
        SlashCommand("tokens", show_tokens, "", "show context usage"),
        SlashCommand("prompt", show_prompt, "", "show the exact prompt"),
    ),
}
SLASH_COMMANDS = tuple(chain.from_iterable(COMMAND_GROUPS.values()))
