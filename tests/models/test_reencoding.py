"""Re-encoding of weights: comparing and applying encodings, and how the library treats derivatives."""

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
from gguf_files import rewritten
from libraries import open_library
from tiny_models import write_chatml

from cerebrum_cli.cli.reencoding import conclude
from cerebrum_cli.core.errors import CerebrumError, EngineError, ModelNotFound, UsageError
from cerebrum_cli.core.events import NoticeEvent, StageEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.doctor.selftest import NANO
from cerebrum_cli.engine.llama.quantize import failure_reason
from cerebrum_cli.engine.load_options import LoadOptions, Tuning
from cerebrum_cli.engine.memory import HEADROOM, Device
from cerebrum_cli.engine.protocol import Closeness, FileBench, Job, LoadStats, TrialError
from cerebrum_cli.engine.quantization import ENCODINGS, Encoding, encode_file, fast_encodings
from cerebrum_cli.models.derivatives import DerivativeStore
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.listing import catalogue_rows, describe, quantization_plan, rows
from cerebrum_cli.models.model import Model
from cerebrum_cli.models.pull import Puller
from cerebrum_cli.models.removal import plan_removal
from cerebrum_cli.terminal.reports.encoding import print_encodings, report_object
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_models
from cerebrum_cli.tune.reencoding import EncodingResult, Reencoding, Report, Throughput, find_encoding
from cerebrum_cli.tune.tune import trial_options

pytestmark = pytest.mark.slow

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
ROOT = Path(__file__).parents[2]
SIMILAR, DIFFERENT = Closeness(0.96, 0.99, 0.002), Closeness(0.702, 0.811, 0.24)
Q8_0 = next(each for each in ENCODINGS if each.name == "Q8_0")
BF16 = next(each for each in ENCODINGS if each.name == "BF16")

# Starts re-encoding and kills itself when llama.cpp reports the first tensor.
KILLED_SCRIPT = """
import os, signal, sys
from pathlib import Path
from cerebrum_cli.engine.quantization import ENCODINGS, encode_file
for done, total in encode_file(Path(sys.argv[1]), Path(sys.argv[2]), ENCODINGS[0]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class SilentProgress:
    """Ignores the progress of a pull."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Ignore progress."""

    def notice(self, event: NoticeEvent) -> None:
        """Ignore a notice."""


@dataclass
class Memory:
    """Benches that share a memory: its capacity in files, the open ones, and the closeness of new files."""

    closeness: Closeness = SIMILAR
    capacity: int = 2
    open: list[Path] = field(default_factory=list)
    measurements: int = 0

    def bench(self, options: LoadOptions, paths: tuple[Path, ...]) -> FileBench:
        """Create a bench for one file."""
        assert options.path == paths[0]
        return cast("FileBench", FileBenchFake(self, options.path))


@dataclass
class FileBenchFake:
    """A bench that measures nothing: the original has 100 tokens per second, other files 200."""

    memory: Memory
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
        return self.memory.closeness

    def load_stats(self, tuning: Tuning) -> LoadStats:
        return LoadStats(0.0, 0)

    def release(self) -> None:
        if self.path in self.memory.open:
            self.memory.open.remove(self.path)

    close = release

    def _open(self) -> None:
        self.memory.measurements += 1
        if self.path not in self.memory.open:
            if len(self.memory.open) == self.memory.capacity:
                raise TrialError("memory is full")
            self.memory.open.append(self.path)


@dataclass
class FakeEncoder:
    """Encodes with llama.cpp if `real`, or just copies the file; records its sources."""

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
    """A library whose catalogue contains the model thinker."""
    return open_library(tmp_path, CATALOGUE)


@pytest.fixture
def model(library: Library, tmp_path: Path) -> Model:
    """A local file, pulled as `mine`."""
    return pull(library, write_chatml(tmp_path / "Thinker-F16.gguf"), "mine")


def no_merge(*_: object) -> Model:
    raise AssertionError("nothing is merged here")


def pull(library: Library, path: Path, name: str | None = None) -> Model:
    return Puller(library, SilentProgress(), no_merge, offline=True).pull(library.parse(str(path)), name)


