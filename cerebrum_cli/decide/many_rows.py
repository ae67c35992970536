"""Decide the rows of a file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from cerebrum_cli.batch.readers import InputOptions
from cerebrum_cli.cli.row_commands import Work, answer_missing, resumable
from cerebrum_cli.core.errors import SOME_FAILED, UsageError
from cerebrum_cli.core.json_types import JsonDict, to_json
from cerebrum_cli.core.row_fields import parse_template
from cerebrum_cli.core.settings import SourcedLayer
from cerebrum_cli.core.text import format_count, text_digest
from cerebrum_cli.decide.by_likelihood import UNUSED
from cerebrum_cli.decide.decided_rows import RowQuestions, decide_rows
from cerebrum_cli.decide.trusted import Trust, find_trust, second_trust
from cerebrum_cli.results.results import open_results, open_stream, output_paths
from cerebrum_cli.results.rows import RowFlag
from cerebrum_cli.trust.stored import key_of

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.rows import Results

METHOD = 3  # of the prompts and the averages; raise it when a decision may change
STANDARD = Path("-")  # standard input or output


def decide_file(
    app: App,
    question: str,
    source: Path,
    output: Path | None,
    overrides: Layer,
    options: DecideOptions,
) -> None:
    """Decide the rows of a file that have no decision yet. Raises Interrupted with how to resume, and Exit."""
    if output and output != STANDARD:
        output_paths(output, None if source == STANDARD else source)
    template = parse_template(question) if "{" in question or "}" in question else None
    reading = InputOptions(
        template,
        options.delimiter,
        include_input=True,
        template_use='name a column in QUESTION: "... {NAME}"',
        has_settings=False,
    )
    with reading.open(source, app.streams.piped, output or STANDARD) as rows:
        is_table = output is not None and rows.kind_for(output).table is not None
        asked = RowQuestions(
            rows,
            "" if template else question,
            template.fields if template else (),
            options.find_choices(),
            options.listing,
            votes=options.votes,
            writes_all=options.probabilities,
            copies_input=is_table and rows.form.header is not None,
            is_table=is_table,
        )
        model = options.find_source(app, overrides)
        trust = find_trust(app, lambda: key_of(fingerprint_of(asked, model), asked.given.names), options)
        if options.label is not None:
            measure_rows(app, replace(asked, trust=trust), source.stem, model, output, options)
            return
        if options.calibrate is not None:
            raise UsageError("--calibrate requires --label", "name the column with the right answers: --label COLUMN")
        if options.plot:
            raise UsageError("--plot requires --label", "name the column with the right answers: --label COLUMN")
        if output is None:
            raise UsageError("missing option '-o' / '--output'", "see cerebrum decide --help")
        passes = [Pass(asked, model, options)]
        if trust:
            passes = trusted_passes(app, trust, passes[0], overrides)
        write_decisions(app, passes, output)


def measure_rows(
    app: App, asked: RowQuestions, task: str, model: ModelSource, output: Path | None, options: DecideOptions
) -> None:
    """Compare decisions with labels, as a run of the package `eval`. Raises UsageError without it."""
    try:
        from cerebrum_cli.decide.labelled import measure
    except ModuleNotFoundError as error:
        raise UsageError("--label needs the package `eval`", "install cerebrum-cli again") from error
    measure(app, asked, task, model, fingerprint_of(asked, model), output, options)


class Pass(NamedTuple):
    """What one model is asked of the rows that are left."""

    asked: RowQuestions
    model: ModelSource
    options: DecideOptions

    def answer(self, app: App, results: Results) -> None:
        """Decide the rows that the results lack."""
        work = Work(self.asked.rows.missing_rows, 1, partial(decide_rows, self.asked))
        answer_missing(app, self.model, self.options, results, work)


def trusted_passes(app: App, trust: Trust, first: Pass, overrides: Layer) -> list[Pass]:
    """The passes whose decisions are kept by a calibration: of the model, and of the one that options name besides.

    Raises UsageError.
    """
    asked, model, options = first
    second = options.for_second_model()
    if second is None:
        return [Pass(replace(asked, trust=trust), model, options)]
    chosen = SourcedLayer(overrides, {"model": options.then})
    source = second.find_source(app, chosen)
    fingerprint = fingerprint_of(asked, source)
    then = second_trust(app, key_of(fingerprint, asked.given.names), source.model.label, options)
    named = replace(trust, model=model.model.label)
    return [
        Pass(replace(asked, trust=named), model, options),
        Pass(replace(asked, trust=then), source, second),
    ]


def write_decisions(app: App, passes: Sequence[Pass], output: Path) -> None:
    """Decide the rows that the output lacks, and those that a pass leaves in the next. Raises Exit if some failed."""
    first, *others = passes
    seconds = []
    if others and output == STANDARD:
        raise UsageError("a second model requires an output file", "name one: -o OUTPUT")
    results = open_decisions(app, passes, output)
    results.has_more = not first.asked.rows.is_whole
    with resumable(results, "rows", first.options.restart):
        for number, each in enumerate(passes if not results.is_complete else passes[:1]):
            start = time.monotonic()
            if number:
                results.finished.forget(RowFlag.UNDECIDED)
            each.answer(app, results)
            seconds.append(time.monotonic() - start)
        decided = Counter(row["model"] for row in results.objects() if row.get("decided")) if others else Counter()
    trust, counts = first.asked.trust, results.counts
    if trust and trust.wanted:
        for line in trust.wanted.outcome(results.size - counts.undecided - counts.failed, results.size, trust.model):
            app.streams.note(line)
    for each, duration in zip(passes if others else (), seconds, strict=False):
        label = each.model.model.label
        app.streams.note(f"{label}: {format_count(decided[label], 'row')} decided, {duration:,.1f} s")
    if results.counts.failed:
        raise typer.Exit(SOME_FAILED)


def open_decisions(app: App, passes: Sequence[Pass], output: Path) -> Results:
    """The result, with the rows that earlier runs decided. Raises UsageError, BatchError."""
    asked, model, options = passes[0]
    kind, rows = asked.kind_for(output), asked.rows.known_rows()
    if output != STANDARD:
        fingerprint = fingerprint_of(asked, model)
        if asked.trust:
            fingerprint |= asked.trust.fingerprint
        for other in passes[1:]:
            then = fingerprint_of(other.asked, other.model), other.asked.trust and other.asked.trust.fingerprint
            fingerprint |= {"second model": other.model.model.label, "its settings": text_digest(to_json(then))}
        notes = model.model.adapter_params
        return open_results(output, fingerprint, kind, rows, options.restart, options.retry_failed, notes)
    if options.retry_failed:
        raise UsageError("--retry-failed requires a file with earlier decisions", "give it as -o OUTPUT")
    return open_stream(app.streams.answer, kind, rows)


def fingerprint_of(asked: RowQuestions, model: ModelSource) -> JsonDict:
    """Everything that decisions depend on besides the rows, by readable names."""
    choices = asked.choices and [list(choice) for choice in asked.choices.items]
    unused = () if asked.votes else UNUSED
    return {
        **asked.rows.fingerprint,
        **{key: value for key, value in model.fingerprint(None).items() if key not in unused},
        "include input": asked.copies_input,
        "question": asked.question,
        "choices": choices,
        "columns": list(asked.keys),
        "score": bool(asked.choices and asked.choices.is_score) or None,
        "one order": asked.listing.in_one_order,
        "letters": asked.listing.by_letter or None,
        "votes": asked.votes,
        "method of decisions": METHOD,
    }
