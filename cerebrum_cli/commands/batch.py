"""`cerebrum batch`: answer many questions."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option
from cerebrum_cli.core.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cerebrum_cli.application.inference.batch import BatchOptions
    from cerebrum_cli.application.inference.loading import Parallel
    from cerebrum_cli.batches.result import Result
    from cerebrum_cli.batches.rows import Row
    from cerebrum_cli.runtime import Runtime
    from cerebrum_cli.terminal.sinks import Sink
    from cerebrum_cli.terminal.streams import Streams

SOME_FAILED = 6
MOST_AT_ONCE = 256  # sequences llama.cpp holds
AUTO = 64  # of which more than this were nowhere faster


def batch(
    context: typer.Context,
    input: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Questions: .txt, .jsonl, .csv or .tsv; `-` is standard input.")
    ],
    output: Annotated[
        Path,
        option(
            "-o", "--output", help="Where the answers go, a JSON object a line; `-` streams them.", metavar="OUTPUT"
        ),
    ],
    model: options.Model = None,
    system: options.System = None,
    column: Annotated[
        str | None, option("--column", help="Column of a table with the prompts [default: prompt].", metavar="NAME")
    ] = None,
    template: Annotated[
        str | None, option("--template", help="Make the prompt of a row's fields: 'Sum up: {text}'.", metavar="TEXT")
    ] = None,
    shape: Annotated[
        str | None, option("--shape", help="What INPUT is [default: as its name says].", metavar="txt|jsonl|csv|tsv")
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
    schema: options.Schema = None,
    grammar: options.Grammar = None,
    votes: options.Votes = None,
    no_early_stop: options.NoEarlyStop = False,
    parallel: Annotated[
        str | None,
        option("--parallel", help="How many are answered at once [default: auto, the fastest].", metavar="N|auto"),
    ] = None,
    restart: Annotated[bool, option("--restart", help="Begin anew, and replace what OUTPUT holds in the end.")] = False,
    ignore_eos: Annotated[bool, option("--ignore-eos", help="Go on to --max-tokens: for measuring speed.")] = False,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    yes: options.Yes = False,
    no_profile: options.NoProfile = False,
) -> None:
    """Answer many questions, many at a time.

    Each answer is on disk as soon as it is there, in OUTPUT.partial; OUTPUT appears whole, in the order of INPUT. The
    same command goes on where one was that did not come to its end. What made an answer stands in OUTPUT.meta.json.
    """
    given = options.given(locals())
    from cerebrum_cli.application.inference.batch import BatchOptions, answer_rows, record_of, refuse_rows
    from cerebrum_cli.application.inference.loading import open_model
    from cerebrum_cli.application.inference.question import template_options
    from cerebrum_cli.batches.readers import read_rows, shape_of
    from cerebrum_cli.terminal.sinks import render

    runtime = options.runtime_of(context, verbose)
    streams_out = output == Path("-")
    require_place(output, input)
    data = read(runtime, input)
    rows = read_rows(data, shape_of(input, shape, data), column, template)
    at_once = how_many(parallel)
    wanted = options.wanted_votes(votes, no_early_stop)
    found = options.find_model(runtime, given, yes, quiet, offline)
    settings = options.settings(runtime, given, found, wanted is not None)
    constraint = options.read_grammar(runtime, schema, grammar, quiet)
    arguments = template_options(template_arg or ())
    manner = BatchOptions(settings, constraint, wanted, not no_early_stop, ignore_eos)
    source = {"input": sha256(data).hexdigest(), "column": column, "template": template}
    answering = options.answering(runtime, found, settings, no_profile)
    made_by = {
        **source,
        "template arguments": arguments or None,
        **record_of(manner, found, answering.model, runtime.library),
    }
    result = result_of(runtime.streams, output, made_by, rows, restart)
    try:
        left = askable(rows, result)
        if left:
            tuning = answering.tuning("batch")
            opened = open_model(
                runtime.open_backend,
                found,
                settings,
                template_options=arguments,
                parallel=fitted(at_once or tuning.slots, left, manner),
                file=answering.model,
                tuning=tuning,
            )
            try:
                events = answer_rows(opened.responder, rows, manner, result, streams_out)
                sinks = shown(runtime.streams, opened.model.name, streams_out, quiet, verbose)
                render(events, opened.responder.cancel, sinks)
            finally:
                opened.engine.close()
        else:
            refuse_rows(rows, result)
            if not quiet:
                tell_done(runtime.streams, result)
        result.complete()
    except Interrupted as error:
        do = "" if streams_out else resumption(result, len(rows), restart)
        raise Interrupted(error.exit_code - 128, do) from error
    finally:
        result.close()
    if result.failed:
        raise typer.Exit(SOME_FAILED)


def require_place(output: Path, source: Path) -> None:
    """Raise UsageError where no result can be."""
    from cerebrum_cli.batches.files import places_of

    if output != Path("-"):
        places_of(output, None if source == Path("-") else source)


def read(runtime: Runtime, source: Path) -> bytes:
    """Return the bytes of the input."""
    from cerebrum_cli.batches.readers import read_input

    if source != Path("-"):
        return read_input(source)
    if runtime.streams.piped is None:
        raise UsageError("INPUT is `-`, and nothing is piped in", "pipe the questions in, or name a file")
    return runtime.streams.piped.read()


def how_many(text: str | None) -> int | None:
    """Return how many are to be answered at once; None leaves it to the machine."""
    if text in (None, "auto"):
        return None
    if text.isdecimal() and 1 <= int(text) <= MOST_AT_ONCE:
        return int(text)
    raise UsageError(f"--parallel is {text!r}", f"it must be a number from 1 to {MOST_AT_ONCE}, or auto")


def askable(rows: Sequence[Row], result: Result) -> int:
    """Return how many rows are still to be asked."""
    return sum(row.conversation is not None for at, row in enumerate(rows) if at not in result.finished)


def fitted(at_once: int | None, left: int, manner: BatchOptions) -> Parallel:
    """Return how many sequences run at once: no more than are left."""
    from cerebrum_cli.application.inference.loading import Parallel

    chains = left * (manner.votes.maximum if manner.votes else 1)
    return Parallel(min(at_once or AUTO, chains), adaptive=at_once is None, batch_invariant=True)


def result_of(streams: Streams, output: Path, made_by: Mapping[str, Any], rows: Sequence[Row], restart: bool) -> Result:
    """Return where the answers go."""
    from cerebrum_cli.batches.journal import open_journal
    from cerebrum_cli.batches.result import StreamedResult

    if output == Path("-"):
        return StreamedResult(rows, streams.answer)
    return open_journal(output, made_by, rows, restart)


def shown(streams: Streams, model: str, in_order: bool, quiet: bool, verbose: bool) -> list[Sink]:
    """Return what is shown on standard error; no bar where others write to the same terminal."""
    from cerebrum_cli.terminal.bars import BatchProgress
    from cerebrum_cli.terminal.progress import LoadLine
    from cerebrum_cli.terminal.sinks import NoticeSink

    if quiet:
        return []
    others_write = verbose or (in_order and streams.out_is_terminal)
    sinks: list[Sink] = [NoticeSink(streams), BatchProgress(streams, streams.can_redraw and not others_write)]
    return sinks if verbose else [LoadLine(streams, model), *sinks]


def tell_done(streams: Streams, result: Result) -> None:
    """Say that there was nothing to do any more, and how it ended."""
    from cerebrum_cli.core.events import RowEvent
    from cerebrum_cli.terminal.tables import batch_text

    streams.info(batch_text(RowEvent(result.done, result.done, result.failed), 0, 0.0))


def resumption(result: Result, total: int, restart: bool) -> str:
    """Return what to do after an interruption."""
    same = "the same command, without --restart," if restart else "the same command"
    return f"{result.done} of {total} are done; {same} goes on with the others"
