"""`cerebrum ask`: answer one question, by one reply or by a vote."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cerebrum_cli.chat.session_recorder import SessionRecorder
from cerebrum_cli.cli.options import AskOptions
from cerebrum_cli.cli.saved_prompts import apply_prompt
from cerebrum_cli.cli.signature import (
    SettingKeys,
    composed,
    only_question,
    positional,
)
from cerebrum_cli.core.settings import REPLY_KEYS, Layer

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.model.interface import Model
    from cerebrum_cli.model.prompt_sources import PromptSources
    from cerebrum_cli.model.source import ModelSource


@composed
def ask(
    app: App,
    on_command_line: frozenset[str],
    overrides: Annotated[Layer, SettingKeys((*REPLY_KEYS, "cache_gb", "no_log"))],
    options: AskOptions,
    prompt: Annotated[list[str] | None, positional("[PROMPT]", "The question; `-` reads standard input")] = None,
) -> None:
    """The prompt is built from the files, PROMPT and standard input, in that order.

    The exchange is saved as a session, which -c continues; without a prompt, -c continues a reply that was cut off.

    Examples:
      cerebrum ask "Why is the sky blue?"
      git diff | cerebrum ask "Write a commit message for this change"
      cerebrum ask "What is 15% of 80?" --votes 8 --final
    """
    text = only_question(prompt)
    if options.save_prompt is not None:
        from cerebrum_cli.cli.prompts import save

        save(app, options.save_prompt, text, overrides, options, on_command_line)
        return
    from cerebrum_cli.model.prompt_sources import PromptSources

    saved, overrides, options = apply_prompt(app, overrides, options, on_command_line)
    question = PromptSources(text, options.file, options.messages, options.raw, app.streams.report, saved)
    if not continues_reply(app, question, options):
        question.validate(app.streams.piped)
    options.validate()
    saves = not (options.raw or app.settings(overrides).no_log)
    recorder = SessionRecorder(app.open_history, app.streams.notice, continues=options.continue_, saves=saves)
    with closing(recorder), question.naming_files():
        run_question(app, question, recorder, overrides, options)


def continues_reply(app: App, question: PromptSources, options: AskOptions) -> bool:
    """Whether there is only `-c`, so that the last reply is continued."""
    is_empty = question.prompt is None and not question.files and not question.saved and app.streams.piped is None
    others = (options.dry_run, options.vote_bounds, options.schema, options.grammar)
    return options.continue_ and is_empty and not any(others)


def run_question(
    app: App,
    question: PromptSources,
    recorder: SessionRecorder,
    overrides: Layer,
    options: AskOptions,
) -> None:
    from cerebrum_cli.cli.generation import find_source, naming_grammar_file, read_grammar

    overrides = recorder.with_defaults(overrides, is_remote=bool(options.endpoint))
    source = find_source(app, overrides, options, "--votes" if options.vote_bounds else None)
    settings = source.settings
    grammar, piped = read_grammar(app, options, source.model), app.streams.piped
    if continues_reply(app, question, options):
        conversation, settings = recorder.resume(source.model, settings)
    else:
        conversation = None
    with start_loading(source, options) as loaded:
        from cerebrum_cli.cli.answer import AnswerPrinter, show_prompt
        from cerebrum_cli.model.reply import ReplyRequest
        from cerebrum_cli.terminal.keyboard import Keyboard

        if conversation is None:  # files and standard input are read while the model loads
            asked = question.read(piped, settings, overrides.get("system"))
            conversation = settings.applied_to(recorder.prepend(asked, source.model, overrides))
        if options.dry_run:
            show_prompt(app.streams, loaded, conversation, options)
            return
        request = ReplyRequest(conversation, settings, grammar)
        keyboard = Keyboard()
        with keyboard.without_echo() if app.streams.out_is_terminal else nullcontext():
            printer = AnswerPrinter(app.streams, loaded, recorder, request, options, keyboard)
            with naming_grammar_file(options), printer.reporting_interrupts():
                if votes := options.vote_bounds:
                    printer.show_vote(votes)
                else:
                    printer.show_reply()


def start_loading(source: ModelSource, options: AskOptions) -> Model:
    """Start to load the model, or to connect to its server. A dry run needs the vocabulary only."""
    from cerebrum_cli.engine.memory import SINGLE, ContextOptions
    from cerebrum_cli.model.interface import open_source

    votes = options.vote_bounds
    return open_source(
        replace(
            source,
            context=ContextOptions(slots=votes.maximum) if votes else SINGLE,
            tuned_for="batch" if votes else "ask",
            drafts_for="ask",
            raw=options.raw,
            vocabulary_only=options.dry_run,
            caches_prompts=True,
        )
    )
