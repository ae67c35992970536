"""`cerebrum ask`: answer one question, by one reply or by a vote."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from cerebrum_cli.cli.options import AskOptions, apply_prompt
from cerebrum_cli.cli.signature import (
    composed,
    only_question,
    positional,
    settings_options,
)
from cerebrum_cli.core.settings import REPLY_KEYS, Layer

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App


@composed
def ask(
    app: App,
    on_command_line: frozenset[str],
    overrides: Annotated[Layer, settings_options((*REPLY_KEYS, "speculative", "cache_gb", "show_thinking", "no_log"))],
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
    from cerebrum_cli.cli.generation import read_grammar
    from cerebrum_cli.engine.memory import ContextOptions
    from cerebrum_cli.replies.interface import open_source
    from cerebrum_cli.replies.prompt_sources import PromptSources

    saved, overrides, options = apply_prompt(app, overrides, options, on_command_line)
    question = PromptSources(text, options.file, options.messages, options.raw, app.streams.report, saved)
    piped, votes = app.streams.piped, options.vote_bounds
    is_asked = text is not None or options.file or saved or piped is not None
    continues = options.continue_ and not (is_asked or options.dry_run or votes or options.schema or options.grammar)
    if not continues:
        question.validate(piped)
    options.validate()
    open_history = cache(app.open_history)  # imported and opened when it is needed, mostly after the answer
    session = continued = None
    if options.continue_:
        from cerebrum_cli.chat import history

        session = open_history().acquire_latest()
        overrides = history.with_session_defaults(session, overrides, is_remote=bool(options.endpoint))
    use: dict[str, Any] = {}
    if votes:
        use = {"context": ContextOptions(slots=votes.maximum), "samples_by": "--votes"}
    source = options.find_source(
        app,
        overrides,
        raw=options.raw,
        vocabulary_only=options.dry_run,
        caches_prompts=True,
        **use,
    )
    settings, conversation = source.settings, None
    saves = not (options.raw or settings.no_log)
    grammar = read_grammar(app, options, source.model)
    if session and continues:
        continued, conversation, settings = history.resume(open_history().store, session, source.model, settings)
    with open_source(source) as loaded:
        from cerebrum_cli.cli.answer import AnswerPrinter, show_prompt
        from cerebrum_cli.replies.reply import Ask

        if conversation is None:  # files and standard input are read while the model loads
            conversation = question.read(piped, settings, overrides.get("system"))
            if session:
                earlier = history.load_conversation(open_history().store, session, source.model)
                conversation = history.prepended(earlier, conversation, overrides.get("system"))
            conversation = settings.applied_to(conversation)
        if options.dry_run:
            show_prompt(app.streams, loaded, conversation, options)
            return
        request = Ask(conversation, settings, grammar)
        printer = AnswerPrinter(
            app.streams, loaded, request, options, open_history if saves else None, session, continued
        )
        with printer.generating():
            if votes:
                printer.show_vote(votes)
            else:
                printer.show_reply()
