"""`cerebrum runs`: show and compare the results of `cerebrum eval`.

Examples:
  cerebrum runs list
  cerebrum runs compare exam-a-Q4_0 exam-a-Q8_0
  cerebrum runs show exam-a-Q8_0 --plot votes.png
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cerebrum_cli.cli.command import BaseCommand, argument
from cerebrum_cli.cli.commands import loaded, optional_packages
from cerebrum_cli.cli.options import json_option, require_agreement, yes_option
from cerebrum_cli.core.declaration import PATH, flag, option, option_group, switch
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import format_utc, strip_controls
from cerebrum_cli.eval.completions import run_names
from cerebrum_cli.eval.report_tables import print_comparison, print_report, print_runs
from cerebrum_cli.terminal.tables import print_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.json_types import JsonDict
    from cerebrum_cli.eval.questions import Sample
    from cerebrum_cli.eval.stored_runs import Run
    from cerebrum_cli.terminal.streams import Streams

RUN_HELP = "A name from `cerebrum runs list`, or a path"


@option_group
class ListRuns(BaseCommand):
    """List stored runs.

    The latest is last.
    """

    json: bool = json_option("array")

    def run(self, app: App) -> None:
        from cerebrum_cli.eval.report import group_by_question, mean_accuracy
        from cerebrum_cli.eval.stored_runs import RunStore

        rows = []
        outdated = []
        for run in RunStore.of(app):
            try:
                samples = [sample for sample in run.samples() if not sample.is_skipped]
            except UsageError as error:  # the others can be listed
                app.streams.note(NoticeEvent(error.message, f"{error.hint}, or delete it: cerebrum runs rm {run.name}"))
                continue
            questions = list(group_by_question(samples).values())
            accuracy = mean_accuracy(questions) if questions else None
            rows.append(
                {
                    "name": run.name,
                    "task": run.task,
                    "model": run.model,
                    "n": len(questions),
                    "samples": run.samples_per_question,
                    "accuracy": accuracy and accuracy.value,
                    "interval": accuracy and list(accuracy.interval),
                    "complete": run.saved.is_complete,
                    "updated": format_utc(run.saved.changed_at),
                }
            )
            outdated += [run.name] if run.outdated else []
        print_rows(app.streams, rows, self.json, print_runs, "no stored runs; cerebrum eval creates them")
        if outdated:
            app.streams.note(NoticeEvent(f"scored by other rules: {', '.join(outdated)}", "run cerebrum runs show RUN"))


@option_group
class ShowRun(BaseCommand):
    """Show a run's results.

    These are accuracy, majority votes and unanswered samples, with intervals.
    """

    name: str = argument("RUN", RUN_HELP, run_names)
    plot: Path | None = option("Plot accuracy against votes and tokens", "Output", PATH, metavar="FILE")
    rescore: bool = switch("Extract and score the answers again", "Output")
    save: bool = switch("With --rescore: store the new scores in the run", "Output")
    run_code: bool = switch("With --rescore: run the programs again", "Output")
    json: bool = json_option()

    def run(self, app: App) -> None:
        from cerebrum_cli.eval.rescoring import rescored, save_scores
        from cerebrum_cli.eval.scorers import rules_of
        from cerebrum_cli.eval.stored_runs import RunStore

        for needless in ("save", "run_code"):
            if getattr(self, needless) and not self.rescore:
                raise UsageError(f"{flag(needless)} requires --rescore", "add --rescore")
        run = RunStore.of(app).find(self.name)
        samples = run.samples()
        if self.rescore:
            samples, changed = (save_scores if self.save else rescored)(run, self.run_code)
            run = replace(run, scored_by=rules_of(run.match))
            app.streams.note(f"{changed} of {len(samples)} scores changed{'; saved' if self.save else ''}")
        elif run.outdated:
            app.streams.note(NoticeEvent(run.outdated, run.how_to_rescore(self.name)))
        print_run(app, run, samples, self.json, self.plot)


def print_run(app: App, run: Run, samples: Sequence[Sample], json: bool, plot: Path | None = None) -> None:
    """Print the report of a run: a table, or a JSON object. Raises UsageError for a run without a sample."""
    from cerebrum_cli.eval.report import report_object
    from cerebrum_cli.eval.stored_runs import report_of

    streams = app.streams
    skipped = sum(sample.is_skipped for sample in samples)
    if skipped == len(samples):
        reason = samples[0].text if samples else "none has finished"
        raise UsageError(f"no sample of {run.name} counts: {reason}", "run it again with other settings")
    notes = run.notes
    report = report_of(run, samples)
    details = details_of(samples)
    if plot:  # first: a report is not followed by an error
        from cerebrum_cli.eval.plot import plot_report, write_picture

        if details:
            write_picture(plot, details.draw)
        else:
            plot_report(report, plot)
        streams.note(f"wrote {plot}")
    if json:
        more = {
            "skipped": skipped,
            "complete": run.saved.is_complete,
            "bad_rows": notes.get("bad_rows", 0),
            "sampling": run.sampling,
            "scoring": run.scored_by,
            "quantization": notes.get("quantization"),
            "all_questions": notes.get("all questions"),
            "date": notes.get("date"),
            "fingerprint": run.fingerprint,
            "conditions": run.saved.conditions,
        }
        if details:
            more |= details.object
        streams.answer({**report_object(report), **more})
        return
    print_report(streams, report, run, skipped)
    if details:
        details.print(streams)
    if not streams.is_quiet:
        for remark in run_remarks(run):
            streams.note(f"- {remark}")
        streams.draw(f"run {run.name}: {run.path}\n")


class RunDetails(Protocol):
    """What another package adds to the report of a run."""

    @property
    def object(self) -> JsonDict:
        """Further keys of its JSON object."""

    def print(self, streams: Streams) -> None:
        """Print further tables."""

    def draw(self) -> Figure:
        """Draw its picture."""

    def compare(self, other: Any, names: Sequence[str]) -> str:
        """A line on two runs of the same questions; it may be empty."""


def details_of(samples: Sequence[Sample]) -> RunDetails | None:
    """What another package says of a run."""
    for extension in optional_packages():
        if extension.run_details:
            details: RunDetails | None = loaded(extension.run_details)(samples)
            if details:
                return details
    return None


def run_remarks(run: Run) -> Iterator[str]:
    from cerebrum_cli.eval.scorers import comparison_of

    yield from run.notes.get("remarks", ())
    for record in run.saved.conditions:
        yield ", ".join(f"{key} {value}" for key, value in record.items())
    if run.match == "math":
        yield comparison_of(run.scored_by)


@option_group
class CompareRuns(BaseCommand):
    """Compare two runs of the same questions.

    They may differ in model, prompt or settings; says whether the difference is statistically significant.
    """

    before: str = argument("RUN_A", RUN_HELP, run_names)
    after: str = argument("RUN_B", "The run to compare it with", run_names)
    json: bool = json_option()

    def run(self, app: App) -> None:
        from cerebrum_cli.eval.comparison import conclusion
        from cerebrum_cli.eval.rescoring import compare_runs, differences, list_differences, version_differences
        from cerebrum_cli.eval.stored_runs import RunStore

        store = RunStore.of(app)
        runs = store.find(self.before), store.find(self.after)
        require_same_rules(runs, (self.before, self.after))
        comparison, notes = compare_runs(*runs)
        differing = differences(*runs)
        if versions := list_differences(version_differences(*runs)):
            notes.insert(0, f"the runs were made with different versions: {versions}")
        for note in notes:
            app.streams.note(NoticeEvent(note))
        if self.json:
            app.streams.answer({**asdict(comparison), "differences": differing})
            return
        print_comparison(app.streams, comparison, *runs, list_differences(differing))
        text = strip_controls(conclusion(comparison, *(run.name for run in runs)))
        app.streams.answer(f"\n{app.streams.wrapped(text)}\n")
        first, second = (details_of(run.samples()) for run in runs)
        line = ""
        if first and type(first) is type(second):
            line = strip_controls(first.compare(second, [run.name for run in runs]))
        if line:
            app.streams.answer(f"\n{app.streams.wrapped(line)}\n")


def require_same_rules(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Raise UsageError if runs were scored by different rules."""
    if len({run.scored_by for run in runs}) == 1:
        return
    for run, name in zip(runs, names, strict=True):
        if run.outdated:
            raise UsageError(run.outdated, run.how_to_rescore(name))


@option_group
class RmRun(BaseCommand):
    """Delete a stored run."""

    name: str = argument("RUN", RUN_HELP, run_names)
    yes: bool = yes_option()

    def run(self, app: App) -> None:
        from cerebrum_cli.eval.stored_runs import RunStore

        stored = RunStore.of(app).find(self.name)
        require_agreement(app, f"Delete the run {stored.name}?", stored.name, self.yes)
        stored.saved.delete()
        app.streams.note(f"deleted {stored.name}")


GROUP = {"list": ListRuns, "show": ShowRun, "compare": CompareRuns, "rm": RmRun}
