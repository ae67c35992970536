"""`cerebrum runs`: the results of `cerebrum eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.completion import completing, run_names
from cerebrum_cli.cli.context import require_agreement, runtime_of
from cerebrum_cli.cli.options import DeleteOptions, QuietOptions, RunOptions
from cerebrum_cli.cli.signature import SectionedCommand, composed, parameter

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
RUN_HELP = "A name from `cerebrum runs list`, or a path."
Name = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=completing(run_names))]
First = Annotated[str, typer.Argument(metavar="RUN_A", help=RUN_HELP, autocompletion=completing(run_names))]
Second = Annotated[
    str, typer.Argument(metavar="RUN_B", help="The run to compare it with.", autocompletion=completing(run_names))
]
Json = Annotated[bool, parameter("json", "Print a JSON object", "Output")]
JsonArray = Annotated[bool, parameter("json", "Print a JSON array", "Output")]


@app.command(name="list", cls=SectionedCommand, short_help="List stored runs.")
@composed
def list_runs(context: typer.Context, options: QuietOptions, json: JsonArray = False) -> None:
    """List stored runs, latest last."""
    from cerebrum_cli.cli import runs

    runs.list_runs(runtime_of(context), json, options)


@app.command(cls=SectionedCommand, short_help="Show a run's results.")
@composed
def show(context: typer.Context, run: Name, options: RunOptions) -> None:
    """Show accuracy, majority votes and unanswered samples, with intervals."""
    from cerebrum_cli.cli import runs

    runs.show(runtime_of(context), run, options)


@app.command(cls=SectionedCommand, short_help="Compare two runs of the same questions.")
@composed
def compare(
    context: typer.Context,
    before: First,
    after: Second,
    kl: Annotated[bool, parameter("kl", "Also measure KL divergence (quantizations of one model)", "Output")] = False,
    json: Json = False,
) -> None:
    """Compare two models on the same questions, and report whether the difference is statistically significant."""
    from cerebrum_cli.cli import runs

    runs.compare(runtime_of(context), before, after, kl, json)


@app.command(cls=SectionedCommand, short_help="Delete a stored run.")
@composed
def rm(context: typer.Context, run: Name, options: DeleteOptions) -> None:
    """Delete a run and its files."""
    runtime = runtime_of(context)
    found = runtime.runs.find(run)
    require_agreement(runtime, f"Delete the run {found.name}?", found.name, options.yes)
    runtime.runs.delete(found)
    if not options.quiet:
        runtime.streams.info(f"deleted {found.name}")
