"""`cerebrum ask`: answer once."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option
from cerebrum_cli.ground.errors import NoAnswer, UsageError
from cerebrum_cli.ground.events import NoticeEvent

if TYPE_CHECKING:
    from cerebrum_cli.application.opening import Opened
    from cerebrum_cli.ground.conversation import Conversation
    from cerebrum_cli.ground.events import Event
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
    no_log: options.NoLog = False,
) -> None:
    """Answer once.

    The question is made of the files, the prompt and what is piped in, in this order.
    """
    given = options.given(locals())
    from cerebrum_cli.application.opening import open_model
    from cerebrum_cli.application.question import Question, template_options

    runtime = options.runtime_of(context, verbose)
    piped = runtime.streams.piped
    question = Question(prompt, tuple(file or ()), messages, raw)
    question.require(piped)
    found = options.find_model(runtime, given, yes, quiet, offline)
    settings = runtime.settings(given, found)
    constraint = read_grammar(runtime, schema, grammar, quiet)
    arguments = template_options(template_arg or ())
    conversation = None if piped else question.read(None, settings, given.get("system"))
    opened = open_model(
        runtime.open_backend, found, settings, raw=raw, template_options=arguments, vocabulary_only=dry_run
    )
    try:
        conversation = conversation or question.read(piped, settings, given.get("system"))  # while the model loads
        if dry_run:
            show_prompt(runtime.streams, opened, conversation, json, quiet)
        else:
            markdown = not (no_markdown or raw or constraint)
            shown = Shown(final, json, stats, markdown, quiet, verbose)
            answer(runtime.streams, opened, opened.responder.respond([conversation], settings, constraint), shown)
    finally:
        opened.engine.close()


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


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a reply is shown, and how."""

    final: bool
    json: bool
    stats: bool
    markdown: bool
    quiet: bool
    verbose: bool


def answer(streams: Streams, opened: Opened, events: Generator[Event, None, None], shown: Shown) -> None:
    """Play a reply out to the terminal or pipe, and print what comes after it."""
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
        if reply and shown.json:
            streams.answer_object(reply_object(reply, opened.model.name, opened.format_name))
        elif reply and shown.final and reply.final_answer is not None:
            streams.answer(reply.final_answer + "\n")
        if reply and shown.stats:
            streams.talk(stats_line(reply.finish, opened.model.name, opened.format_name))
    if reply and not shown.quiet and (notice := shortfall(reply)):
        streams.notice(notice)
    if shown.final and reply and reply.final_answer is None:
        raise NoAnswer("the reply states no final answer", "see all of it without --final, or ask for one")
