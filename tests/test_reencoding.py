"""Other encodings of the same weights: what is tried is gone again, what is kept is known as what it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from command_line import CommandLine
from tiny_models import write_chatml

from cerebrum_cli.application.doctor.selftest import NANO
from cerebrum_cli.application.models.fit import Capacity
from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.listing import catalogue_rows, describe, quantization_plan, rows
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.application.models.removal import plan_removal
from cerebrum_cli.application.pulling.pull import Puller
from cerebrum_cli.application.tuning.reencoding import EncodingResult, Reencoding, Report, Throughput, find_encoding
from cerebrum_cli.application.tuning.tune import trial_options
from cerebrum_cli.catalogue.cache import Cache
from cerebrum_cli.catalogue.derivatives import DerivativeStore
from cerebrum_cli.core.errors import CerebrumError, EngineError, ModelNotFound, UsageError
from cerebrum_cli.core.events import NoticeEvent, StageEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.bench.protocol import Closeness, FileBench, Job, LoadStats, TrialError
from cerebrum_cli.engine.bench.quantization import ENCODINGS, Encoding, encode_file, fast_encodings
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.engine.llama.quantize import reason
from cerebrum_cli.engine.plan import HEADROOM, Device, LoadOptions, Tuning
from cerebrum_cli.runtime.reencoding import conclude
from cerebrum_cli.terminal.encoding_report import print_encodings, report_object
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_models

T = TypeVar("T")

CATALOGUE = """
[models.thinker]
system = "Thinker-1.0"
repo_id = "someone/Thinker-GGUF"
file = "Thinker-{quant}.gguf"
format = "cerebrum"
context_size = 512
quantizations = {F16 = 3000000}
"""
ROOT = Path(__file__).parents[1]
NEAR, FAR = Closeness(0.96, 0.99, 0.002), Closeness(0.702, 0.811, 0.24)
Q8_0 = next(each for each in ENCODINGS if each.name == "Q8_0")
BF16 = next(each for each in ENCODINGS if each.name == "BF16")

# Begins to re-encode and is killed as soon as llama.cpp tells of the first tensor.
KILLED = """
import os, signal, sys
from pathlib import Path
from cerebrum_cli.engine.bench.quantization import ENCODINGS, encode_file
for done, total in encode_file(Path(sys.argv[1]), Path(sys.argv[2]), ENCODINGS[0]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Quiet:
    """Watches a pull and tells nobody."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Tell nobody how far it is."""

    def notice(self, event: NoticeEvent) -> None:
        """Tell nobody what is."""


@dataclass
class Room:
    """The benches of a test: how alike new files are, how many files memory holds, and which are open."""

    closeness: Closeness = NEAR
    holds: int = 2
    open: list[Path] = field(default_factory=list)
    asked: int = 0

    def bench(self, options: LoadOptions, model: Model) -> FileBench:
        """Return a bench for one file."""
        assert options.path == model.path
        return cast("FileBench", Paper(self, options.path))


@dataclass
class Paper:
    """A bench that measures nothing: the original reads 100 tokens a second, others 200."""

    room: Room
    path: Path
    devices: tuple[Device, ...] = ()

    def speed(self, tuning: Tuning, job: Job) -> float:
        self._open()
        speed = 200.0 if self.path.name.endswith(".part") else 100.0
        return speed / job.sequences if job.kind == "prefill" else speed

    def write_logits(self, tuning: Tuning, tokens: int) -> Path:
        self._open()
        return self.path

    def compare_logits(self, logits: Path, tuning: Tuning, tokens: int) -> Closeness:
        self._open()
        return self.room.closeness

    def load_stats(self, tuning: Tuning) -> LoadStats:
        return LoadStats(0.0, 0)

    def release(self) -> None:
        if self.path in self.room.open:
            self.room.open.remove(self.path)

    close = release

    def _open(self) -> None:
        self.room.asked += 1
        if self.path not in self.room.open:
            if len(self.room.open) == self.room.holds:
                raise TrialError("memory is full")
            self.room.open.append(self.path)


@dataclass
class Encoder:
    """Writes a file as llama.cpp would, or a copy in no time, and counts."""

    real: bool = False
    sources: list[Path] = field(default_factory=list)

    def __call__(self, source: Path, target: Path, encoding: Encoding) -> Generator[tuple[int, int], None, None]:
        self.sources.append(source)
        if self.real:
            yield from encode_file(source, target, encoding)
        else:
            yield 1, 2
            shutil.copy(source, target)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Return a library whose catalogue knows a thinker."""
    (tmp_path / "models.toml").write_text(CATALOGUE)
    return Library(
        catalogue_paths=(tmp_path / "models.toml",),
        directory=tmp_path / "models",
        capacity=lambda: Capacity(16 * 2**30),
        given_cache=Cache(tmp_path / "hub"),
    )


@pytest.fixture
def model(library: Library, tmp_path: Path) -> Model:
    """Return a file of the user's, pulled as `mine`."""
    return pulled(library, write_chatml(tmp_path / "Thinker-F16.gguf"), "mine")


def pulled(library: Library, path: Path, name: str | None = None) -> Model:
    return Puller(library, Quiet(), LlamaCodec, offline=True).pull(library.parse(str(path)), name)


def work_on(library: Library, model: Model, room: Room | None = None, **more: Any) -> Reencoding:
    """Return the work of re-encoding, with nothing measured and files only copied."""
    workshop = DerivativeStore(
        library.directory.parent / "encodings", **({"free_bytes": more.pop("free")} if "free" in more else {})
    )
    given: dict[str, Any] = {"free_memory": lambda: 2**40, "encode": Encoder(), **more}
    return Reencoding(library, model, trial_options(model, Settings()), workshop, (room or Room()).bench, **given)


def told(work: Generator[StageEvent, None, T]) -> tuple[list[StageEvent], T]:
    """Return the stages a piece of work tells of, and what it comes to."""
    stages: list[StageEvent] = []
    while True:
        try:
            stages.append(next(work))
        except StopIteration as stopped:
            return stages, cast("T", stopped.value)


def applied(library: Library, model: Model, encoding: Encoding = Q8_0, **more: Any) -> Model:
    """Return a derivative, applied."""
    _, report = told(work_on(library, model, **more).apply(encoding, force=False))
    assert report.applied
    return report.applied


def files(library: Library) -> list[str]:
    """Return the names of all files and folders in the folder of derivatives, but its lock."""
    root = library.directory.parent / "encodings"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != "lock")


