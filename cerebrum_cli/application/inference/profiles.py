"""What was measured of a model on this machine, and kept: the fastest way to open it for each use."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from cerebrum_cli.core.files import atomic_write
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.plan import Tuning

UseName = Literal["chat", "ask", "ask-long", "batch"]
VERSION = 2
MOST = 1e12  # seconds and tokens a second: what is more was never measured
SHORT = 64  # tokens of a question that is not a long one, whatever was measured of long ones
REPLY = 128  # tokens an answer is taken to have where it is to be told whether a prompt is long
DEFAULT = Tuning()
VERSION_1_NAMES = {
    "made": "created",
    "usual": "baseline",
    "read": "prompt",
    "say": "generate",
    "threads": "n_threads",
    "prefill_threads": "n_threads_batch",
    "micro_batch": "n_ubatch",
}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds a model takes to load, and tokens a second: of prompts read, and said; bytes of memory at most."""

    load_s: float
    prompt: float
    generate: float
    memory: int = 0

    def seconds(self, prompt: int, reply: int) -> float:
        """Return the seconds that loading, reading and saying so many tokens take."""
        return self.load_s + prompt / self.prompt + reply / self.generate


@dataclass(frozen=True, slots=True)
class Tuned:
    """The way to open a model for one use, how fast it is, how fast the usual one was beside it, and what is gained.

    `gain` is how many times as fast the use was; `agreement` the share of next tokens chosen alike, where that was
    measured.
    """

    tuning: Tuning
    speeds: Speeds
    baseline: Speeds
    gain: float = 1.0
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured of one model file, on one machine with one build of llama.cpp; `made` is in UTC."""

    model: str
    machine: str
    build: str
    created: str
    uses: Mapping[UseName, Tuned]

    @property
    def long_from(self) -> int | None:
        """Tokens from which a prompt is better asked as a long one; None where there is no difference, or never."""
        short, long = self.uses["ask"], self.uses["ask-long"]
        if short.tuning == long.tuning:
            return None
        saved = 1 / short.speeds.prompt - 1 / long.speeds.prompt
        lost = long.speeds.seconds(0, REPLY) - short.speeds.seconds(0, REPLY)
        return max(SHORT + 1, int(lost / saved) + 1) if saved > 0 else None

    def tuning(self, use: UseName, prompt_tokens: int = 0) -> Tuning:
        """Return how to open the model for a use; a question of so many tokens may be a long one."""
        if use == "ask" and (limit := self.long_from) is not None and prompt_tokens >= limit:
            use = "ask-long"
        return self.uses[use].tuning


class ProfileStore:
    """Profiles in a folder, a file each, named by what they hold for; `machine` and `build` are this one's."""

    def __init__(self, directory: Path, machine: str, build: str) -> None:
        self.machine = machine
        self.build = build
        self.directory = directory

    def find(self, model: str) -> Profile | None:
        """Return what was measured of a model here; None where nothing was, or what is kept cannot be read."""
        profile = self._read(self._path(model))
        return profile if profile and (profile.model, profile.machine, profile.build) == self._key(model) else None

    def elsewhere(self, model: str) -> Profile | None:
        """Return what was measured of it with another build of llama.cpp or on another machine."""
        found = (self._read(path) for path in sorted(self.directory.glob(f"{_digest(model)}-*.json")))
        return next((each for each in found if each and self._path(model) != self._path_of(each)), None)

    def save(self, profile: Profile) -> None:
        """Keep what was measured, in place of what was before. Raises OSError where it cannot be written."""
        path = self._path_of(profile)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"version": VERSION, **asdict(profile)}, indent=2).encode())

    def forget(self, model: str) -> None:
        """Forget what was measured of a model, anywhere."""
        for path in self.directory.glob(f"{_digest(model)}-*.json"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _key(self, model: str) -> tuple[str, str, str]:
        return model, self.machine, self.build

    def _path(self, model: str) -> Path:
        return self.directory / f"{_digest(model)}-{_digest(f'{self.machine}|{self.build}')}.json"

    def _path_of(self, profile: Profile) -> Path:
        here = _digest(f"{profile.machine}|{profile.build}")
        return self.directory / f"{_digest(profile.model)}-{here}.json"

    @staticmethod
    def _read(path: Path) -> Profile | None:
        try:
            return _decoded(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


def settings_text(settings: Settings) -> str:
    """Return what the user has said of how a model is opened, in words; a profile was measured with that."""
    threads = f", --threads {settings.threads}" if settings.threads is not None else ""
    return threads + (f", --gpu-layers {settings.gpu_layers}" if settings.gpu_layers != "auto" else "")


def given_way(tuning: Tuning, settings: Settings) -> Tuning:
    """Return a tuning without what the user has said otherwise."""
    if settings.threads is not None:
        tuning = replace(tuning, n_threads=None, n_threads_batch=None)
    return replace(tuning, gpu_layers=None) if settings.gpu_layers != "auto" else tuning


def profile_object(profile: Profile) -> dict[str, Any]:
    """Return what `--json` prints of a profile."""
    return {
        "created": profile.created,
        "machine": profile.machine,
        "build": profile.build,
        "long_from": profile.long_from,
        "uses": {name: used_object(tuned) for name, tuned in profile.uses.items()},
    }


def used_object(tuned: Tuned) -> dict[str, Any]:
    """Return what `--json` prints of one use; settings that are as usual are left out."""
    return {
        "settings": tuned.tuning.overrides,
        "gain": round(tuned.gain, 3),
        "agreement": tuned.agreement,
        "load_s": round(tuned.speeds.load_s, 3),
        "prompt_tokens_per_second": round(tuned.speeds.prompt, 2),
        "tokens_per_second": round(tuned.speeds.generate, 2),
        "memory": tuned.speeds.memory,
    }


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _decoded(value: Mapping[str, Any]) -> Profile:
    """Read a profile; any of the usual errors of a lookup or conversion means that it is damaged."""
    if value["version"] == 1:
        value = _renamed(value)
    elif value["version"] != VERSION:
        raise ValueError(f"version {value['version']!r}, not {VERSION}")
    uses: dict[UseName, Tuned] = {name: _tuned(**value["uses"][name]) for name in get_args(UseName)}
    model, machine, build, created = (value[key] for key in ("model", "machine", "build", "created"))
    if not all(isinstance(text, str) for text in (model, machine, build, created)):
        raise TypeError("a text of the wrong kind")
    return Profile(model, machine, build, created, uses)


def _renamed(value: Any) -> Any:
    """Give the keys of a version 1 profile their version 2 names, at every level."""
    if not isinstance(value, Mapping):
        return value
    return {VERSION_1_NAMES.get(key, key): _renamed(item) for key, item in value.items()}


def _tuned(
    tuning: Mapping[str, Any],
    speeds: Mapping[str, Any],
    baseline: Mapping[str, Any],
    gain: float,
    agreement: float | None,
) -> Tuned:
    if not (0 < gain < MOST and (agreement is None or 0 <= agreement <= 1)):
        raise ValueError("a gain or an agreement that cannot be")
    return Tuned(Tuning(**tuning).validated(), _speeds(**speeds), _speeds(**baseline), float(gain), agreement)


def _speeds(load_s: float, prompt: float, generate: float, memory: int) -> Speeds:
    if not (1 / MOST < prompt < MOST and 1 / MOST < generate < MOST and 0 <= load_s < MOST and 0 <= memory < 2**63):
        raise ValueError("a speed that cannot be")
    return Speeds(float(load_s), float(prompt), float(generate), int(memory))
