"""`cerebrum ask`: answer once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option
from cerebrum_cli.ground.errors import NoAnswer, SessionError, UsageError
from cerebrum_cli.ground.events import NoticeEvent

if TYPE_CHECKING:
    from cerebrum_cli.application.model import Model
    from cerebrum_cli.application.opening import Opened
    from cerebrum_cli.application.reply import Reply
    from cerebrum_cli.ground.conversation import Conversation
    from cerebrum_cli.ground.events import Event
    from cerebrum_cli.ground.settings import Settings
    from cerebrum_cli.runtime import Runtime
    from cerebrum_cli.terminal.streams import Streams


def ask(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The question; `-` reads it from standard input.")
    ] = None,
    model: options.Model = None,
    system: options.System = None,
    file: options.Files = None,
    messages: Annotated[
        Path | None,
        option("--messages", help="Ask with an OpenAI messages list; `-` is standard input.", metavar="FILE"),
    ] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    format: options.Format = None,
    template_arg: options.TemplateArg = None,
    raw: Annotated[bool, option("--raw", help="Complete the prompt as it stands, without a format.")] = False,
    schema: Annotated[
        Path | None, option("--schema", help="Answer in JSON of this JSON Schema.", metavar="FILE")
    ] = None,
    grammar: Annotated[Path | None, option("--grammar", help="Answer by this GBNF grammar.", metavar="FILE")] = None,
    final: Annotated[bool, option("--final", help="Print only the final answer; exit 5 if there is none.")] = False,
    json: options.Json = False,
    stats: Annotated[bool, option("--stats", help="Print speeds, context and seed on standard error.")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="Print the exact prompt and evaluate nothing.")] = False,
    no_markdown: options.NoMarkdown = False,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    yes: options.Yes = False,
    continue_: options.Continue = False,
    no_log: options.NoLog = False,
    no_cache: options.NoCache = False,
) -> None:
    """Answer once.

    The question is made of the files, the prompt and what is piped in, in this order. The exchange is kept as a
    session, which -c goes on from.
    """
    given = options.given(locals(), no_cache)
    from cerebrum_cli.application.opening import open_model
    from cerebrum_cli.application.question import Question, template_options

    runtime = options.runtime_of(context, verbose)
    piped = runtime.streams.piped
    question = Question(prompt, tuple(file or ()), messages, raw)
    question.require(piped)
    kept = Kept(runtime, continue_, no_log or raw)
    if continue_ and (raw or messages):
        raise UsageError("-c goes on from a session", f"leave out {'--raw' if raw else '--messages'}")
    given = kept.led(given)
    found = options.find_model(runtime, given, yes, quiet, offline)
    settings = runtime.settings(given, found)
    constraint = read_grammar(runtime, schema, grammar, quiet)
    arguments = template_options(template_arg or ())
    conversation = None if piped else kept.before(question.read(None, settings, given.get("system")), found, given)
    opened = open_model(
        runtime.open_backend,
        found,
        settings,
        raw=raw,
        template_options=arguments,
        vocabulary_only=dry_run,
        states=runtime.states,
    )
    try:
        if conversation is None:  # what is piped in is read while the model loads
            conversation = kept.before(question.read(piped, settings, given.get("system")), found, given)
        if dry_run:
            show_prompt(runtime.streams, opened, conversation, json, quiet)
        else:
            markdown = not (no_markdown or raw or constraint)
            shown = Shown(final, json, stats, markdown, quiet, verbose)
            events = opened.responder.respond(conversation, settings, constraint)
            keep = partial(kept.keep, conversation, opened, settings)
            answer(runtime.streams, opened, events, shown, keep, partial(kept.keep_read, opened))
    finally:
        opened.engine.close()
        kept.close()


def read_grammar(runtime: Runtime, schema: Path | None, grammar: Path | None, quiet: bool) -> str | None:
    """Return the GBNF grammar that --schema or --grammar names."""
    from cerebrum_cli.application.question import read_text

    if schema and grammar:
        raise UsageError("--schema and --grammar are both given", "give one of them")
    if schema:
        text, ignored = runtime.schema_to_grammar(read_text(schema))
        if ignored and not quiet:
            what = f"{schema}: no grammar can hold {', '.join(ignored)}, so answers may break it"
            runtime.streams.notice(NoticeEvent(what, "check the answer against the schema"))
        return text
    return read_text(grammar) if grammar else None


def show_prompt(streams: Streams, opened: Opened, conversation: Conversation, json: bool, quiet: bool) -> None:
    """Print the exact prompt on standard output, no byte more in a pipe; how many tokens it has on standard error."""
    from cerebrum_cli.application.reply import prompt_object

    preview = opened.responder.preview(conversation)
    if json:
        streams.answer_object(prompt_object(preview, opened.model.name, opened.format_name))
        return
    streams.answer(preview.prompt)
    if streams.out_is_terminal and not preview.prompt.endswith("\n"):
        streams.answer("\n")
    if not quiet:
        streams.talk(f"{len(preview.token_ids)} tokens")


class Kept:
    """The session an exchange goes on from, if any, and the one it is kept in, unless it is not to be."""

    def __init__(self, runtime: Runtime, goes_on: bool, unkept: bool) -> None:
        self._runtime = runtime
        self._unkept = unkept
        self._history = runtime.history if goes_on or not unkept else None
        self.session = self._history.latest() if self._history and goes_on else None

    def led(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was given, with the session's own model and format."""
        if self.session is None:
            return dict(given)
        from cerebrum_cli.application.history import led

        return led(self.session, given)

    def before(self, conversation: Conversation, model: Model, given: Mapping[str, Any]) -> Conversation:
        """Return the conversation after what the session holds already."""
        if self.session is None or self._history is None:
            return conversation
        from cerebrum_cli.application.history import gone_on

        return gone_on(self._history.store, self.session, model.reference, conversation, given.get("system"))

    def keep(self, conversation: Conversation, opened: Opened, settings: Settings, reply: Reply) -> None:
        """Keep the exchange; where that cannot be done, say so: the answer stands."""
        if self._unkept or self._history is None:
            return
        from cerebrum_cli.application.history import Speaker

        speaker = Speaker(opened.model.reference, opened.format_name)
        try:
            self._history.keep(self.session, conversation, reply, speaker, settings)
        except SessionError as error:
            self._runtime.streams.notice(NoticeEvent(f"this exchange is not kept: {error.what}", error.do))

    def keep_read(self, opened: Opened, reply: Reply) -> None:
        """Keep what the model has read, if that took long, so that it need not be read again."""
        from cerebrum_cli.application.reply import LONG_PROMPT

        if not self._unkept and reply.took_long_to_read and (notice := opened.keep(LONG_PROMPT)):
            self._runtime.streams.notice(notice)

    def close(self) -> None:
        """Let go of the session and of the database."""
        if self._history:
            self._history.close()


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a reply is shown, and how."""

    final: bool
    json: bool
    stats: bool
    markdown: bool
    quiet: bool
    verbose: bool


def answer(
    streams: Streams,
    opened: Opened,
    events: Generator[Event, None, None],
    shown: Shown,
    keep: Callable[[Reply], None],
    keep_read: Callable[[Reply], None],
) -> None:
    """Play a reply out to the terminal or pipe, keep it, and print what comes after it; what was read is kept last."""
    from cerebrum_cli.application.reply import ReplyGatherer, reply_object, shortfall
    from cerebrum_cli.terminal.progress import StatusLine
    from cerebrum_cli.terminal.sinks import NoticeSink, Sink, answer_sink, play
    from cerebrum_cli.terminal.tables import stats_line

    gatherer = ReplyGatherer()
    sinks: list[Sink] = [gatherer]
    if not shown.quiet:
        sinks.append(NoticeSink(streams))
    if not (shown.quiet or shown.verbose):
        sinks.insert(0, StatusLine(streams, opened.model.name))  # first, so that it is gone before others write
    if not shown.final and not shown.json:
        sinks.append(answer_sink(streams, shown.markdown))
    try:
        play(events, opened.responder.cancel, sinks)
    finally:
        reply = gatherer.reply
        if reply:
            keep(reply)
        if reply and shown.json:
            streams.answer_object(reply_object(reply, opened.model.name, opened.format_name))
        elif reply and shown.final and reply.final_answer is not None:
            streams.answer(reply.final_answer + "\n")
        if reply and shown.stats:
            streams.talk(stats_line(reply.finish, opened.model.name, opened.format_name))
        if reply:
            keep_read(reply)
    if reply and not shown.quiet and (notice := shortfall(reply)):
        streams.notice(notice)
    if shown.final and reply and reply.final_answer is None:
        raise NoAnswer("the reply states no final answer", "see all of it without --final, or ask for one")