def reencoding_of(library: Library, model: Model, memory: Memory | None = None, **more: Any) -> Reencoding:
    """A re-encoding that measures nothing and only copies files."""
    store = DerivativeStore(
        library.directory.parent / "encodings", **({"free_bytes": more.pop("free")} if "free" in more else {})
    )
    given: dict[str, Any] = {"free_memory": lambda: 2**40, "encode": FakeEncoder(), **more}
    return Reencoding(library, model, trial_options(model, Settings()), store, (memory or Memory()).bench, **given)


def run_stages(events: Generator[StageEvent, None, T]) -> tuple[list[StageEvent], T]:
    """Collect the events and the result of a generator."""
    stages: list[StageEvent] = []
    while True:
        try:
            stages.append(next(events))
        except StopIteration as stopped:
            return stages, cast("T", stopped.value)


def apply(library: Library, model: Model, encoding: Encoding = Q8_0, **more: Any) -> Model:
    """Apply an encoding, and get the derivative."""
    _, report = run_stages(reencoding_of(library, model, **more).apply(encoding, force=False))
    assert report.applied
    return report.applied


def encoding_files(library: Library) -> list[str]:
    """Paths in the directory of derivatives, except its lock."""
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
def test_fast_encodings_depend_on_the_processor_and_the_original(
    features: str, original: str | None, names: list[str]
) -> None:
    assert [each.name for each in fast_encodings(features.split(), original)] == names


def test_encoding_size_is_never_underestimated(tmp_path: Path) -> None:
    parameters = Model("nano", (NANO,)).header.parameters
    for encoding in ENCODINGS:
        stages = list(encode_file(NANO, tmp_path / "file", encoding))
        assert stages[-1][0] == stages[-1][1] == len(stages)
        assert (tmp_path / "file").stat().st_size <= encoding.size(parameters)


def test_compare_deletes_each_file_after_its_measurement(library: Library, model: Model) -> None:
    seen = []

    def encode(source: Path, target: Path, encoding: Encoding) -> Generator[tuple[int, int], None, None]:
        yield from FakeEncoder()(source, target, encoding)
        seen.append([name.rpartition("/")[2] for name in encoding_files(library) if "/" in name])

    stages, report = run_stages(reencoding_of(library, model, encode=encode).compare([BF16, Q8_0]))
    assert seen == [["Thinker-F16.as-BF16.gguf.part"], ["Thinker-F16.as-Q8_0.gguf.part"]]
    assert encoding_files(library) == []
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


def test_compare_loads_files_in_turn_if_memory_holds_one(library: Library, model: Model) -> None:
    memory = Memory(capacity=1)
    _, report = run_stages(reencoding_of(library, model, memory).compare([Q8_0]))
    assert report.results[0].ratios == Throughput(2, 2, 2)
    assert memory.open == []
    with pytest.raises(EngineError, match="cannot measure this model: memory is full"):
        run_stages(reencoding_of(library, model, Memory(capacity=0)).compare([Q8_0]))
    assert encoding_files(library) == []


def test_compare_skips_encodings_that_do_not_fit(library: Library, model: Model) -> None:
    size = Q8_0.size(model.header.parameters)
    for more, reason in (
        ({"free": lambda _: size + 10**9 - 1}, "of disk space, but only 1.02 GB is free"),
        ({"free_memory": lambda: size + HEADROOM - 1}, "of memory, but only 554 MB is free"),
    ):
        encoder = FakeEncoder()
        _, report = run_stages(reencoding_of(library, model, encode=encoder, **more).compare([Q8_0]))
        assert (report.results[0].state, encoder.sources) == ("skipped", [])
        assert report.results[0].verdict.startswith("skipped: needs ")
        assert report.results[0].verdict.endswith(reason)
        _, report = run_stages(reencoding_of(library, model, encode=encoder, **more).apply(Q8_0, force=True))
        assert (report.applied, encoder.sources, encoding_files(library)) == (None, [], [])


def test_apply_rejects_changed_output_unless_forced(library: Library, model: Model) -> None:
    memory = Memory(DIFFERENT)
    _, report = run_stages(reencoding_of(library, model, memory).apply(Q8_0, force=False))
    assert (report.applied, report.results[0].verdict, encoding_files(library)) == (
        None,
        "rejected: same top-1 81.1%",
        [],
    )
    _, report = run_stages(reencoding_of(library, model, memory).apply(Q8_0, force=True))
    assert report.applied
    assert library.preferred(model) == report.applied
    at_least = replace(report.results[0], closeness=Closeness(0.97, 0.97, 0.1))
    assert at_least.state == "ok"