@pytest.mark.parametrize(
    ("features", "original", "names"),
    [
        ("AVX2 F16C LLAMAFILE REPACK AVX512_BF16", "Q4_1", ["BF16", "F16", "Q8_0", "Q4_0"]),
        ("AVX2 F16C LLAMAFILE REPACK AVX512_BF16", "BF16", ["F16", "Q8_0", "Q4_0"]),
        ("AVX2 F16C LLAMAFILE REPACK", "Q4_K_M", ["F16", "Q8_0", "Q4_0"]),
        ("AVX2 F16C", "Q4_K_M", []),
        ("NEON ARM_FMA FP16_VA DOTPROD LLAMAFILE REPACK", "Q8_0", ["F16", "Q4_0"]),
        ("NEON DOTPROD REPACK", None, ["Q8_0", "Q4_0"]),
        ("SSE3", "Q4_1", []),
    ],
)
def test_what_a_processor_is_fast_at_is_tried_and_not_what_the_file_is(
    features: str, original: str | None, names: list[str]
) -> None:
    assert [each.name for each in fast_encodings(features.split(), original)] == names


def test_an_estimate_is_no_smaller_than_the_file(tmp_path: Path) -> None:
    parameters = Model("nano", (NANO,)).header.parameters
    for encoding in ENCODINGS:
        stages = list(encode_file(NANO, tmp_path / "file", encoding))
        assert stages[-1][0] == stages[-1][1] == len(stages)
        assert (tmp_path / "file").stat().st_size <= encoding.size(parameters)


def test_what_is_tried_is_removed_again_and_only_one_file_is_there_at_a_time(library: Library, model: Model) -> None:
    seen = []

    def encode(source: Path, target: Path, encoding: Encoding) -> Generator[tuple[int, int], None, None]:
        yield from Encoder()(source, target, encoding)
        seen.append([name.rpartition("/")[2] for name in files(library) if "/" in name])

    stages, report = told(work_on(library, model, encode=encode).compare([BF16, Q8_0]))
    assert seen == [["Thinker-F16.as-BF16.gguf.part"], ["Thinker-F16.as-Q8_0.gguf.part"]]
    assert files(library) == []
    assert [row.ratios for row in report.results] == [Throughput(2, 2, 2)] * 2
    assert (report.original.type, report.original.throughput) == ("original", Throughput(100, 100, 100))
    assert [row.verdict for row in report.results] == ["ok", "ok"]
    assert report.applied is None
    assert stages[:3] == [
        StageEvent("writing BF16", 1, 2),
        StageEvent("measuring BF16", 0, 4),
        StageEvent("measuring BF16", 1, 4),
    ]
    assert [entry.name for entry in library.registry.entries()] == ["mine"]


