"""Write a model in other encodings, measure each against the original, and save the one requested."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from platform import machine
from statistics import median
from typing import Literal, NamedTuple

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.closeness import file_closeness, retry_alone
from cerebrum_cli.engine.load_options import LoadOptions, Tuning, plan_repacking
from cerebrum_cli.engine.machine import available_memory
from cerebrum_cli.engine.memory import HEADROOM
from cerebrum_cli.engine.protocol import MIN_AGREEMENT, Closeness, FileBench, FileBenchFactory, Job, TrialError
from cerebrum_cli.engine.quantization import ENCODINGS, Encoding, encode_file
from cerebrum_cli.models.derivatives import PART_SUFFIX, Derivative, DerivativeStore, commit_file, delete_file
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import Model, is_missing, name_from_stem
from cerebrum_cli.models.registry import ModelFile, hash_file

DISK_MARGIN = 10**9  # bytes to leave free on the disk
MIN_GAIN = 1.05  # over the original, to be recommended
PAIRS = 3
WARM_UP, PREFILL, DECODE, BATCH_DECODE = Job("decode", 2), Job("prefill", 128), Job("decode", 16), Job("decode", 4, 16)


class Throughput(NamedTuple):
    """Tokens per second of a prompt, of one generated sequence, and of 16 concurrent ones; or ratios of these."""

    prompt_tokens_per_second: float
    tokens_per_second: float
    batch_tokens_per_second: float

    def relative_to(self, other: Throughput) -> Throughput:
        """Ratios to another throughput."""
        return Throughput(*(speed / base for speed, base in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class EncodingResult:
    """Measurements of an encoding: `size` in bytes, `ratios` to the original, or why it was `skipped`."""

    type: str
    size: int | None = None
    throughput: Throughput | None = None
    ratios: Throughput | None = None
    closeness: Closeness | None = None
    skipped: str | None = None

    @property
    def state(self) -> Literal["ok", "rejected", "skipped"]:
        """Whether it may replace the original."""
        if self.closeness is None:
            return "skipped"
        return "ok" if self.closeness.agreement >= MIN_AGREEMENT else "rejected"

    @property
    def gain(self) -> float:
        """Geometric mean of the ratios; 0 if it may not replace the original."""
        return prod(self.ratios) ** (1 / len(self.ratios)) if self.ratios and self.state == "ok" else 0.0

    @property
    def verdict(self) -> str:
        """The state, with its reason."""
        if self.state == "rejected" and self.closeness:
            return f"rejected: same top-1 {self.closeness.agreement:.1%}"
        return f"skipped: {self.skipped}" if self.skipped else self.state


@dataclass(frozen=True, slots=True)
class Report:
    """Throughput of the original, the result of each encoding, and the encoding applied, if any."""

    original: EncodingResult
    results: tuple[EncodingResult, ...]
    applied: Model | None = None

    @property
    def best(self) -> EncodingResult | None:
        """The encoding to recommend: the fastest, if it is faster than the original."""
        best = max(self.results, key=lambda result: result.gain, default=None)
        return best if best and best.gain >= MIN_GAIN else None


@dataclass(slots=True)
class Contender:
    """One of two files to compare; `batch_tuning` is used for concurrent sequences."""

    bench: FileBench
    batch_tuning: Tuning
    rounds: list[Throughput] = field(default_factory=list)

    def run(self, other: Contender) -> None:
        """Measure one round."""
        self.rounds.append(retry_alone(other.bench, self._measure))

    def medians(self) -> Throughput:
        """Medians of all rounds."""
        return medians_of(self.rounds)

    def _measure(self) -> Throughput:
        speed, default = self.bench.speed, Tuning()
        if not self.rounds:
            speed(default, WARM_UP)
        return Throughput(speed(default, PREFILL), speed(default, DECODE), speed(self.batch_tuning, BATCH_DECODE))


def medians_of(rounds: Iterable[Throughput]) -> Throughput:
    """Median of each speed."""
    return Throughput(*map(median, zip(*rounds, strict=True)))


def find_encoding(name: str, model: Model) -> Encoding:
    """Find an encoding by name. UsageError if it is unknown, or that of the model itself."""
    found = next((each for each in ENCODINGS if each.name == name.upper().replace("-", "_")), None)
    if found is None:
        names = ", ".join(each.name for each in ENCODINGS)
        raise UsageError(f"--apply {name}: unknown encoding", f"use one of {names}")
    if found.name == model.quantization:
        raise UsageError(f"{model.label} is already {found.name}", "choose another encoding")
    return found


@dataclass(frozen=True, slots=True)
class Reencoding:
    """Re-encoding of a model. Only one temporary file exists at a time, and each is deleted after its measurement."""

    library: Library
    model: Model
    options: LoadOptions
    derivatives: DerivativeStore
    open_bench: FileBenchFactory
    free_memory: Callable[[], int] = available_memory
    encode: Callable[[Path, Path, Encoding], Generator[tuple[int, int], None, None]] = encode_file

    @property
    def original(self) -> EncodingResult:
        """The original, not yet measured."""
        return EncodingResult(self.model.quantization or "original", self.model.size)

    def compare(self, encodings: Iterable[Encoding]) -> Generator[StageEvent, None, Report]:
        """Measure encodings. EngineError if the model itself cannot be measured."""
        results = []
        with self._original() as original:
            for encoding in encodings:
                with self._temporary_file(encoding) as part:
                    results.append((yield from self._try_encoding(encoding, part, original)))
            return self._report(original, *results)

    def apply(self, encoding: Encoding, force: bool) -> Generator[StageEvent, None, Report]:
        """Measure one encoding and save it, unless its output differs and `force` is not set."""
        self._require_free_name(encoding)
        with self._original() as original, self._temporary_file(encoding) as part:
            result = yield from self._try_encoding(encoding, part, original)
            original.bench.release()
            report = self._report(original, result)
            if result.state == "ok" or (result.state == "rejected" and force):
                yield StageEvent(f"saving {encoding.name}", 0, 1)
                return replace(report, applied=self._commit(encoding, part))
            return report

    def use_existing(self, encoding: Encoding) -> Model | None:
        """Find a derivative that exists already, and make it the preferred one."""
        name = str(self._name(encoding))
        for found in self.library.derivatives(self.model):
            if found.file and found.file.name == name and not is_missing(found.path) and found.size == found.file.size:
                self.library.registry.add(found.file)
                return found
        return None

    # Files.

    def _name(self, encoding: Encoding) -> Derivative:
        model = self.model
        return Derivative(name_from_stem(model.label) if model.is_unnamed else model.reference, encoding.name)

    def _path(self, encoding: Encoding) -> Path:
        digest = self.library.digest(self.model, lambda *_: None).sha256
        return self.derivatives.path(self.model.path, digest, encoding.name)

    @contextlib.contextmanager
    def _temporary_file(self, encoding: Encoding) -> Iterator[Path]:
        """Path of a temporary file, which is deleted at the end."""
        path = self._path(encoding)
        part = path.with_name(path.name + PART_SUFFIX)
        part.parent.mkdir(exist_ok=True)
        try:
            yield part
        finally:
            delete_file(part)

    def _require_free_name(self, encoding: Encoding) -> None:
        """Raise UsageError if a derivative of another file has the name."""
        name = str(self._name(encoding))
        entry = self.library.registry.find(name)
        if entry and entry.original != self.library.file_identity(self.model) and not is_missing(entry.path):
            raise UsageError(f"{name} already exists and was made from another file", f"cerebrum rm {name}")

    def _commit(self, encoding: Encoding, part: Path) -> Model:
        """Rename a file and register it, in this order: the next run deletes files that are not registered."""
        path, digest = self._path(encoding), hash_file(part)
        commit_file(part, path)
        name, original = str(self._name(encoding)), self.library.file_identity(self.model)
        entry = ModelFile(name, path, digest.size, digest.sha256, digest.mtime_ns, "derived", original)
        self.library.registry.add(entry)
        return self.library.model_from_entry(entry)

    # Measurements.

    @contextlib.contextmanager
    def _original(self) -> Iterator[Contender]:
        """Lock out other runs, and load the original."""
        registered = [entry.path for entry in self.library.registry.entries()]
        with self.derivatives.locked(registered), self._contender(self.model, self.options) as original:
            try:
                original.bench.speed(Tuning(), WARM_UP)
            except TrialError as error:
                raise EngineError(f"cannot measure this model: {error.message}", error.hint) from error
            yield original

    @contextlib.contextmanager
    def _contender(self, model: Model, options: LoadOptions) -> Iterator[Contender]:
        batch_repack = plan_repacking(model.quantization, False, machine())
        bench = self.open_bench(options, model.paths)
        try:
            yield Contender(bench, Tuning() if batch_repack == options.repack else Tuning(repack=batch_repack))
        finally:
            bench.close()

    def _try_encoding(
        self, encoding: Encoding, part: Path, original: Contender
    ) -> Generator[StageEvent, None, EncodingResult]:
        """Write one encoding and measure it."""
        name = encoding.name
        if reason := self._lack_of_space(encoding.size(self.model.header.parameters), original):
            return EncodingResult(name, skipped=reason)
        try:
            with contextlib.closing(self.encode(self.model.path, part, encoding)) as progress:
                for done, total in progress:
                    yield StageEvent(f"writing {name}", done, total)
            model = Model(name, (part,))
            sizes = self.options.sizes.with_weights(model.size)
            repack = plan_repacking(name, True, machine())
            with self._contender(model, replace(self.options, path=part, sizes=sizes, repack=repack)) as new:
                return (yield from self._compare(name, model.size, original, new))
        except EngineError as error:
            return EncodingResult(name, skipped=error.message)

    def _compare(
        self, name: str, size: int, original: Contender, new: Contender
    ) -> Generator[StageEvent, None, EncodingResult]:
        """Measure two files in turn, and compare their output."""
        for turn in range(PAIRS):
            yield StageEvent(f"measuring {name}", turn, PAIRS + 1)
            first, second = (new, original) if turn % 2 else (original, new)
            first.run(second)
            second.run(first)
        yield StageEvent(f"comparing {name}", PAIRS, PAIRS + 1)
        ratios = [own.relative_to(base) for own, base in zip(new.rounds, original.rounds[-PAIRS:], strict=True)]
        closeness = file_closeness(original.bench, new.bench, self.model.trained_context)
        return EncodingResult(name, size, new.medians(), medians_of(ratios), closeness)

    def _lack_of_space(self, size: int, original: Contender) -> str | None:
        """Reason why the disk or memory cannot hold a file of this size."""
        if (free := self.derivatives.free_space()) < size + DISK_MARGIN:
            return f"needs {format_size(size + DISK_MARGIN)} of disk space, but only {format_size(free)} is free"
        if size + HEADROOM > self.free_memory():
            original.bench.release()
        if size + HEADROOM > (free := self.free_memory()):
            return f"needs {format_size(size + HEADROOM)} of memory, but only {format_size(free)} is free"
        return None

    def _report(self, original: Contender, *results: EncodingResult) -> Report:
        return Report(replace(self.original, throughput=original.medians() if original.rounds else None), results)
