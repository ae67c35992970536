"""`--ray`: what the head does with answers of workers, and runs on real nodes."""

import itertools
import json
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import ray_machines
from command_line import CommandLine, assert_error
from guard import Guard, own_addresses
from row_files import output_object, stored_lines
from tiny_models import Shape, write_quantized
from waiting import wait_until

from cerebrum_cli.cluster import ray_adapter as ray_cluster
from cerebrum_cli.cluster.distribution import Distribution, NodeJob, find_file
from cerebrum_cli.cluster.ray_adapter import Message, Plan, WorkerReport
from cerebrum_cli.core.errors import EndpointError, ModelNotFound, NoServerError
from cerebrum_cli.core.events import Event, NoticeEvent, ServersEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.capacity import Capacity
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.registry import Registry, RegistryEntry, hash_file
from cerebrum_cli.replies.source import ModelSource
from cerebrum_cli.rows.read import InputOptions
from cerebrum_cli.rows.record import Record
from cerebrum_cli.rows.run import open_run
from cerebrum_cli.servers.endpoint import Endpoint, Servers

ROWS = 40
CLUSTER_ROWS = 80
READY = WorkerReport("1", "here", "", "", ({"kind": "vllm", "model": "m"},))
Messages = Iterator[Message]


def answered(block: bytes, text: str = "") -> bytes:
    rows = {place: output_object(row, text=text or row.prompt) for place, row in pickle.loads(block)}
    return pickle.dumps((rows, 10 * len(rows), [NoticeEvent("slow", "")]))


@dataclass
class ScriptedCluster:
    """Two workers that answer the blocks of each pass as scripted, and after that all of them.

    `asked` are the sizes of the blocks of each pass.
    """

    passes: Sequence[Callable[[list[bytes]], Messages]] = ()
    asked: list[list[int]] = field(default_factory=list)

    def __call__(self, plan: Plan) -> Generator[Message, None, None]:
        blocks = list(plan(2)[0])
        script = self.passes[len(self.asked)] if len(self.asked) < len(self.passes) else None
        self.asked.append([len(pickle.loads(block)) for block in blocks])
        yield READY
        yield from script(blocks) if script else map(answered, blocks)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"question {number}\n" for number in range(ROWS)))
    return path


def node_job(identity: str, path: Path, servers: Servers | None = None) -> NodeJob:
    source = ModelSource(cast("Any", None), cast("Any", None), Settings(), servers=servers)
    return NodeJob(identity, path, "chatml", source, cast("Any", None))


def answer_all(source: Path, cluster: ScriptedCluster, **options: Any) -> tuple[list[Event], list[str]]:
    """The events of a batch on a cluster, and its texts; a first call may fail, and a second resumes."""
    job, output = node_job("", source, Servers(())), source.with_name("out.jsonl")
    with (
        InputOptions().open(source, None, output) as rows,
        closing(open_run(output, Record({"model": "a"}), rows)) as results,
    ):
        events = list(Distribution(cluster, job, results, 64, **options).answer())
        results.complete()
        assert results.notes["servers"][0] == READY.records[0]
    return events, [json.loads(line)["text"] for line in output.read_text().splitlines()]


EXPECTED = [f"question {number}" for number in range(ROWS)]


def test_ray_rows_of_lost_workers_are_answered_again(source: Path) -> None:
    cluster = ScriptedCluster([lambda blocks: map(answered, blocks[::2])])
    events, texts = answer_all(source, cluster)
    assert (texts, cluster.asked) == (EXPECTED, [[5] * 8, [3] * 6 + [2]])
    assert [event.tokens for event in events if isinstance(event, ServersEvent)][-1] == 10 * ROWS


def test_ray_answers_a_row_once_and_reports_a_problem_once(source: Path) -> None:
    bad = WorkerReport("2", "there", "no model", "pull it", ())
    cluster = ScriptedCluster([lambda blocks: iter([bad, *map(answered, blocks), answered(blocks[0], "late"), bad])])
    events, texts = answer_all(source, cluster)
    assert texts == EXPECTED and len(cluster.asked) == 1
    notices = [event for event in events if isinstance(event, NoticeEvent)]
    assert notices == [NoticeEvent("there is not used: no model", "pull it"), NoticeEvent("slow", "")]


