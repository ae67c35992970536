from typing import Annotated

import typer

from cerebrum_cli import open_model


def hello(
    question: str,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name of a model.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens to generate.")] = 500,
) -> None:
    """Greet, and answer a question."""
    typer.echo("Hello! ", nl=False)
    with open_model(model, max_tokens=max_tokens) as opened:
        for piece in opened.reply(question):
            typer.echo(piece, nl=False)
    typer.echo()