def test_where_memory_holds_one_file_they_are_opened_in_turn(library: Library, model: Model) -> None:
    room = Room(holds=1)
    _, report = told(work_on(library, model, room).compare([Q8_0]))
    assert report.results[0].ratios == Throughput(2, 2, 2)
    assert room.open == []
    with pytest.raises(EngineError, match="this model cannot be measured here: memory is full"):
        told(work_on(library, model, Room(holds=0)).compare([Q8_0]))
    assert files(library) == []


def test_what_disk_or_memory_does_not_hold_is_left_out_before_anything_is_written(
    library: Library, model: Model
) -> None:
    size = Q8_0.size(model.header.parameters)
    for more, reason_given in (
        ({"free": lambda _: size + 10**9 - 1}, "of disk space, but only 1.02 GB is free"),
        ({"free_memory": lambda: size + HEADROOM - 1}, "of memory, but only 554 MB is free"),
    ):
        encoder = Encoder()
        _, report = told(work_on(library, model, encode=encoder, **more).compare([Q8_0]))
        assert (report.results[0].state, encoder.sources) == ("skipped", [])
        assert report.results[0].verdict.startswith("skipped: needs ")
        assert report.results[0].verdict.endswith(reason_given)
        _, report = told(work_on(library, model, encode=encoder, **more).apply(Q8_0, force=True))
        assert (report.applied, encoder.sources, files(library)) == (None, [], [])


def test_what_says_other_things_is_refused_unless_forced(library: Library, model: Model) -> None:
    room = Room(FAR)
    _, report = told(work_on(library, model, room).apply(Q8_0, force=False))
    assert (report.applied, report.results[0].verdict, files(library)) == (None, "rejected: same top-1 81.1%", [])
    _, report = told(work_on(library, model, room).apply(Q8_0, force=True))
    assert report.applied
    assert library.preferred(model) == report.applied
    at_least = replace(report.results[0], closeness=Closeness(0.97, 0.97, 0.1))
    assert at_least.state == "ok"


def test_what_is_applied_answers_for_its_original_and_has_its_format(library: Library, model: Model) -> None:
    made = applied(library, model, encode=Encoder(real=True))
    assert (made.name, made.reference, made.quantization) == ("mine:Q8_0", "mine:Q8_0", "Q8_0")
    assert made.known_format == model.known_format == "cerebrum"
    assert made.file
    assert made.file.original == library.identity(model)
    assert made.file.sha256 == library.digest(made, lambda *_: None)
    assert files(library) == [made.path.parent.name, f"{made.path.parent.name}/Thinker-F16.as-Q8_0.gguf"]
    assert library.preferred(model) == made
    assert library.preferred(made) == made
    assert library.resolve("mine:Q8_0") == library.resolve("MINE:q8_0") == library.resolve(str(made.path)) == made


def test_a_plain_name_never_means_a_derivative(library: Library, tmp_path: Path) -> None:
    original = pulled(library, write_chatml(tmp_path / "Thinker-F16.gguf"))
    made = applied(library, original, encode=Encoder(real=True))
    for name in (None, "thinker", "Thinker-F16"):
        assert library.resolve(name) == original
    with pytest.raises(ModelNotFound):
        library.resolve("thinker:Q8_0")
    assert library.models() == [original, made]
    [row] = catalogue_rows(library, None)
    assert "Q8_0" not in [each["quantization"] for each in row["quantizations"]]
    assert [each.quantization for each in quantization_plan(library, made, None).candidates] == ["Q8_0"]


def test_the_derivative_applied_last_is_preferred_and_applying_it_again_measures_nothing(
    library: Library, model: Model
) -> None:
    first, second = applied(library, model, Q8_0), applied(library, model, BF16)
    assert library.preferred(model) == second
    room = Room()
    work = work_on(library, model, room)
    assert work.use_existing(Q8_0) == first
    assert (library.preferred(model), room.asked) == (first, 0)
    assert [each.name for each in library.models()] == ["mine", "mine:BF16", "mine:Q8_0"]
    first.path.write_bytes(b"GGUF")
    assert work.use_existing(Q8_0) is None
    assert library.preferred(model) == second
    first.path.unlink()
    second.path.unlink()
    assert library.preferred(model) == model
    with pytest.raises(ModelNotFound, match=r"mine:Q8_0: its file .* is gone") as caught:
        library.resolve("mine:Q8_0")
    assert caught.value.hint == "cerebrum tune mine --reencode --apply Q8_0"


