"""Read models.toml and validate it; later files override earlier ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cerebrum_cli.core.config import parse_toml, read_config_text
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import KEYS, MODES, OPTIONS, SAMPLING_KEYS, Layer, in_directory
from cerebrum_cli.library.catalogue import ModelSpec, PackageSource, Repository, Sizes
from cerebrum_cli.library.reference import MODEL_NAME, REPO_ID, is_safe_path

Check = Callable[[Any], Any]  # returns the typed value of what a file says, or raises _Invalid

RECIPES = Path(__file__).parent.parent / "recipes"


def load_catalogue(paths: Sequence[Path]) -> tuple[ModelSpec, ...]:
    """Load the models of these files in order of first mention; missing files are skipped.

    A later file adds rows and overrides single keys of earlier ones; a table such as `quantizations` counts as one key.
    Raises ConfigError with file, row and key.
    """
    specs = {}
    rows: dict[str, JsonDict] = {}
    for path in paths:
        try:
            tables = _table({"models": _models}, parse_toml(read_config_text(path), path))
            for name, row in tables.get("models", {}).items():
                rows[name] = rows.get(name, {}) | row
                specs[name] = _at(f"models.{name}", partial(_spec, path.parent, name), rows[name])
        except _Invalid as error:
            raise ConfigError(f"{path}: {'.'.join(error.keys)}: {error.problem}", "edit the file") from error
    return tuple(specs.values())


class _Invalid(ValueError):
    """An invalid value of a file: the problem, and the keys that lead to the value."""

    def __init__(self, problem: str, *keys: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.keys = keys


def _spec(directory: Path, name: str, row: JsonDict) -> ModelSpec:
    checks = _ROW | {"recipe": partial(_recipe, directory), "settings": partial(_settings, directory, KEYS)}
    checks |= {mode: partial(_settings, directory, SAMPLING_KEYS) for mode in MODES.values()}
    values = _table(checks, row, ("file",) if "repo_id" in row else ())
    return ModelSpec(name, **{"title": name, **values})


def _at(key: str, check: Check, value: object) -> Any:
    try:
        return check(value)
    except _Invalid as error:
        raise _Invalid(error.problem, key, *error.keys) from None


def _dict(value: object) -> JsonDict:
    if not isinstance(value, dict):
        raise _Invalid("must be a table")
    return value


def _table(checks: Mapping[str, Check], value: object, required: Collection[str] = ()) -> JsonDict:
    row = _dict(value)
    for key in (*row, *required):
        if key not in checks:
            raise _Invalid(f"unknown key; the keys are {', '.join(checks)}", key)
        if key not in row:
            raise _Invalid("missing", key)
    return {key: _at(key, checks[key], item) for key, item in row.items()}


def _list(check: Check) -> Check:
    def checked(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _Invalid("must be a list")
        return tuple(_at(str(number), check, item) for number, item in enumerate(value, 1))

    return checked


def _text_that(is_valid: Callable[[str], object], problem: str) -> Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or not is_valid(value):
            raise _Invalid(problem)
        return value

    return check


def _models(value: object) -> dict[str, JsonDict]:
    return {_at(name, _name, name): _at(name, _dict, row) for name, row in _dict(value).items()}


def _settings(directory: Path, keys: Sequence[str], value: object) -> Layer:
    def check(key: str, item: object) -> object:
        try:
            OPTIONS[key].validate(item, key)
        except UsageError as error:
            raise _Invalid(f"{error.message}; {error.hint}") from error
        return item

    return in_directory(_table({key: partial(check, key) for key in keys}, value), directory)


def _quantizations(value: object) -> Sizes:
    return tuple((name, _at(name, _positive_integer, size)) for name, size in _dict(value).items())


def _recipe(directory: Path, value: object) -> Path:
    name: str = _text(value)
    for path in (directory / name, RECIPES / name):
        if path.is_file():
            return path
    raise _Invalid(f"recipe {directory / name} does not exist")


def _positive_integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _Invalid("must be a positive integer")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Invalid("must be true or false")
    return value


_text = _text_that(str.strip, "must be non-empty text")
_name = _text_that(MODEL_NAME.fullmatch, "must be a name of letters, digits, `.`, `_` and `-`")
_REPOSITORY: dict[str, Check] = {
    "repo_id": _text_that(REPO_ID.fullmatch, "must be OWNER/NAME"),
    "file": _text_that(re.compile(r"(?i)[^/\\]+\.gguf").fullmatch, "must be the name of a .gguf file"),
    "quantizations": _quantizations,
    "revision": _text_that(is_safe_path, "must be a commit, branch or tag"),
}
_PACKAGE: dict[str, Check] = {
    **dict.fromkeys(("requirement", "member", "sha256"), _text),
    **dict.fromkeys(("size", "download_size"), _positive_integer),
}
_ROW: dict[str, Check] = {
    "title": _text,
    "aliases": _list(_name),
    **_REPOSITORY,
    **dict.fromkeys(("format", "assumed_format"), _text),
    **dict.fromkeys(("context_size", "kv_bytes_per_token"), _positive_integer),
    **dict.fromkeys(("active_percent", "thinking_tokens"), _positive_integer),
    "license": _text,
    "good_for": _text,
    "notes": _text,
    "tested": _boolean,
    **dict.fromkeys(("weights", "card"), _text_that(REPO_ID.fullmatch, "must be OWNER/NAME")),
    "refuse": lambda value: {repo_id: _at(repo_id, _text, reason) for repo_id, reason in _dict(value).items()},
    "package": lambda value: PackageSource(**_table(_PACKAGE, value, _PACKAGE)),
    "alternatives": _list(lambda value: Repository(**_table(_REPOSITORY, value, ("repo_id", "file")))),
}