def test_applied_encoding_is_preferred_and_has_the_format(library: Library, model: Model) -> None:
    derivative = apply(library, model, encode=FakeEncoder(real=True))
    assert (derivative.name, derivative.reference, derivative.quantization) == ("mine:Q8_0", "mine:Q8_0", "Q8_0")
    assert derivative.known_format == model.known_format == "cerebrum"
    digest = library.digest(derivative, lambda *_: None).sha256
    assert derivative.file and (derivative.file.original, derivative.file.sha256) == (library.identity(model), digest)
    assert encoding_files(library) == [
        derivative.path.parent.name,
        f"{derivative.path.parent.name}/Thinker-F16.as-Q8_0.gguf",
    ]
    assert library.preferred(model) == library.preferred(derivative) == derivative
    assert (
        library.resolve("mine:Q8_0")
        == library.resolve("MINE:q8_0")
        == library.resolve(str(derivative.path))
        == derivative
    )


def test_library_never_resolves_a_plain_name_to_a_derivative(library: Library, tmp_path: Path) -> None:
    original = pull(library, write_chatml(tmp_path / "Thinker-F16.gguf"))
    derivative = apply(library, original, encode=FakeEncoder(real=True))
    for name in (None, "thinker", "Thinker-F16"):
        assert library.resolve(name) == original
    with pytest.raises(ModelNotFound):
        library.resolve("thinker:Q8_0")
    assert library.models() == [original, derivative]
    [row] = catalogue_rows(library, None)
    assert "Q8_0" not in [each["quantization"] for each in row["quantizations"]]
    assert [each.quantization for each in quantization_plan(library, derivative, None).candidates] == ["Q8_0"]


def test_encoding_applied_last_is_preferred(library: Library, model: Model) -> None:
    first, second = apply(library, model, Q8_0), apply(library, model, BF16)
    assert library.preferred(model) == second
    memory = Memory()
    reencoding = reencoding_of(library, model, memory)
    assert reencoding.use_existing(Q8_0) == first
    assert (library.preferred(model), memory.measurements) == (first, 0)
    assert [each.name for each in library.models()] == ["mine", "mine:BF16", "mine:Q8_0"]
    first.path.write_bytes(b"GGUF")
    assert reencoding.use_existing(Q8_0) is None
    assert library.preferred(model) == second
    first.path.unlink()
    second.path.unlink()
    assert library.preferred(model) == model
    with pytest.raises(ModelNotFound, match=r"mine:Q8_0: its file .* no longer exists") as caught:
        library.resolve("mine:Q8_0")
    assert caught.value.hint == "cerebrum tune mine --reencode --apply Q8_0"


def test_derivative_of_a_changed_original_is_not_used(library: Library, model: Model) -> None:
    derivative = apply(library, model)
    write_chatml(model.path, seed=1)
    os.utime(model.path, ns=(1, 1))
    changed = library.resolve("mine")
    assert library.preferred(changed) == changed
    library.digest(changed, lambda *_: None)
    assert library.preferred(library.resolve("mine")).path == model.path
    with pytest.raises(UsageError, match="mine:Q8_0 already exists and was made from another file") as caught:
        run_stages(reencoding_of(library, library.resolve("mine")).apply(Q8_0, force=False))
    assert caught.value.hint == "cerebrum rm mine:Q8_0"
    assert plan_removal(library, library.parse("mine")).execute().startswith("removed mine from the list; ")
    assert (derivative.path.exists(), library.models()) == (False, [])


def test_derivative_is_listed_and_shown_with_its_original(library: Library, model: Model) -> None:
    derivative = apply(library, model)
    listed = list(rows(library))
    assert [(row["name"], row["source"], row["derived_from"]) for row in listed] == [
        ("mine", "local", None),
        ("mine:Q8_0", "derived", "mine"),
    ]
    out = StringIO()
    print_models(Streams(out, StringIO(), None, False, False, False), listed)
    assert out.getvalue().splitlines()[2].endswith("  as Q8_0 of mine")
    assert describe(library, derivative, lambda *_: None)["derived_from"] == "mine"
    assert describe(library, model, lambda *_: None)["encodings"] == [
        {
            "name": "mine:Q8_0",
            "type": "Q8_0",
            "path": str(derivative.path),
            "size": derivative.path.stat().st_size,
            "preferred": True,
        }
    ]


