"""What a model may be called here: a name no other one has, here or in the catalogue."""

from __future__ import annotations

from collections.abc import Callable

from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import is_missing
from cerebrum_cli.catalogue.reference import MODEL_NAME
from cerebrum_cli.catalogue.registry import ModelFile
from cerebrum_cli.catalogue.spec import ModelSpec
from cerebrum_cli.core.errors import UsageError


def require_free_name(
    library: Library, name: str, owns_spec: Callable[[ModelSpec], bool], owns_entry: Callable[[ModelFile], bool]
) -> None:
    """Raise UsageError unless a model may be called this: the row, and the entry, of that name are its own, if any."""
    if not MODEL_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name", "names are made of letters, digits, `.`, `_` and `-`: use --name")
    entry, spec = library.registry.find(name), library.spec_named(name)
    taken = entry and not owns_entry(entry) and not is_missing(entry.path)
    if taken or (spec and not owns_spec(spec)):
        raise UsageError(f"the name {name} is taken by another model", "choose one with --name")
