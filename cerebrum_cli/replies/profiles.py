"""Tuning profiles: the fastest settings for each use of a model, as measured on this machine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from cerebrum_cli.core.files import atomic_write, read_small_json
from cerebrum_cli.core.settings import ATTENTION_KEYS, OPTIONS, Settings
from cerebrum_cli.engine.model_options import Tuning
from cerebrum_cli.engine.step_costs import StepCosts
from cerebrum_cli.library.installed import ADAPTED

UseName = Literal["chat", "ask", "batch"]
VERSION = 1
UNSET = Settings()
MEASURED_SETTINGS = ("threads", "gpu_layers", *ATTENTION_KEYS)


@dataclass(frozen=True, slots=True)
class Speeds:
    """Load time in seconds, tokens per second of prefill and of decode, and peak memory in bytes."""

    load_s: float
    prompt: float
    generate: float
    memory: int = 0

    def seconds(self, prompt: int, reply: int) -> float:
        return self.load_s + prompt / self.prompt + reply / self.generate


@dataclass(frozen=True, slots=True)
class TunedUse:
    """Settings for one use, and their speeds.

    `gain` is the speedup of the use over the defaults (`Use.gain`). `step_costs` are those of steps with draft
    tokens, with these settings; None without speculative decoding.
    """

    tuning: Tuning
    speeds: Speeds
    gain: float = 1.0
    step_costs: StepCosts | None = None

    @property
    def best_draft(self) -> tuple[int, float] | None:
        return self.step_costs.best_draft if self.step_costs else None


@dataclass(frozen=True, slots=True)
class Profile:
    """Settings for one model file, on one machine, with one build of llama.cpp; `created` is in UTC."""

    model: str
    machine: str
    build: str
    created: str
    uses: Mapping[UseName, TunedUse]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.machine, self.build

    @property
    def is_default(self) -> bool:
        return not any(used.tuning.overrides for used in self.uses.values())

    @property
    def speculative_uses(self) -> list[UseName]:
        return [name for name, used in self.uses.items() if used.best_draft]


@dataclass(frozen=True, slots=True)
class ProfileStore:
    """Directory of profiles, one file per model, machine and build; `machine` and `build` are the current ones."""

    directory: Path
    machine: str
    build: str

    def find(self, model: str) -> Profile | None:
        return next((profile for profile in self._of(model) if profile.key == (model, self.machine, self.build)), None)

    def find_other(self, model: str) -> Profile | None:
        return next((profile for profile in self._of(model) if profile != self.find(model)), None)

    def save(self, profile: Profile) -> None:
        path = self._path(*profile.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"version": VERSION, **asdict(profile)}, indent=2).encode())

    def discard(self, model: str) -> None:
        """Delete the profiles of a model on this machine, with any build of llama.cpp. Raises OSError."""
        for profile in self._of(model):
            if profile.machine == self.machine:
                self._path(*profile.key).unlink()

    def delete(self, model: str) -> None:
        """Delete all profiles of a model, also those with adapters."""
        for path in self._paths(model):
            with contextlib.suppress(OSError):
                path.unlink()

    def _of(self, model: str) -> list[Profile]:
        profiles = map(_read, self._paths(model))
        return [profile for profile in profiles if profile and profile.model == model]

    def _paths(self, model: str) -> list[Path]:
        return sorted(self.directory.glob(f"{_digest(model.partition(ADAPTED)[0])}-*.json"))

    def _path(self, model: str, machine: str, build: str) -> Path:
        file, *adapters = model.partition(ADAPTED)
        return self.directory / f"{_digest(file)}-{_digest(f'{machine}|{build}' + ''.join(adapters))}.json"


def settings_text(settings: Settings) -> str:
    values = ((key, getattr(settings, key)) for key in MEASURED_SETTINGS)
    changed = ((key, value) for key, value in values if value != getattr(UNSET, key))
    return "".join(f", {OPTIONS[key].argument_for(value)}" for key, value in changed)


def general_settings(settings: Settings) -> Settings:
    """The settings of the profile to use if there is none with the user's: those that no profile may differ in."""
    return replace(settings, threads=UNSET.threads, gpu_layers=UNSET.gpu_layers, flash_attn=UNSET.flash_attn)


def profile_object(profile: Profile) -> dict[str, Any]:
    return {
        "created": profile.created,
        "machine": profile.machine,
        "build": profile.build,
        "uses": {
            name: {
                "settings": tuned.tuning.overrides,
                "gain": round(tuned.gain, 3),
                "load_s": round(tuned.speeds.load_s, 3),
                "prompt_tokens_per_second": round(tuned.speeds.prompt, 2),
                "tokens_per_second": round(tuned.speeds.generate, 2),
                "memory": tuned.speeds.memory,
                "step_costs": tuned.step_costs and asdict(tuned.step_costs),
            }
            for name, tuned in profile.uses.items()
        },
    }


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read(path: Path) -> Profile | None:
    try:
        value = read_small_json(path)
        if value.pop("version") == VERSION:
            return Profile(**value | {"uses": {name: _parse_use(**value["uses"][name]) for name in get_args(UseName)}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return None


def _parse_use(*, tuning: Any, speeds: Any, step_costs: Any, **values: Any) -> TunedUse:
    costs = step_costs and StepCosts(tuple(step_costs["rows"]), tuple(step_costs["costs"]))
    return TunedUse(Tuning(**tuning), Speeds(**speeds), step_costs=costs, **values)