def test_removing_an_original_deletes_its_derivatives(library: Library, model: Model) -> None:
    derivative = apply(library, model)
    planned = plan_removal(library, library.parse("mine:Q8_0"))
    assert planned.question.startswith("Delete mine:Q8_0, ")
    assert planned.execute() == "deleted mine:Q8_0, freed 225 kB"
    assert (encoding_files(library), model.path.exists(), library.preferred(model)) == ([], True, model)
    derivative = apply(library, model)
    library.registry.set_default("mine:Q8_0")
    planned = plan_removal(library, library.parse("mine"))
    assert (
        planned.question
        == f"Remove mine from the list (its file {model.path} is kept) and delete mine:Q8_0, derived from it?"
    )
    message = planned.execute()
    assert message == f"removed mine from the list; kept {model.path}; deleted mine:Q8_0, freed 225 kB"
    assert (library.models(), encoding_files(library), derivative.path.exists(), library.registry.default) == (
        [],
        [],
        False,
        None,
    )


def test_derivative_is_kept_while_another_name_has_its_original(library: Library, model: Model) -> None:
    derivative = apply(library, model)
    again = pull(library, model.path, "again")
    assert library.preferred(again) == derivative
    assert (
        plan_removal(library, library.parse("again")).execute()
        == f"removed again from the list; kept {model.path}, mine uses it"
    )
    assert derivative.path.exists()


def test_derivative_of_an_unnamed_file_is_named_after_the_file(library: Library, tmp_path: Path) -> None:
    path = write_chatml(tmp_path / "my own (model).gguf")
    derivative = apply(library, library.model_at(path))
    assert derivative.name == "my-own-model:Q8_0"
    assert library.preferred(library.model_at(path)) == derivative
    other = library.model_at(write_chatml(tmp_path / "my-own-model.gguf", seed=1))
    assert library.preferred(other) == other
    with pytest.raises(UsageError, match="my-own-model:Q8_0 already exists"):
        run_stages(reencoding_of(library, other).apply(Q8_0, force=False))


@pytest.mark.parametrize(
    ("name", "problem"), [("Q9_9", "--apply Q9_9: unknown encoding"), ("f16", "nano is already F16")]
)
def test_find_encoding_rejects_unknown_and_current_encodings(name: str, problem: str) -> None:
    model = Model("nano", (NANO,))
    with pytest.raises(UsageError, match=problem):
        find_encoding(name, model)
    assert find_encoding("q8-0", model) == Q8_0


def test_reencoding_runs_only_once_at_a_time(library: Library, model: Model) -> None:
    first = reencoding_of(library, model).compare([Q8_0])
    next(first)
    with pytest.raises(CerebrumError, match="another cerebrum tune --reencode is running"):
        run_stages(reencoding_of(library, model).compare([Q8_0]))
    first.close()
    assert encoding_files(library) == []
    apply(library, model)


def test_reencoding_deletes_files_of_a_killed_run(library: Library, model: Model) -> None:
    digest = library.digest(model, lambda *_: None).sha256
    part = library.directory.parent / "encodings" / digest[:16] / "Thinker-F16.as-BF16.gguf.part"
    part.parent.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", KILLED_SCRIPT, NANO, part], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    part.touch()  # in case llama.cpp finished before it was killed, or had not started
    part.with_name("Thinker-F16.as-F16.gguf").touch()  # renamed, but not registered
    assert library.preferred(model) == model
    assert library.models() == [model]
    derivative = apply(library, model)
    assert encoding_files(library) == [part.parent.name, f"{part.parent.name}/{derivative.path.name}"]


def test_encode_file_stopped_early_kills_the_process(tmp_path: Path) -> None:
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


def test_encoding_process_exits_with_its_parent(tmp_path: Path) -> None:
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


