"""Names for installed models, unique among them and the catalog."""

from __future__ import annotations

from collections.abc import Callable

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import is_missing
from cerebrum_cli.models.reference import MODEL_NAME, looks_like_path
from cerebrum_cli.models.registry import ModelFile
from cerebrum_cli.models.spec import ModelSpec


def require_free_name(
    library: Library, name: str, owns_spec: Callable[[ModelSpec], bool], owns_entry: Callable[[ModelFile], bool]
) -> None:
    """Raise UsageError for an invalid name, or one of another catalog model or registry entry."""
    if not MODEL_NAME.fullmatch(name):
        raise UsageError(f"invalid name {name!r}", "use --name with letters, digits, `.`, `_` and `-`")
    if looks_like_path(name):
        raise UsageError(f"invalid name {name!r}: it would be read as a path", "use --name without .gguf")
    entry, spec = library.registry.find(name), library.spec_named(name)
    taken = entry and not owns_entry(entry) and not is_missing(entry.path)
    if taken or (spec and not owns_spec(spec)):
        raise UsageError(f"the name {name} belongs to another model", "choose another with --name")