def test_a_derivative_of_an_original_that_has_changed_answers_no_more(library: Library, model: Model) -> None:
    made = applied(library, model)
    write_chatml(model.path, seed=1)
    os.utime(model.path, ns=(1, 1))
    changed = library.resolve("mine")
    assert library.preferred(changed) == changed
    library.digest(changed, lambda *_: None)
    assert library.preferred(library.resolve("mine")).path == model.path
    with pytest.raises(UsageError, match="mine:Q8_0 already exists and was made from another file") as caught:
        told(work_on(library, library.resolve("mine")).apply(Q8_0, force=False))
    assert caught.value.hint == "cerebrum rm mine:Q8_0"
    assert plan_removal(library, library.parse("mine")).execute().startswith("removed mine from the list; ")
    assert (made.path.exists(), library.models()) == (False, [])


def test_a_derivative_is_listed_and_shown_with_its_original(library: Library, model: Model) -> None:
    made = applied(library, model)
    listed = list(rows(library))
    assert [(row["name"], row["source"], row["derived_from"]) for row in listed] == [
        ("mine", "local", None),
        ("mine:Q8_0", "derived", "mine"),
    ]
    out = StringIO()
    print_models(Streams(out, StringIO(), None, False, False, False), listed)
    assert out.getvalue().splitlines()[2].endswith("  as Q8_0 of mine")
    assert describe(library, made, lambda *_: None)["derived_from"] == "mine"
    assert describe(library, model, lambda *_: None)["encodings"] == [
        {
            "name": "mine:Q8_0",
            "type": "Q8_0",
            "path": str(made.path),
            "size": made.path.stat().st_size,
            "preferred": True,
        }
    ]


def test_removing_a_derivative_leaves_its_original_and_not_the_other_way_round(library: Library, model: Model) -> None:
    made = applied(library, model)
    planned = plan_removal(library, library.parse("mine:Q8_0"))
    assert planned.question.startswith("Delete mine:Q8_0, ")
    assert planned.execute() == "deleted mine:Q8_0, freed 225 kB"
    assert (files(library), model.path.exists(), library.preferred(model)) == ([], True, model)
    made = applied(library, model)
    library.registry.set_default("mine:Q8_0")
    planned = plan_removal(library, library.parse("mine"))
    assert (
        planned.question
        == f"Remove mine from the list (its file {model.path} is kept) and delete mine:Q8_0, derived from it?"
    )
    said = planned.execute()
    assert said == f"removed mine from the list; kept {model.path}; deleted mine:Q8_0, freed 225 kB"
    assert (library.models(), files(library), made.path.exists(), library.registry.default) == ([], [], False, None)


def test_a_derivative_stays_while_another_name_has_its_original(library: Library, model: Model) -> None:
    made = applied(library, model)
    again = pulled(library, model.path, "again")
    assert library.preferred(again) == made
    assert (
        plan_removal(library, library.parse("again")).execute()
        == f"removed again from the list; kept {model.path}, mine uses it"
    )
    assert made.path.exists()


def test_a_file_without_a_name_is_re_encoded_under_its_own(library: Library, tmp_path: Path) -> None:
    path = write_chatml(tmp_path / "my own (model).gguf")
    made = applied(library, library.model_at(path))
    assert made.name == "my-own-model:Q8_0"
    assert library.preferred(library.model_at(path)) == made
    other = library.model_at(write_chatml(tmp_path / "my-own-model.gguf", seed=1))
    assert library.preferred(other) == other
    with pytest.raises(UsageError, match="my-own-model:Q8_0 already exists"):
        told(work_on(library, other).apply(Q8_0, force=False))


@pytest.mark.parametrize(
    ("name", "problem"), [("Q9_9", "--apply Q9_9: unknown encoding"), ("f16", "nano is already F16")]
)
def test_only_another_encoding_can_be_applied(name: str, problem: str) -> None:
    model = Model("nano", (NANO,))
    with pytest.raises(UsageError, match=problem):
        find_encoding(name, model)
    assert find_encoding("q8-0", model) == Q8_0


