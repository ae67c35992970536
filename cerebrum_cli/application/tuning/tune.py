"""Tune a model: what this machine lets it be, the search, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from platform import machine as architecture
from time import time
from typing import Any

from cerebrum_cli.application.inference.loading import load_options
from cerebrum_cli.application.inference.profiles import Profile
from cerebrum_cli.application.models.model import Model, require_loadable
from cerebrum_cli.application.tuning.candidates import TOGETHER, Budget, Candidate, SearchSpace, other_threads
from cerebrum_cli.application.tuning.search import Search
from cerebrum_cli.core.errors import CerebrumError, ConfigError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.core.files import try_lock
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import format_utc
from cerebrum_cli.engine.bench.protocol import Bench, FileBench
from cerebrum_cli.engine.machine import available_memory, processors
from cerebrum_cli.engine.plan import Device, LoadOptions, Tuning, plan_repacking, plan_slots
from cerebrum_cli.engine.sequence import EXPECTED_REPLY_TOKENS

MOST_TOGETHER = 64
QUESTION = 256  # tokens room is made for in each slot of a batch, beside its reply

BenchFactory = Callable[[LoadOptions, Model, Path, int], FileBench]
"""Return where ways of opening a model are tried, which may write into a folder; so many bytes may be offloaded.

The runtime picks processes, tests something quicker.
"""


@dataclass(frozen=True, slots=True)
class TuningResult:
    """What tuning came to: what is to be kept, all that was tried, and whether other programs used the processors."""

    profile: Profile
    arms: tuple[Candidate, ...]
    is_disturbed: bool

    @property
    def tried(self) -> list[tuple[Tuning, dict[str, Any]]]:
        """All that was tried beside the usual ways, with its speeds as shares of theirs."""
        usual = {many: next(arm for arm in self.arms if arm.many == many) for many in (False, True)}
        return [(arm.tuning, _tried(arm, usual[arm.many])) for arm in self.arms if arm not in usual.values()]


def tune_model(
    bench: Bench,
    model: Model,
    settings: Settings,
    effort: Budget,
    holds_for: Callable[[tuple[Device, ...]], tuple[str, str, str]],
) -> Generator[StageEvent, None, TuningResult]:
    """Tell what is being measured, and return what came of it; the bench is closed by whoever opened it.

    `holds_for` returns the identity of the model, of the machine with the accelerators it has, and of the build.
    """
    search = Search(bench, this_machine(model, settings), effort)
    uses = yield from search.run()
    model_key, machine_key, build_key = holds_for(bench.devices)
    profile = Profile(model_key, machine_key, build_key, format_utc(time()), uses)
    return TuningResult(profile, tuple(search.arms), bench.disturbances > 0)


def this_machine(model: Model, settings: Settings) -> SearchSpace:
    """Return how this model is opened here without a profile, and what could be tried."""
    here, layout = processors(), (model.quantization, architecture())
    usual_threads = settings.threads or here.threads
    room = available_memory() - model.size
    slots = plan_slots(MOST_TOGETHER, EXPECTED_REPLY_TOKENS + QUESTION, model.header.kv_bytes_per_token, room)
    return SearchSpace(
        usual=Tuning(repack=plan_repacking(layout[0], False, layout[1])),
        usual_many=Tuning(repack=plan_repacking(layout[0], True, layout[1]), slots=min(TOGETHER, slots)),
        threads=() if settings.threads else other_threads(usual_threads, here.usable),
        slots=slots,
        layers=model.header.n_layers if settings.gpu_layers == "auto" else 0,
    )


def trial_options(model: Model, settings: Settings) -> LoadOptions:
    """Return how a model is loaded where nothing is tuned. ModelFileError where it cannot be."""
    require_loadable(model.path, model.header)
    return load_options(model, settings)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other searches out while this one measures: two would measure each other.

    CerebrumError where one is at work, or nothing can be written here, which is better known before.
    """
    with writing():
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("ab")
    with lock:  # closing the file gives it back
        if not try_lock(lock.fileno()):
            raise CerebrumError(
                "another cerebrum tune is running", "wait until it is done: they would disturb each other"
            )
        yield


@contextmanager
def writing() -> Iterator[None]:
    """Raise ConfigError where a profile cannot be written."""
    try:
        yield
    except OSError as error:
        what = f"cannot save the profile: {error.filename}: {error.strerror}"
        raise ConfigError(what, "check its permissions and free space") from error


def _tried(arm: Candidate, usual: Candidate) -> dict[str, Any]:
    """Return what `--json` prints of a way that was tried."""
    read, say = None, None
    if arm.speeds and usual.speeds:
        read = arm.speeds.prompt / usual.speeds.prompt if "read" in arm.measured else None
        say = arm.speeds.generate / usual.speeds.generate if "say" in arm.measured else None
    return {
        "settings": arm.tuning.overrides,
        "many": arm.many,
        "read": read,
        "say": say,
        "agreement": arm.agreement,
        "dropped": arm.dropped,
    }
