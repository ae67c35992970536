"""Values that a shell completes: models, formats, sessions, saved prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from cerebrum_cli.core.errors import CerebrumError

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.declaration import Option

Candidates = Iterable[str]
Values: TypeAlias = Callable[["App"], Candidates]  # read when Tab is pressed


def installed_models(app: App) -> Candidates:
    return (model.reference for model in app.library.models())


def known_models(app: App) -> Candidates:
    return (spec.name for spec in app.library.catalogue.specs)


def sessions(app: App) -> Candidates:
    return app.read_history().store.names()


def saved_prompts(app: App) -> Candidates:
    return app.prompts.names()


def formats(_: App) -> Candidates:
    from cerebrum_cli.formats.choice import FORMAT_NAMES

    return FORMAT_NAMES


COMPLETIONS: Mapping[str, Values] = {  # values of an option, by its name
    "model": installed_models,
    "format": formats,
    "session": sessions,
    "saved_prompt": saved_prompts,
}


def completion_of(declared: Option) -> Values | None:
    """Where the values of an option come from; None if any text may follow, or none."""
    if declared.choices:
        return lambda _: declared.choices
    return declared.values or COMPLETIONS.get(declared.name)


def complete_option(declared: Option, _: Any, __: list[str], incomplete: str) -> list[str]:
    return complete_values(completion_of(declared), _, __, incomplete)


def complete_values(values: Values | None, _: Any, __: list[str], incomplete: str) -> list[str]:
    """The values that continue an incomplete one; none if they cannot be found."""
    from cerebrum_cli.cli.app import App

    if values is None:
        return []
    try:
        return [value for value in values(App.of_user()) if value.startswith(incomplete)]
    except (CerebrumError, OSError):
        return []