def test_two_cannot_work_at_the_same_time(library: Library, model: Model) -> None:
    first = work_on(library, model).compare([Q8_0])
    next(first)
    with pytest.raises(CerebrumError, match="another cerebrum tune --reencode is running"):
        told(work_on(library, model).compare([Q8_0]))
    first.close()
    assert files(library) == []
    applied(library, model)


def test_a_killed_run_leaves_what_the_next_one_removes(library: Library, model: Model) -> None:
    digest = library.digest(model, lambda *_: None)
    part = library.directory.parent / "encodings" / digest[:16] / "Thinker-F16.as-BF16.gguf.part"
    part.parent.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", KILLED, NANO, part], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    part.touch()  # where llama.cpp was too quick to be killed, or too slow to begin
    part.with_name("Thinker-F16.as-F16.gguf").touch()  # renamed, and not remembered any more
    assert library.preferred(model) == model
    assert library.models() == [model]
    made = applied(library, model)
    assert files(library) == [part.parent.name, f"{part.parent.name}/{made.path.name}"]


def test_whoever_stops_asking_ends_the_process_and_its_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    stages = encode_file(NANO, target, BF16)
    assert next(stages) == (1, 38)
    stages.close()
    assert not target.exists()
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    with contextlib.suppress(FileNotFoundError):
        assert "quantize" not in "".join(
            Path(f"/proc/{child}/cmdline").read_text() for child in children.read_text().split()
        )


