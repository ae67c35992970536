"""`cerebrum ask`: answer one question, by one reply or by a vote."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.cli.options import (
    QUOTE_PATTERN,
    AskOptions,
    only_question,
)
from cerebrum_cli.core.declaration import option_group
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.settings import CHAT_KEYS, DIALOGUE_KEYS, REPLY_KEYS, Layer

if TYPE_CHECKING:
    from cerebrum_cli.attachments.prompt_sources import PromptSources
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.ask import Votes
    from cerebrum_cli.core.tools import Tools
    from cerebrum_cli.replies.source import ModelSource

USUAL_ANSWER = 250  # tokens, about
SHORT_ANSWER = 60  # under a schema or a grammar


@option_group
class AskCommand(AskOptions):
    """
    Examples:
      git diff | cerebrum ask "Write a commit message for this change"
      cerebrum ask "What is 15% of 80?" --votes 8 --final
    """

    settings = settings_options(key for key in (*REPLY_KEYS, *DIALOGUE_KEYS) if key not in CHAT_KEYS)
    prompt: list[str] = argument(
        "[PROMPT]", "The question, after files; `-` is standard input", is_list=True, is_required=False
    )

    def run(self, app: App) -> None:
        from cerebrum_cli.attachments.prompt_sources import PromptSources

        saved = self.find_prompt(app)
        command = self.with_saved(saved) if saved else self
        match self.prompt:
            case [language, question] if self.extract and " " in question and " " not in language:
                hint = f"-x takes no language; --block {language} prints the first block in it"
                raise UsageError(f"unexpected argument: {language}", hint)
        text = only_question(self.prompt)
        if text and self.file and exists(Path(text)):
            app.streams.note(NoticeEvent(f"the question is the name of a file: {text}", QUOTE_PATTERN))
        sources = PromptSources(text, self.file, self.messages, self.raw, app.streams.note, saved, self.offline)
        votes = command.vote_bounds()
        sources.validate(app.streams.piped)
        command.validate()
        command.answer(app, sources, votes)

    def answer(self, app: App, question: PromptSources, votes: Votes | None) -> None:
        """Load the model, read the question meanwhile, and print the answer."""
        from cerebrum_cli.replies.interface import open_source
        from cerebrum_cli.terminal.sinks import ReplyDisplay

        display = ReplyDisplay(app.streams, self.yes, is_hidden=self.verbose)
        tools: Tools = ()
        if self.tool_flag:
            display.find = self.tool_finder(app)
            tools = display.tools_of(self.tool_sources)
        open_history = cache(app.open_history)  # imported and opened when it is needed, mostly after the answer
        overrides: Layer = self.overrides
        session = None
        if self.session_flag:
            self.require_sessions(not app.settings(overrides).no_log)
            session = open_history().acquire_named(self.session)
            if session:
                overrides = session.add_defaults(overrides, is_remote=bool(self.endpoint))
        source = self.source_of(app, overrides, votes)
        settings = source.settings
        grammar = self.read_grammar(source)
        loaded = open_source(source)
        try:
            from cerebrum_cli.cli.answer import AnswerPrinter, show_prompt
            from cerebrum_cli.core.ask import Ask

            system = overrides.get("system")
            conversation = question.read(app.streams.piped, settings, system)
            if session:
                conversation = open_history().prepend(session, source.model, conversation, system)
            asked = Ask(conversation, settings, grammar, tools=tools)
            if self.dry_run:
                show_prompt(app.streams, loaded, asked, self)
                return

            saves = not (self.raw or settings.no_log)
            printer = AnswerPrinter(display, loaded, asked, self, open_history if saves else None, session)
            with printer.generating():
                if votes:
                    printer.show_vote(votes)
                else:
                    printer.show_reply()
        finally:
            loaded.close(frees=False)

    def source_of(self, app: App, overrides: Layer, votes: Votes | None) -> ModelSource:
        """The model that answers, and the length that is expected of the answer."""
        source = replace(
            self.find_source(app, overrides),
            raw=self.raw,
            vocabulary_only=self.dry_run,
            caches_prompts=True,
            answer_tokens=SHORT_ANSWER if self.schema or self.grammar else USUAL_ANSWER,
        )
        if votes:
            return source.for_samples("--votes", votes.maximum)
        return source
