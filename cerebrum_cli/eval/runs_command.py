"""`cerebrum runs`: show and compare the results of `cerebrum eval`.

Examples:
  cerebrum runs show exam-a-Q8_0.jsonl --plot votes.png
  cerebrum runs compare exam-a-Q4_0.jsonl exam-a-Q8_0.jsonl
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import BaseCommand, argument
from cerebrum_cli.cli.options import json_option
from cerebrum_cli.core.declaration import PATH, option, option_group, switch
from cerebrum_cli.core.differences import describe_differences
from cerebrum_cli.core.environment import set_environment_default
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import enumeration, format_count, format_names, strip_controls

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.json_types import JsonDict, JsonObject
    from cerebrum_cli.eval.answered import Answered
    from cerebrum_cli.eval.decisions import DecisionFigures
    from cerebrum_cli.eval.report import Report
    from cerebrum_cli.eval.runs import SavedRun
    from cerebrum_cli.terminal.streams import Streams

RUN_HELP = "File of a run"


@option_group
class ShowRun(BaseCommand):
    """Show a run's results.

    These are accuracy, majority votes and unanswered samples, with intervals.
    """

    run_file: str = argument("RUN", RUN_HELP)
    plot: Path | None = option("Plot accuracy against votes and tokens", "Output", PATH, metavar="FILE")
    wrong: bool = switch("List the questions that were answered wrongly, with answer and reference", "Output")
    run_code: bool = switch("Run the programs that the model wrote, in a sandbox", "Output")
    json: bool = json_option()

    def run(self, app: App) -> None:
        from cerebrum_cli.eval.runs import read_run
        from cerebrum_cli.eval.scores import require_run_code

        if self.plot:
            from cerebrum_cli.eval.plot import require_picture

            require_picture(self.plot)
        run = read_run(Path(self.run_file))
        require_run_code(run.match, self.run_code)
        if self.wrong and self.plot:
            raise UsageError.conflict("--wrong", "--plot")
        if self.wrong:
            print_wrong(app, run, self.json)
        else:
            print_run(app, run, self.json, self.plot)


def print_run(app: App, run: SavedRun, json: bool, plot: Path | None = None) -> None:
    """Print the report of a run: tables, or a JSON object. Raises UsageError for a run without an answer."""
    from cerebrum_cli.eval.decisions import DecisionFigures
    from cerebrum_cli.eval.report_tables import print_decisions, print_report

    streams, found = app.streams, report_of(app, run)
    failed = len(run.rows) - found.n
    if plot:  # first: a report is not followed by an error
        from cerebrum_cli.eval.plot import draw_decisions, draw_report, write_picture

        set_environment_default("MPLCONFIGDIR", str(app.cache_directory / "matplotlib"))
        title = f"{run.task}: {run.model}"
        figure = draw_decisions(found, title) if isinstance(found, DecisionFigures) else draw_report(found, title)
        write_picture(plot, figure)
        streams.note(f"wrote {plot}")
    if json:
        streams.answer(run_object(run, found.object, failed))
        return
    if isinstance(found, DecisionFigures):
        print_decisions(streams, found, run, failed)
    else:
        print_report(streams, found, run, failed)
    if not streams.is_quiet:
        for remark in run_remarks(run):
            streams.note(f"- {remark}")
        streams.draw(f"answers are in {run.path}\n")


def report_of(app: App, run: SavedRun) -> Report | DecisionFigures:
    """The report of a run. Raises UsageError for one without an answer."""
    from cerebrum_cli.eval.decisions import decision_figures
    from cerebrum_cli.eval.report import summarize
    from cerebrum_cli.eval.scores import SCORES

    rows = scored(app, run)
    if not rows:
        errors = [row.error.message for row in run.rows if row.error]
        reason = errors[0] if errors else "none has finished"
        raise UsageError(f"no question of {run.name} was answered: {reason}", "run it again with other settings")
    kind = SCORES[run.match]
    if kind.has_probabilities:
        return decision_figures(rows)
    return summarize(rows, run.samples, kind.has_votes, checks=run.check is not None)


def run_object(run: SavedRun, figures: JsonObject, failed: int) -> JsonDict:
    """The object that `--json` prints, with what is known of a run."""
    from cerebrum_cli.eval.runs import MATCH

    object = {
        "task": run.task,
        "model": run.model,
        **figures,
        "failed": failed,
        "complete": run.is_complete,
        "sampling": run.sampling or None,
        "match": run.record.notes.get(MATCH),
        "quantization": run.record.notes.get("quantization"),
        "all_questions": run.record.notes.get("all questions"),
        "date": run.record.notes.get("date"),
        "fingerprint": run.record.fingerprint,
        "conditions": run.conditions,
    }
    return {key: value for key, value in object.items() if value is not None}


def print_wrong(app: App, run: SavedRun, json: bool) -> None:
    """Print the questions whose answer is wrong, or that of their vote, with the right answer."""
    from cerebrum_cli.eval.report import wrong_answers
    from cerebrum_cli.eval.scores import SCORES
    from cerebrum_cli.terminal.tables import excerpt, print_rows, print_table

    rows: list[JsonDict] = [
        {"id": row.id, "answer": answer, "reference": row.reference, "question": row.prompt}
        for row, answer in wrong_answers(scored(app, run), SCORES[run.match].has_votes)
        if not (row.probabilities and row.answer is None)
    ]

    def as_table(streams: Streams, rows: Iterable[JsonObject]) -> None:
        cells = [[value and excerpt(str(value)) for value in row.values()] for row in rows]
        print_table(streams, ("id", "answer", "reference", "question"), cells, shorten="question")

    print_rows(app.streams, rows, json, as_table, "no question was answered wrongly")


def scored(app: App, run: SavedRun) -> list[Answered]:
    """The scored rows of a run, with progress. Raises UsageError if programs cannot run here."""
    from cerebrum_cli.eval.scores import score
    from cerebrum_cli.terminal.progress import FileProgress, interruptible

    with interruptible("nothing is lost: show the run to score it again"), FileProgress(app.streams) as progress:
        return score(run.rows, run.match, partial(progress.update, "scoring"))


def run_remarks(run: SavedRun) -> Iterator[str]:
    from cerebrum_cli.eval.math_verify import INSTALL, math_verify_version

    yield from run.remarks
    for record in run.conditions:
        yield ", ".join(f"{key} {value}" for key, value in record.items())
    if run.match == "math":
        version = math_verify_version()
        by = f"and by Math-Verify {version}" if version else f"only; Math-Verify is not installed: {INSTALL}"
        yield f"answers are compared by their normal form {by}"


@option_group
class CompareRuns(BaseCommand):
    """Compare two runs of the same questions.

    They may differ in model, prompt or settings; says whether the difference is statistically significant.
    """

    before: str = argument("RUN_A", RUN_HELP)
    after: str = argument("RUN_B", "The run to compare it with")
    run_code: bool = switch("Run the programs that the models wrote, in a sandbox", "Output")
    json: bool = json_option()

    def run(self, app: App) -> None:
        from cerebrum_cli.eval.comparison import compare, conclusion
        from cerebrum_cli.eval.decisions import decision_figures
        from cerebrum_cli.eval.report_tables import print_comparison
        from cerebrum_cli.eval.runs import read_run
        from cerebrum_cli.eval.scores import SCORES, require_run_code

        runs = read_run(Path(self.before)), read_run(Path(self.after))
        for run in runs:
            require_run_code(run.match, self.run_code)
        names = [run.name for run in runs]
        if names[0] == names[1]:
            names = [self.before, self.after]
        kinds = [SCORES[run.match] for run in runs]
        first, second = paired(app, runs, names)
        comparison = compare(first, second, all(kind.has_votes for kind in kinds))
        differing = runs[0].differences(runs[1])
        if self.json:
            app.streams.answer({**asdict(comparison), "differences": differing})
            return
        print_comparison(app.streams, comparison, runs, names, enumeration(describe_differences(differing, " and")))
        text = strip_controls(conclusion(comparison, *names))
        app.streams.answer(f"\n{app.streams.wrapped(text)}\n")
        if all(kind.has_probabilities for kind in kinds):
            of_first, of_second = (decision_figures([row for row in run.rows if row.has_reply]) for run in runs)
            line = strip_controls(of_first.compare(of_second, names))
            app.streams.answer(f"\n{app.streams.wrapped(line)}\n")


def paired(app: App, runs: Sequence[SavedRun], names: Sequence[str]) -> list[list[Answered]]:
    """The scored rows of both runs that ask the same, in one order. Raises UsageError without any."""
    first, second = ({row.source: row for row in scored(app, run)} for run in runs)
    common = [source for source in first if source in second]
    if not common:
        problem = f"{names[0]} and {names[1]} have no answered question in common"
        raise UsageError(problem, "evaluate the same task or the same file")
    for note in (*left_out(names, first, second), *left_out(names[::-1], second, first)):
        app.streams.note(NoticeEvent(note))
    return [[rows[source] for source in common] for rows in (first, second)]


def left_out(names: Sequence[str], rows: dict[int, Answered], others: dict[int, Answered]) -> Iterator[str]:
    """Yield a note that names the questions of a run without a result in another."""
    if unpaired := [str(row.id) for source, row in rows.items() if source not in others]:
        count = format_count(len(unpaired), "question")
        yield f"left out {count} of {names[0]} without a result in {names[1]}: {format_names(unpaired)}"


GROUP = {"show": ShowRun, "compare": CompareRuns}