def test_a_process_whose_parent_has_died_ends(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "cerebrum_cli.engine.llama.quantize"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    assert child.stdin
    with child.stdin as pipe:
        pipe.write(json.dumps({"source": str(NANO), "target": str(tmp_path / "t"), "file_type": 32}).encode() + b"\n")
    assert child.wait(30) in (0, 1)


def test_llama_cpp_says_why_it_cannot_write_a_model(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(EngineError, match=r"llama\.cpp cannot write BF16: ") as caught:
        list(encode_file(tmp_path / "text.gguf", tmp_path / "target", BF16))
    assert "unknown reason" not in caught.value.message
    with pytest.raises(EngineError, match="the file cannot be written completely") as caught:
        list(encode_file(NANO, tmp_path / "nowhere" / "target", BF16))
    assert caught.value.hint == "free some disk space"
    assert [path.name for path in tmp_path.iterdir()] == ["text.gguf"]
    assert reason([]) == ("unknown reason", "")


def test_a_model_llama_cpp_cannot_write_is_left_out(library: Library, model: Model) -> None:
    def encode(source: Path, target: Path, encoding: Encoding) -> Generator[tuple[int, int], None, None]:
        yield 1, 2
        raise EngineError("llama.cpp cannot write Q8_0: why not")

    _, report = told(work_on(library, model, encode=encode).compare([Q8_0]))
    assert report.results[0].verdict == "skipped: llama.cpp cannot write Q8_0: why not"
    assert files(library) == []


def test_a_split_model_becomes_one_file(library: Library, tmp_path: Path) -> None:
    first = split(write_chatml(tmp_path / "whole.gguf"), tmp_path / "parts")
    model = library.model_at(first)
    assert len(model.paths) > 1
    made = applied(library, model, encode=Encoder(real=True))
    assert made.path.name == f"{first.stem}.as-Q8_0.gguf"
    assert (made.paths, made.header.split_count) == ((made.path,), 1)
    assert made.header.tensor_count == Model("whole", (tmp_path / "whole.gguf",)).header.tensor_count
    assert library.preferred(model) == made


def split(path: Path, folder: Path) -> Path:
    """Return the first of several files that hold a model of `write_chatml` in parts."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    folder.mkdir()
    reader = GGUFReader(path)
    writer = GGUFWriter(folder / "parts.gguf", "llama", split_max_tensors=8)
    for name, value in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, sub = value.types[0], value.types[-1] if value.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value.contents(), kind, sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(folder.iterdir())


def report_of(*rows: EncodingResult) -> Report:
    return Report(EncodingResult("Q4_1", 98_362_432, Throughput(302.1, 133.4, 612.0)), rows)


BETTER = EncodingResult(
    "BF16", 270_885_952, Throughput(766, 133.4, 1469), Throughput(2.536, 1, 2.4), Closeness(0.965, 0.989, 0.002)
)
WORSE = EncodingResult("Q4_0", 91_726_912, Throughput(810, 203, 900), Throughput(2.68, 1.52, 1.47), FAR)
TOO_BIG = EncodingResult("F16", skipped="needs 15.90 GB of memory, but only 8.10 GB is free")
TABLE = """\
type  size    prompt t/s  gen t/s    16 gen t/s  same top-1  KL      verdict
Q4_1  98 MB   302         133        612
BF16  271 MB  766 x2.54   133 x1.00  1469 x2.40  98.9%       0.0020  ok
F16                                                                  skipped
Q4_0  92 MB   810 x2.68   203 x1.52  900 x1.47   81.1%       0.2400  rejected
F16 was skipped: needs 15.90 GB of memory, but only 8.10 GB is free
Q4_0 was rejected: same top-1 81.1%
"""


def test_the_table_has_a_row_for_each_and_a_line_for_what_may_not_answer() -> None:
    out = StringIO()
    print_encodings(Streams(out, StringIO(), None, False, False, False), report_of(BETTER, TOO_BIG, WORSE))
    assert out.getvalue() == TABLE
    assert max(map(len, out.getvalue().splitlines()[:5])) <= 80


def test_the_fastest_that_may_answer_is_recommended() -> None:
    assert report_of(BETTER, TOO_BIG, WORSE).best == BETTER
    assert report_of(TOO_BIG, WORSE).best is None
    assert report_of(replace(BETTER, ratios=Throughput(1.0, 0.99, 1.1))).best is None


def test_the_object_has_speeds_ratios_and_verdicts() -> None:
    value = report_object("starter", "/m.gguf", report_of(BETTER, TOO_BIG))
    assert value["original"] == {
        "type": "Q4_1",
        "path": "/m.gguf",
        "size": 98_362_432,
        "prompt_tokens_per_second": 302.1,
        "tokens_per_second": 133.4,
        "batch_tokens_per_second": 612.0,
    }
    assert value["encodings"][0]["ratios"] == {
        "prompt_tokens_per_second": 2.536,
        "tokens_per_second": 1,
        "batch_tokens_per_second": 2.4,
    }
    keys = ("agreement", "top1_agreement", "mean_kld")
    assert tuple(value["encodings"][0][key] for key in keys) == (0.989, 0.965, 0.002)
    assert value["encodings"][1]["verdict"] == f"skipped: {TOO_BIG.skipped}"
    assert (value["encodings"][1]["agreement"], value["applied"]) == (None, None)


def test_what_cannot_be_applied_is_an_error_that_says_what_to_do(model: Model) -> None:
    with pytest.raises(CerebrumError, match=r"the output of Q4_0 differs: same top-1 81\.1%, below 97%") as caught:
        conclude(cast("Any", None), model, report_of(WORSE), ENCODINGS[3], quiet=True)
    assert (caught.value.exit_code, "--force" in caught.value.hint) == (1, True)
    with pytest.raises(CerebrumError, match=r"F16 not applied: needs") as caught:
        conclude(cast("Any", None), model, report_of(TOO_BIG), ENCODINGS[1], quiet=True)
    assert caught.value.exit_code == 1


def test_a_user_applies_asks_and_removes_an_encoding(tmp_path: Path) -> None:
    user = CommandLine(tmp_path)
    shutil.copy(NANO, tmp_path / "nano.gguf")
    assert user.run("pull", tmp_path / "nano.gguf").code == 0
    done = user.run("tune", "nano", "--reencode", "--apply", "q8_0", "--json")
    assert done.code == 0, done.err
    [row] = done.object["encodings"]
    assert (done.object["applied"], row["type"], row["verdict"]) == ("nano:Q8_0", "Q8_0", "ok")
    assert row["agreement"] >= 0.97
    assert min(row["ratios"].values()) > 0
    reply = user.run("ask", "-m", "nano:Q8_0", "--format", "cerebrum", "--json", "What is 3 plus 4?")
    assert reply.object["final_answer"] == "7"
    again = user.run("tune", "nano", "--reencode", "--apply", "Q8_0")
    said = "nano:Q8_0 already exists and is now used for nano; tune it with cerebrum tune nano, "
    said += "delete it with cerebrum rm nano:Q8_0\n"
    assert (again.code, again.out, again.err) == (0, "", said)
    refused = user.run("tune", "nano:Q8_0", "--reencode")
    assert (refused.code, refused.err.splitlines()[0]) == (2, "error: nano:Q8_0 was made from nano")
    assert [row["name"] for row in json.loads(user.run("list", "--json").out)] == ["nano", "nano:Q8_0"]
    assert user.run("rm", "-y", "nano").code == 0
    assert list((tmp_path / ".cache").rglob("*.gguf*")) == []
