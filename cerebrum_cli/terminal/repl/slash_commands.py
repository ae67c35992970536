"""The table of the slash commands, and the functions of those for the chat."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from cerebrum_cli.attachments.prompt_sources import read_files
from cerebrum_cli.core.declaration import NONE
from cerebrum_cli.core.text import enumeration, format_names
from cerebrum_cli.terminal.repl.repl import LIST_SESSIONS, Repl
from cerebrum_cli.terminal.repl.slash_lines import (
    KEYS,
    SlashCommand,
    find_slash,
    help_text,
    unknown_command,
)
from cerebrum_cli.terminal.repl.slash_replies import (
    continue_reply,
    copy_reply,
    edit,
    parts,
    redo,
    retry,
    show_prompt,
    show_stats,
    undo,
)
from cerebrum_cli.terminal.repl.slash_sessions import (
    EXPORTS,
    delete_session,
    export_session,
    list_sessions,
    load_session,
    rename_session,
    search_sessions,
    session_names,
    show_history,
)
from cerebrum_cli.terminal.repl.slash_settings import (
    change_model,
    change_setting,
    change_tools,
    installed_models,
    prompt_names,
    set_system_prompt,
    setting_values,
    think,
    think_values,
    use_prompt,
)
from cerebrum_cli.terminal.repl.typed_paths import named_files, split_paths
from cerebrum_cli.terminal.tables import output_width


def show_help(repl: Repl, argument: str) -> None:
    if name := argument.removeprefix("/"):
        slash = find_slash(name, SLASH_COMMANDS)
        if slash is None:
            raise unknown_command(name, SLASH_COMMANDS)
        rows = [(slash.usage, slash.help)]
    else:
        rows = [(group, ", ".join(slash.usage for slash in commands)) for group, commands in COMMAND_GROUPS.items()]
        rows += [("", ""), *KEYS]
    repl.streams.answer(help_text(rows, output_width(repl.streams)))


def command_names(_: Repl, __: str) -> Iterable[str]:
    return (slash.name for slash in SLASH_COMMANDS)


def exit_chat(repl: Repl, _: str) -> None:
    repl.is_done = True


def start_new(repl: Repl, _: str) -> str:
    repl.switch_session(None)
    return "New conversation"


def attach_file(repl: Repl, argument: str) -> str | None:
    if argument == NONE:
        if not repl.pending_files:
            return "no files attached"
        repl.detach_files()
        return None
    paths, question = split_paths(argument)
    files = read_files(paths, repl.streams.note, repl.offline)
    repl.pending_files += files
    if not question:
        return f"{format_names([name for name, _ in files])} will be prepended to your next question"
    repl.ask(question, named_files(question))
    return None


COMMAND_GROUPS = {
    "Chat": (
        SlashCommand(
            "help",
            show_help,
            "[COMMAND]",
            "show commands and keys, or explain a command",
            command_names,
            aliases=("?",),
        ),
        SlashCommand("exit", exit_chat, "", "exit; so do /quit, /bye, /q and Ctrl-D", aliases=("quit", "bye", "q")),
        SlashCommand("clear", start_new, "", "start a new conversation; this one stays saved"),
        SlashCommand(
            "file",
            attach_file,
            "PATHS [QUESTION]",
            "prepend files, directories, globs or web pages to a question; `none` removes them",
            is_path=True,
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
        SlashCommand("model", change_model, "[MODEL]", "show the model, or switch to another", installed_models),
        SlashCommand(
            "set",
            change_setting,
            "[KEY [VALUE]]",
            "list the settings in effect, or show one, change it, or reset it (`default`)",
            setting_values,
        ),
        SlashCommand(
            "use",
            use_prompt,
            "[NAME [KEY=VALUE]]",
            "list saved prompts, or use one for the next question, with its settings; `none` drops it",
            prompt_names,
        ),
        SlashCommand(
            "tools",
            change_tools,
            "[python|FILE|off]",
            "list the functions that the model may call, add some, or remove all (`off`)",
            is_path=True,
        ),
        SlashCommand(
            "think",
            think,
            "[MODE|show|hide]",
            "show the last reasoning, set thinking (on, off, tokens, effort), or show or hide it live",
            think_values,
        ),
    ),
    "Last question": (
        SlashCommand("undo", undo, "[COUNT]", "undo the last turn, or several"),
        SlashCommand("redo", redo, "", "restore the last undone turn"),
        SlashCommand("edit", edit, "[answer]", "edit the last question, or its reply, in your editor", parts),
        SlashCommand(
            "retry",
            retry,
            "[TEMP|SEED]",
            "answer again; a whole number above 2 is a seed, another number a temperature",
        ),
    ),
    "Sessions": (
        SlashCommand("history", show_history, "", "show the whole conversation, in a pager if it is long"),
        SlashCommand("sessions", list_sessions, "", "list saved sessions"),
        SlashCommand(
            "search",
            search_sessions,
            "WORDS",
            "list the messages of all sessions that contain all of the words",
            required=("words", "for example /search rayleigh"),
        ),
        SlashCommand(
            "load",
            load_session,
            "NAME",
            "switch to another session",
            session_names,
            required=("a session", LIST_SESSIONS),
        ),
        SlashCommand(
            "save",
            rename_session,
            "NAME",
            "rename this session (sessions are always saved)",
            required=("a name", "for example /save holidays"),
        ),
        SlashCommand(
            "delete",
            delete_session,
            "[NAME]",
            "delete this session, or another, after asking you",
            session_names,
        ),
        SlashCommand(
            "export",
            export_session,
            "FILE",
            f"write the session to a new file: {enumeration([*EXPORTS], 'or')} (OpenAI messages)",
            is_path=True,
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
        SlashCommand("copy", copy_reply, "[N]", "copy the last reply, or its N-th code block"),
    ),
    "Details": (
        SlashCommand("stats", show_stats, "", "show speed and token counts of the last reply, and context usage"),
        SlashCommand("prompt", show_prompt, "", "show the exact prompt"),
    ),
}
SLASH_COMMANDS = tuple(chain.from_iterable(COMMAND_GROUPS.values()))
