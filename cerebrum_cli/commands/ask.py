"""`cerebrum ask`: answer once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.kept import Kept
from cerebrum_cli.commands.options import option
from cerebrum_cli.core.errors import NoAnswer, UsageError

if TYPE_CHECKING:
    from cerebrum_cli.answers.vote import Votes as VotesWanted
    from cerebrum_cli.application.inference.loading import LoadedModel
    from cerebrum_cli.application.inference.reply import Reply
    from cerebrum_cli.application.inference.voting import MajorityVote
    from cerebrum_cli.core.conversation import Conversation
    from cerebrum_cli.core.events import Event
    from cerebrum_cli.terminal.progress import StatusLine
    from cerebrum_cli.terminal.sinks import Sink
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
    schema: options.Schema = None,
    grammar: options.Grammar = None,
    final: Annotated[bool, option("--final", help="Print only the final answer; exit 5 if there is none.")] = False,
    votes: options.Votes = None,
    no_early_stop: options.NoEarlyStop = False,
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
    no_profile: options.NoProfile = False,
) -> None:
    """Answer once.

    The question is made of the files, the prompt and what is piped in, in this order. The exchange is kept as a
    session, which -c goes on from.
    """
    given = options.given(locals(), no_cache)
    from cerebrum_cli.application.inference.loading import SINGLE, Parallel, open_model
    from cerebrum_cli.application.inference.question import Question, estimate_tokens, template_options
    from cerebrum_cli.application.inference.responder import GenerationRequest

    runtime = options.runtime_of(context, verbose)
    piped = runtime.streams.piped
    question = Question(prompt, tuple(file or ()), messages, raw)
    question.validate(piped)
    kept = Kept(runtime, continue_, no_log or raw)
    if continue_ and (raw or messages):
        raise UsageError("-c goes on from a session", f"leave out {'--raw' if raw else '--messages'}")
    given = kept.led(given)
    found = options.find_model(runtime, given, yes, quiet, offline)
    wanted = options.wanted_votes(votes, no_early_stop)
    poll = poll_of(wanted, not no_early_stop) if wanted else None
    settings = options.settings(runtime, given, found, poll is not None)
    constraint = options.read_grammar(runtime, schema, grammar, quiet)
    arguments = template_options(template_arg or ())
    answering = options.answering(runtime, found, settings, no_profile)

    def read() -> Conversation:
        return kept.before(question.read(piped, settings, given.get("system")), found, given)

    # What is piped in is read while the model loads, unless its length decides how.
    conversation = None if piped and not answering.depends_on_prompt_length else read()
    opened = open_model(
        runtime.open_backend,
        found,
        settings,
        raw=raw,
        template_options=arguments,
        vocabulary_only=dry_run,
        states=runtime.prompt_cache,
        parallel=Parallel(poll.most) if poll else SINGLE,
        file=answering.model,
        tuning=answering.tuning("batch") if poll else answering.tuning("ask", estimate_tokens(conversation)),
    )
    try:
        conversation = conversation or read()
        if dry_run:
            show_prompt(runtime.streams, opened, conversation, json, quiet)
        else:
            markdown = not (no_markdown or raw or constraint)
            shown = Shown(final, json, stats, markdown, quiet, verbose)
            keep = partial(kept.keep, conversation, opened, settings)
            keep_read = partial(kept.keep_read, opened, conversation)
            if poll:
                from cerebrum_cli.application.inference.voting import vote

                events = vote(opened.responder, GenerationRequest(conversation, settings, constraint), poll)
                decide(runtime.streams, opened, events, poll, shown, keep, keep_read)
            else:
                events = opened.responder.respond(conversation, settings, constraint)
                answer(runtime.streams, opened, events, shown, keep, keep_read)
    finally:
        opened.engine.close()
        kept.close()


def poll_of(wanted: VotesWanted, stops_early: bool) -> MajorityVote:
    """Return a vote that nobody has cast in."""
    from cerebrum_cli.application.inference.voting import MajorityVote

    return MajorityVote(wanted, stops_early)


def show_prompt(streams: Streams, opened: LoadedModel, conversation: Conversation, json: bool, quiet: bool) -> None:
    """Print the exact prompt on standard output, no byte more in a pipe; how many tokens it has on standard error."""
    from cerebrum_cli.application.inference.reply import prompt_object

    preview = opened.responder.preview(conversation)
    if json:
        streams.answer_object(prompt_object(preview, opened.model.name, opened.format_name))
        return
    streams.answer(preview.prompt)
    if streams.out_is_terminal and not preview.prompt.endswith("\n"):
        streams.answer("\n")
    if not quiet:
        streams.info(f"{len(preview.token_ids)} tokens")


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
    opened: LoadedModel,
    events: Generator[Event, None, None],
    shown: Shown,
    keep: Callable[[Reply], None],
    keep_read: Callable[[Reply], None],
) -> None:
    """Play a reply out to the terminal or pipe, keep it, and print what comes after it; what was read is kept last."""
    from cerebrum_cli.application.inference.reply import ReplyCollector, truncation_notice
    from cerebrum_cli.terminal.progress import StatusLine
    from cerebrum_cli.terminal.sinks import answer_sink, render

    gatherer = ReplyCollector()
    sinks = [*talk_sinks(streams, shown, StatusLine(streams, opened.model.name)), gatherer]
    if not shown.final and not shown.json:
        sinks.append(answer_sink(streams, shown.markdown))
    try:
        render(events, opened.responder.cancel, sinks)
    finally:
        reply = gatherer.reply
        if reply:
            keep(reply)
            show_rest(streams, opened, reply, reply.final_answer, shown)
            keep_read(reply)
    if reply and not shown.quiet and (notice := truncation_notice(reply)):
        streams.notice(notice)
    if shown.final and reply and reply.final_answer is None:
        raise NoAnswer("the reply states no final answer", "see all of it without --final, or ask for one")


def decide(
    streams: Streams,
    opened: LoadedModel,
    events: Generator[Event, None, None],
    poll: MajorityVote,
    shown: Shown,
    keep: Callable[[Reply], None],
    keep_read: Callable[[MajorityVote], None],
) -> None:
    """Play a vote out, and show and keep the chain that won; where it is interrupted, what leads by then."""
    from cerebrum_cli.application.inference.voting import votes_object
    from cerebrum_cli.terminal.progress import VoteLine
    from cerebrum_cli.terminal.sinks import render, show_answer
    from cerebrum_cli.terminal.tables import tally_text

    try:
        render(events, opened.responder.cancel, talk_sinks(streams, shown, VoteLine(streams, opened.model.name)))
    finally:
        reply = poll.reply
        if reply:
            keep(reply)
            if not shown.final and not shown.json:
                show_answer(streams, reply.text, shown.markdown)
            show_rest(streams, opened, reply, poll.final_answer, shown, votes_object(poll))
            if shown.stats or (streams.err_is_terminal and not shown.quiet):
                streams.info(tally_text(poll.tally_event))
            keep_read(poll)
    if poll.winner is None:
        raise NoAnswer(f"none of {poll.ballot.total} chains states a final answer", "--json shows all of them")


def talk_sinks(streams: Streams, shown: Shown, line: StatusLine) -> list[Sink]:
    """Return what is shown on standard error while a person waits: first the line that is gone before others write."""
    from cerebrum_cli.terminal.sinks import NoticeSink

    if shown.quiet:
        return []
    return [NoticeSink(streams)] if shown.verbose else [line, NoticeSink(streams)]


def show_rest(
    streams: Streams,
    opened: LoadedModel,
    reply: Reply,
    final_answer: str | None,
    shown: Shown,
    votes: Mapping[str, Any] | None = None,
) -> None:
    """Print what of a reply is not streamed: the object, the final answer, what it cost."""
    from cerebrum_cli.application.inference.reply import reply_object
    from cerebrum_cli.terminal.tables import stats_line

    if shown.json:
        streams.answer_object(reply_object(reply, opened.model.name, opened.file.path, opened.format_name, votes))
    elif shown.final and final_answer is not None:
        streams.answer(final_answer + "\n")
    if shown.stats:
        streams.info(stats_line(reply.finish, opened.model.name, opened.format_name))
