"""Write a model in other encodings, measure each beside it, and keep the one that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from platform import machine
from statistics import median
from typing import Literal, NamedTuple, TypeVar

from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import Model, is_missing, name_from_stem
from cerebrum_cli.catalogue.derivatives import PART_SUFFIX, Derivative, DerivativeStore, commit_file, delete_file
from cerebrum_cli.catalogue.registry import ModelFile, sha256_of
from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.bench.protocol import LEAST_AGREEMENT, Closeness, FileBench, Job, NoTrial
from cerebrum_cli.engine.bench.quantization import ENCODINGS, Encoding, encoded
from cerebrum_cli.engine.machine import available_memory
from cerebrum_cli.engine.plan import HEADROOM, LoadOptions, Tuning, plan_repacking

T = TypeVar("T")

MARGIN = 10**9  # bytes of the disk that are left alone
WORTH = 1.05  # times as fast as the original, to be recommended
PAIRS = 3
PROBE = 256  # tokens of text
WARMING, READ, SAY, TOGETHER = Job("say", 2), Job("read", 128), Job("say", 16), Job("say", 4, 16)

FileBenchFactory = Callable[[LoadOptions, Model], FileBench]
"""Return where a file is tried."""


class Speeds(NamedTuple):
    """Tokens a second: of a prompt read, said by one sequence, and said by 16 together; or ratios of such."""

    read: float
    say: float
    together: float

    def over(self, other: Speeds) -> Speeds:
        """Return how many times as fast these are."""
        return Speeds(self.read / other.read, self.say / other.say, self.together / other.together)


@dataclass(frozen=True, slots=True)
class Row:
    """An encoding, and what came of it; `size` is in bytes, `ratios` are to the original, `left_out` says why."""

    type: str
    size: int | None = None
    speeds: Speeds | None = None
    ratios: Speeds | None = None
    closeness: Closeness | None = None
    left_out: str | None = None

    @property
    def state(self) -> Literal["ok", "refused", "left out"]:
        """Whether it may answer for the original."""
        if self.closeness is None:
            return "left out"
        return "ok" if self.closeness.agreement >= LEAST_AGREEMENT else "refused"

    @property
    def gain(self) -> float:
        """How many times as fast it is, reading, saying and saying together counting alike; 0 if it may not answer."""
        return prod(self.ratios) ** (1 / len(self.ratios)) if self.ratios and self.state == "ok" else 0.0

    @property
    def verdict(self) -> str:
        """The same, with the reason."""
        if self.state == "refused" and self.closeness:
            return f"refused: agreement {self.closeness.agreement:.3f}"
        return f"left out: {self.left_out}" if self.left_out else self.state


@dataclass(frozen=True, slots=True)
class Report:
    """The original's speeds, what came of each encoding, and the derivative that answers from now on, if one does."""

    original: Row
    rows: tuple[Row, ...]
    applied: Model | None = None

    @property
    def best(self) -> Row | None:
        """The encoding that could well answer for the original: the fastest, if it is faster than that."""
        row = max(self.rows, key=lambda row: row.gain, default=None)
        return row if row and row.gain >= WORTH else None


@dataclass(slots=True)
class Contender:
    """One of two files that are compared; `many` is how it is opened for many sequences."""

    bench: FileBench
    many: Tuning
    rounds: list[Speeds] = field(default_factory=list)

    def run(self, other: Contender) -> None:
        """Measure once."""
        self.rounds.append(beside(other, self._measured))

    def medians(self) -> Speeds:
        """Return the usual one of all that was measured."""
        return middle(self.rounds)

    def _measured(self) -> Speeds:
        speed, one = self.bench.speed, Tuning()
        if not self.rounds:
            speed(one, WARMING)
        return Speeds(speed(one, READ), speed(one, SAY), speed(self.many, TOGETHER))


def beside(other: Contender, work: Callable[[], T]) -> T:
    """Do some work; where memory does not hold both files, the other one goes first."""
    try:
        return work()
    except NoTrial:
        other.bench.free()
        return work()


def middle(rounds: Iterable[Speeds]) -> Speeds:
    """Return the medians of speeds, each by itself."""
    return Speeds(*map(median, zip(*rounds, strict=True)))


def encoding_called(name: str, model: Model) -> Encoding:
    """Return the encoding of a name. UsageError where there is none, or the model is written in it already."""
    found = next((each for each in ENCODINGS if each.name == name.upper().replace("-", "_")), None)
    if found is None:
        raise UsageError(
            f"--apply {name}: no such encoding", f"encodings: {', '.join(each.name for each in ENCODINGS)}"
        )
    if found.name == model.quantization:
        raise UsageError(f"{model.reference} is already {found.name}", "choose another encoding")
    return found