def test_encode_file_reports_the_reason_of_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(EngineError, match=r"llama\.cpp cannot write BF16: ") as caught:
        list(encode_file(tmp_path / "text.gguf", tmp_path / "target", BF16))
    assert "unknown reason" not in caught.value.message
    with pytest.raises(EngineError, match="the file cannot be written completely") as caught:
        list(encode_file(NANO, tmp_path / "nowhere" / "target", BF16))
    assert caught.value.hint == "free some disk space"
    assert [path.name for path in tmp_path.iterdir()] == ["text.gguf"]
    assert failure_reason([]) == ("unknown reason", "")


def test_compare_skips_an_encoding_that_cannot_be_written(library: Library, model: Model) -> None:
    def encode(source: Path, target: Path, encoding: Encoding) -> Generator[tuple[int, int], None, None]:
        yield 1, 2
        raise EngineError("llama.cpp cannot write Q8_0: why not")

    _, report = run_stages(reencoding_of(library, model, encode=encode).compare([Q8_0]))
    assert report.results[0].verdict == "skipped: llama.cpp cannot write Q8_0: why not"
    assert encoding_files(library) == []


def test_split_model_is_encoded_into_one_file(library: Library, tmp_path: Path) -> None:
    first = rewritten(write_chatml(tmp_path / "whole.gguf"), tmp_path / "parts.gguf", tensors=8)
    model = library.model_at(first)
    assert len(model.paths) > 1
    derivative = apply(library, model, encode=FakeEncoder(real=True))
    assert derivative.path.name == f"{first.stem}.as-Q8_0.gguf"
    assert (derivative.paths, derivative.header.split_count) == ((derivative.path,), 1)
    assert derivative.header.tensor_count == Model("whole", (tmp_path / "whole.gguf",)).header.tensor_count
    assert library.preferred(model) == derivative


def report_of(*rows: EncodingResult) -> Report:
    return Report(EncodingResult("Q4_1", 98_362_432, Throughput(302.1, 133.4, 612.0)), rows)


BETTER = EncodingResult(
    "BF16", 270_885_952, Throughput(766, 133.4, 1469), Throughput(2.536, 1, 2.4), Closeness(0.965, 0.989, 0.002)
)
WORSE = EncodingResult("Q4_0", 91_726_912, Throughput(810, 203, 900), Throughput(2.68, 1.52, 1.47), DIFFERENT)
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


def test_encodings_table_explains_rejected_and_skipped_rows() -> None:
    out = StringIO()
    print_encodings(Streams(out, StringIO(), None, False, False, False), report_of(BETTER, TOO_BIG, WORSE))
    assert out.getvalue() == TABLE
    assert max(map(len, out.getvalue().splitlines()[:5])) <= 80


def test_report_recommends_the_fastest_accepted_encoding() -> None:
    assert report_of(BETTER, TOO_BIG, WORSE).best == BETTER
    assert report_of(TOO_BIG, WORSE).best is None
    assert report_of(replace(BETTER, ratios=Throughput(1.0, 0.99, 1.1))).best is None


def test_report_object_has_speeds_ratios_and_verdicts() -> None:
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


def test_conclude_reports_why_an_encoding_was_not_applied(model: Model) -> None:
    with pytest.raises(CerebrumError, match=r"the output of Q4_0 differs: same top-1 81\.1%, below 97%") as caught:
        conclude(cast("Any", None), model, report_of(WORSE), ENCODINGS[3], quiet=True)
    assert (caught.value.exit_code, "--force" in caught.value.hint) == (1, True)
    with pytest.raises(CerebrumError, match=r"F16 not applied: needs") as caught:
        conclude(cast("Any", None), model, report_of(TOO_BIG), ENCODINGS[1], quiet=True)
    assert caught.value.exit_code == 1


def test_tune_reencode_applies_and_rm_removes_an_encoding(tmp_path: Path) -> None:
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
    message = "nano:Q8_0 already exists and is now used for nano; tune it with cerebrum tune nano, "
    message += "delete it with cerebrum rm nano:Q8_0\n"
    assert (again.code, again.out, again.err) == (0, "", message)
    rejected = user.run("tune", "nano:Q8_0", "--reencode")
    assert (rejected.code, rejected.err.splitlines()[0]) == (2, "error: nano:Q8_0 was made from nano")
    assert [row["name"] for row in json.loads(user.run("list", "--json").out)] == ["nano", "nano:Q8_0"]
    assert user.run("rm", "-y", "nano").code == 0
    assert list((tmp_path / ".cache").rglob("*.gguf*")) == []
