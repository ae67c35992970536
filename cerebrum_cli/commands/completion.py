"""What Tab completes in a shell: installed and known models, prompt formats, sessions, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.settings import environment

if TYPE_CHECKING:
    from cerebrum_cli.runtime.composition import Runtime

COMPLETION = "_CEREBRUM_COMPLETE"  # set by a shell that asks for completions
WORDS = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")  # the command line so far: bash's, other shells'


def completed_command() -> str | None:
    """Command of the line to complete; None if it is not named yet."""
    line = next((line.split() for line in map(environment, WORDS) if line), [])
    return line[1] if len(line) > 2 else None


def installed_models(runtime: Runtime) -> Iterable[str]:
    return (model.reference for model in runtime.library.models())


def known_models(runtime: Runtime) -> Iterable[str]:
    """Models of the catalog."""
    return (spec.name for spec in runtime.library.specs)


def sessions(runtime: Runtime) -> Iterable[str]:
    return runtime.history.store.names()


def formats(_: Runtime) -> Iterable[str]:
    from cerebrum_cli.application.inference.format_choice import FORMAT_NAMES

    return FORMAT_NAMES


COMPLETIONS = {"model": installed_models, "format": formats, "session": sessions}  # values of an option, by its name


def completing(values: Callable[[Runtime], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completion of a Typer parameter from a list of values; nothing if they cannot be read."""

    def complete(incomplete: str) -> list[str]:
        from cerebrum_cli.runtime.composition import real_runtime

        try:
            return [value for value in values(real_runtime()) if value.startswith(incomplete)]
        except (CerebrumError, OSError):
            return []

    return complete