SILENT = "no worker is running"
BUSY = WorkerReport("1", "here", "busy", "", ())
OTHER = WorkerReport("2", "there", "", "", ({"kind": "vllm", "model": "n"},))
DIFFER = "the servers differ: there has n, here has m"
BAD = [WorkerReport(worker, worker, "no model", "pull it", ()) for worker in ("1", "2")]


def silent(*messages: Message) -> Messages:
    yield from messages
    while True:
        yield None


@pytest.mark.parametrize(
    ("passes", "patience", "error", "asked"),
    [
        ([lambda blocks: iter([answered(blocks[0]), *BAD])], 1.0, r"no worker could start \(2: no model\)", []),
        ([lambda blocks: iter([answered(blocks[0]), OTHER])], 1.0, DIFFER, []),
        ([lambda _: silent(BUSY)], 0.01, SILENT, []),
        ([lambda blocks: silent(*[b""] * 20, answered(blocks[0]))], 0.02, SILENT, []),
        ([lambda _: iter(())] * 3, 1.0, "workers fail on 40 rows, beginning with row 1", [ROWS, 8, 8]),
        ([lambda _: iter(itertools.repeat(READY))], 0.02, SILENT, []),
    ],
)
def test_ray_ends_with_an_error_and_resumes(
    source: Path, passes: Sequence[Callable[[list[bytes]], Messages]], patience: float, error: str, asked: list[int]
) -> None:
    cluster = ScriptedCluster(passes)
    with pytest.raises(EndpointError, match=error):
        answer_all(source, cluster, patience=patience)
    assert not asked or [sum(sizes) for sizes in cluster.asked] == asked  # one by one, only a few
    assert answer_all(source, ScriptedCluster())[1] == EXPECTED


def test_ray_node_finds_the_model_by_its_digest(tmp_path: Path, chatml_model: Path, mistral_model: Path) -> None:
    library = Library((), Registry(tmp_path / "models"), lambda: Capacity(2**34))
    library.cache = Cache(tmp_path / "hub")
    here = tmp_path / "chatml.gguf"
    shutil.copyfile(chatml_model, here)
    digest = hash_file(here)
    file = node_job(f"{digest.sha256} {digest.size}", here)
    assert find_file(library, file).path == here
    elsewhere = tmp_path / "elsewhere.gguf"
    here.rename(elsewhere)
    shutil.copyfile(mistral_model, here)  # another model at the same path
    with pytest.raises(ModelNotFound, match=f"chatml is not installed .* SHA-256 {digest.sha256[:12]}"):
        find_file(library, file)
    moved = hash_file(elsewhere)
    library.registry.add(RegistryEntry("mine", elsewhere, moved.size, moved.sha256, moved.mtime_ns, "local"))
    assert find_file(library, file).path == elsewhere