@dataclass(frozen=True, slots=True)
class Reencoding:
    """A model to be written in other encodings. What is tried is removed again, one file at a time."""

    library: Library
    model: Model
    options: LoadOptions
    derivatives: DerivativeStore
    benches: FileBenchFactory
    memory: Callable[[], int] = available_memory
    encode: Callable[[Path, Path, Encoding], Generator[tuple[int, int], None, None]] = encoded

    @property
    def original(self) -> Row:
        """The model as it is, with nothing measured yet."""
        return Row(self.model.quantization or "original", self.model.size)

    def compare(self, encodings: Iterable[Encoding]) -> Generator[StageEvent, None, Report]:
        """Try encodings. EngineError where the model itself cannot be measured."""
        rows = []
        with self._begun() as original:
            for encoding in encodings:
                with self._part(encoding) as part:
                    rows.append((yield from self._tried(encoding, part, original)))
            return self._report(original, *rows)

    def apply(self, encoding: Encoding, force: bool) -> Generator[StageEvent, None, Report]:
        """Try one encoding and keep it, unless it says other things than the original and is not forced."""
        self._require_name(encoding)
        with self._begun() as original, self._part(encoding) as part:
            row = yield from self._tried(encoding, part, original)
            original.bench.free()
            report = self._report(original, row)
            if row.state == "ok" or (row.state == "refused" and force):
                yield StageEvent(f"keeping {encoding.name}", 0, 1)
                return replace(report, applied=self._kept(encoding, part))
            return report

    def existing(self, encoding: Encoding) -> Model | None:
        """Return the derivative that is here already, preferred from now on."""
        name = str(self._name(encoding))
        made = [each for each in self.library.derivatives(self.model) if each.file and each.file.name == name]
        if not made or not made[0].file or is_missing(made[0].path) or made[0].size != made[0].file.size:
            return None
        self.library.registry.add(made[0].file)
        return made[0]

    # The files.

    def _name(self, encoding: Encoding) -> Derivative:
        model = self.model
        is_known = model.file is not None or model.cached is not None
        return Derivative(model.reference if is_known else name_from_stem(model.path.stem), encoding.name)

    def _path(self, encoding: Encoding) -> Path:
        digest = self.library.digest(self.model, lambda *_: None)
        return self.derivatives.path(self.model.path, digest, encoding.name)

    @contextlib.contextmanager
    def _part(self, encoding: Encoding) -> Iterator[Path]:
        """Have a place for a file, and remove what is there in the end."""
        path = self._path(encoding)
        part = path.with_name(path.name + PART_SUFFIX)
        part.parent.mkdir(exist_ok=True)
        try:
            yield part
        finally:
            delete_file(part)

    def _require_name(self, encoding: Encoding) -> None:
        """Raise UsageError where a derivative of another file has the name."""
        name = str(self._name(encoding))
        entry = self.library.registry.find(name)
        if entry and entry.original != self.library.identity(self.model) and not is_missing(entry.path):
            raise UsageError(f"{name} already exists and was made from another file", f"cerebrum rm {name}")

    def _kept(self, encoding: Encoding, part: Path) -> Model:
        """Give a file its name and remember it, in this order: what nobody remembers is removed the next time."""
        path, digest = self._path(encoding), sha256_of(part)
        commit_file(part, path)
        stat, original = path.stat(), self.library.identity(self.model)
        name = str(self._name(encoding))
        entry = ModelFile(name, path, stat.st_size, digest, stat.st_mtime_ns, "derived", original)
        self.library.registry.add(entry)
        return self.library.model_from_entry(entry)

    # How they are measured.

    @contextlib.contextmanager
    def _begun(self) -> Iterator[Contender]:
        """Work alone, with the original opened."""
        known = [entry.path for entry in self.library.registry.entries()]
        with self.derivatives.locked(known), self._side(self.model, self.options) as original:
            try:
                original.bench.speed(Tuning(), WARMING)
            except NoTrial as error:
                raise EngineError(f"this model cannot be measured here: {error.message}", error.hint) from error
            yield original

    @contextlib.contextmanager
    def _side(self, model: Model, options: LoadOptions) -> Iterator[Contender]:
        many = plan_repacking(model.quantization, True, machine())
        bench = self.benches(options, model)
        try:
            yield Contender(bench, Tuning() if many == options.repack else Tuning(repack=many))
        finally:
            bench.close()

    def _tried(self, encoding: Encoding, part: Path, original: Contender) -> Generator[StageEvent, None, Row]:
        """Write one encoding and measure it."""
        name = encoding.name
        if lacking := self._lacking(encoding.size(self.model.header.parameters), original):
            return Row(name, left_out=lacking)
        try:
            with contextlib.closing(self.encode(self.model.path, part, encoding)) as progress:
                for done, total in progress:
                    yield StageEvent(f"writing {name}", done, total)
            model = Model(name, (part,))
            shape = replace(self.options.shape, weight_bytes=model.size)
            repack = plan_repacking(name, False, machine())
            with self._side(model, replace(self.options, path=part, shape=shape, repack=repack)) as new:
                return (yield from self._compared(name, model.size, original, new))
        except EngineError as error:
            return Row(name, left_out=error.message)

    def _compared(self, name: str, size: int, original: Contender, new: Contender) -> Generator[StageEvent, None, Row]:
        """Measure two files in turn, and how alike they are."""
        for turn in range(PAIRS):
            yield StageEvent(f"measuring {name}", turn, PAIRS + 1)
            first, second = (new, original) if turn % 2 else (original, new)
            first.run(second)
            second.run(first)
        yield StageEvent(f"comparing {name}", PAIRS, PAIRS + 1)
        ratios = [mine.over(its) for mine, its in zip(new.rounds, original.rounds[-PAIRS:], strict=True)]
        return Row(name, size, new.medians(), middle(ratios), self._closeness(original, new))

    def _closeness(self, original: Contender, new: Contender) -> Closeness:
        count, one = min(PROBE, self.model.trained_context), Tuning()
        logits = beside(new, lambda: original.bench.written(one, count))
        return beside(original, lambda: new.bench.compared(logits, one, count))

    def _lacking(self, size: int, original: Contender) -> str | None:
        """Return what a file of this size would lack: room on the disk, or in memory."""
        if (free := self.derivatives.free_space()) < size + MARGIN:
            return f"it needs {format_size(size + MARGIN)} of disk space, and {format_size(free)} are free"
        if size + HEADROOM > self.memory():
            original.bench.free()
        if size + HEADROOM > (free := self.memory()):
            return f"it needs {format_size(size + HEADROOM)} of memory, and {format_size(free)} are free"
        return None

    def _report(self, side: Contender, *rows: Row) -> Report:
        return Report(replace(self.original, speeds=side.medians() if side.rounds else None), rows)
