"""`cerebrum prompts`: manage saved prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.completion import completing, saved_prompts
from cerebrum_cli.cli.context import require_agreement, runtime_of
from cerebrum_cli.cli.options import DeleteOptions, QuietOptions
from cerebrum_cli.cli.signature import SectionedCommand, composed, parameter
from cerebrum_cli.core.saved_prompt import find_prompt

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
NAME_HELP = "A name from `cerebrum prompts list`."
Name = Annotated[str, typer.Argument(metavar="NAME", help=NAME_HELP, autocompletion=completing(saved_prompts))]
NewName = Annotated[
    str, typer.Argument(metavar="NAME", help="A new name, or a saved one.", autocompletion=completing(saved_prompts))
]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help=NAME_HELP, autocompletion=completing(saved_prompts))
]
Json = Annotated[bool, parameter("json", "Print a JSON object", "Output")]
JsonArray = Annotated[bool, parameter("json", "Print a JSON array", "Output")]


@app.command(name="list", cls=SectionedCommand, short_help="List saved prompts.")
@composed
def list_prompts(context: typer.Context, options: QuietOptions, json: JsonArray = False) -> None:
    """List saved prompts, in the order of config.toml."""
    from cerebrum_cli.cli import prompts as manage

    manage.list_prompts(runtime_of(context), json, options)


@app.command(cls=SectionedCommand)
@composed
def show(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show a saved prompt."""
    from cerebrum_cli.cli import prompts as manage

    manage.show(runtime_of(context), name, json)


@app.command(cls=SectionedCommand, short_help="Edit a saved prompt, or create it.")
@composed
def edit(context: typer.Context, name: NewName, options: QuietOptions) -> None:
    """Open config.toml in $VISUAL or $EDITOR at a saved prompt. A new prompt starts with a commented example."""
    from cerebrum_cli.cli import prompts as manage

    manage.edit(runtime_of(context), name, options)


@app.command(cls=SectionedCommand)
@composed
def rm(context: typer.Context, names: Names, options: DeleteOptions) -> None:
    """Delete saved prompts."""
    from cerebrum_cli.cli import prompts as manage

    runtime = runtime_of(context)
    chosen = list(dict.fromkeys(find_prompt(runtime.config.prompts, name).name for name in names))
    listed = ", ".join(chosen)
    require_agreement(runtime, f"Delete the saved prompt{'s' * (len(chosen) > 1)} {listed}?", listed, options.yes)
    manage.delete(runtime, chosen)
    if not options.quiet:
        runtime.streams.info(f"deleted {listed}")