def test_ray_node_says_that_its_server_does_not_answer(
    tmp_path: Path, chatml_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    digest = hash_file(chatml_model)
    servers = Servers([Endpoint("there", "http://127.0.0.1:9")])
    with pytest.raises(NoServerError, match="no server answers"):
        list(node_job(f"{digest.sha256} {digest.size}", chatml_model, servers)(1))


@pytest.mark.slow
def test_ray_that_ends_within_a_message_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, sys; pipe = int(sys.argv[1]); os.read(pipe, 1000); os.write(pipe, bytes([0, 0, 0, 9, 1]))"
    monkeypatch.setattr(ray_cluster, "PROGRAM", program)
    with pytest.raises(EndpointError, match="Ray ended unexpectedly"):
        list(ray_cluster.answer_blocks("", None, False, lambda _: (iter(()), cast("Any", None), 1)))


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    home = tmp_path_factory.mktemp("ray")
    (home / "in.txt").write_text("".join(f"question {number}\n" for number in range(CLUSTER_ROWS)))
    (home / "own.jinja").write_text("{{ messages[0].content }}")
    for module in ("pickle", "ray", "cerebrum_cli", "jinja2", "numpy"):  # nothing imports them
        (home / f"{module}.py").write_text("raise SystemExit")
    return CommandLine(home)


@pytest.fixture(scope="module")
def address(user: CommandLine) -> Iterator[str]:
    """The address of a cluster with a bad node and a good one."""
    with subprocess.Popen(
        [sys.executable, ray_machines.__file__, user.home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=user.environment({"RAY_USAGE_STATS_ENABLED": "0"}),
    ) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert address, "Ray did not start"
        yield address
        process.communicate()


def arguments(model: Path, output: str, address: str = "", tokens: int = 200) -> list[str]:
    settings = ["--parallel", "4", "-n", str(tokens), "--seed", "1", "--format", "own.jinja"]
    return ["batch", "in.txt", "-o", output, "-m", str(model), *settings, *(["--ray", address] if address else [])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "module", "directory", "problem"),
    [
        ("127.0.0.1:9", "", "/tmp", "no Ray cluster at 127.0.0.1:9: Connection refused"),
        ("local", "raise RuntimeError('no wheels')", "/tmp", "ray cannot be imported: no wheels"),
        ("local", "", "/proc", "Ray cannot start: /proc/"),
    ],
)
def test_ray_that_cannot_start_is_an_error_with_its_reason(
    user: CommandLine,
    chatml_model: Path,
    tmp_path: Path,
    address: str,
    module: str | None,
    directory: str,
    problem: str,
) -> None:
    if module:
        (tmp_path / "ray.py").write_text(module)
    env = {"PYTHONPATH": str(tmp_path), "RAY_TMPDIR": directory}
    refused = user.run(*arguments(chatml_model, "refused", address), env=env)
    assert_error(refused, 1, problem, f"0 of {CLUSTER_ROWS} rows done; run it again to resume")


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory of Ray, whose sockets need a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield directory


@pytest.mark.slow
def test_ray_local_leaves_no_processes_or_files(
    user: CommandLine, chatml_model: Path, directory: str, tmp_path: Path, guard_library: Path | None
) -> None:
    outside = ("8.8.8.8", "2001:4860:4860::8888")  # of a UDP socket, which sends nothing, and shows the own address
    own = (*outside, "0.0.0.0", socket.gethostname(), *own_addresses())
    guard = Guard(guard_library, tmp_path / "guard", [user.home, Path(directory)], own)
    local = user.run(
        *arguments(chatml_model, "node", "local:2", tokens=20), env={**guard.environment, "RAY_TMPDIR": directory}
    )
    assert (local.code, local.out) == (0, "")
    assert guard.violations() == []
    assert len((user.home / "node").read_text().splitlines()) == CLUSTER_ROWS
    assert not commands_with(directory)
    assert not list(Path(directory, "ray").glob("session_2*"))


@pytest.mark.slow
def test_ray_that_starts_ends_with_a_killed_command(user: CommandLine, chatml_model: Path, directory: str) -> None:
    command = user.start(*arguments(chatml_model, "killed", "local"), env={"RAY_TMPDIR": directory})
    wait_until(lambda: bool(commands_with(directory)))
    command.kill()
    command.communicate()
    killed = time.monotonic()
    wait_until(lambda: not commands_with(directory))
    assert time.monotonic() - killed < 5


def commands_with(text: str) -> list[str]:
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if text in command]


def busy_workers() -> list[psutil.Process]:
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    titles = {process: process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"])}
    return [each for each, (title, *_) in titles.items() if each.pid in own and title.startswith("ray::Worker.answer")]


def texts_in(path: Path) -> list[tuple[int, int, str]]:
    return [(row["id"], row["seed"], row["text"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.mark.slow
def test_ray_batch_survives_a_lost_worker_and_a_bad_node(user: CommandLine, tmp_path: Path, address: str) -> None:
    # of a model of floats, texts depend on the rows beside them
    model, home = write_quantized(tmp_path / "tiny.gguf", shape=Shape(), encoding="Q8_0"), user.home
    batch = user.start(*arguments(model, "out", address))
    while len(stored_lines(home / "out.partial")) < 20 or not (workers := busy_workers()):
        assert batch.poll() is None, batch.communicate()
        time.sleep(0.1)
    with suppress(psutil.NoSuchProcess):  # it has just ended
        workers[0].kill()
    local = user.run(*arguments(model, "local"))
    out, err = batch.communicate()
    assert (batch.returncode, out, local.code) == (0, b"", 0)
    assert b"is not used: it has version 99 of cerebrum, not" in err and b"aylet" not in err
    assert texts_in(home / "out") == texts_in(home / "local")
    assert all(json.loads(line)["server"] for line in (home / "out").read_text().splitlines())
    [record] = json.loads((home / "out.meta.json").read_text())["notes"]["servers"]
    assert record["kind"] == "ray"
