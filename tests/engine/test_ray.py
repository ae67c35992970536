"""`--ray` on the command line: what is refused, and batches on real nodes where Ray is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from batch_files import complete_lines
from command_line import COMMAND, CommandLine
from waiting import TIMEOUT_S, wait_for_end, wait_until

from cerebrum_cli.cli.ray_nodes import NodeFile, find_file
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.models.cache import Cache
from cerebrum_cli.models.fit import Capacity
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.registry import RegistryEntry, hash_file

HAS_RAY = find_spec("ray") is not None
ROWS = 300  # some seconds, on one thread each
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")


@pytest.fixture
def user(tmp_path: Path) -> CommandLine:
    (tmp_path / "in.txt").write_text("".join(f"question {number}\n" for number in range(ROWS)))
    return CommandLine(tmp_path)


def arguments(model: Path, output: str, *more: str) -> list[str]:
    settings = ["-m", str(model), "--parallel", "2", "-n", "100", "--seed", "1", "--ignore-eos"]
    return ["batch", "in.txt", "-o", output, *settings, *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--ray", "nowhere"], "--ray is 'nowhere'"),
        (["--ray", "http://host:8080"], "--ray is 'http://host:8080'"),
        (["--ray", "auto", "--endpoint", "http://localhost:1"], "--ray and --endpoint cannot be used together"),
    ],
)
def test_ray_refuses_other_addresses_and_servers(
    user: CommandLine, chatml_model: Path, more: list[str], problem: str
) -> None:
    done = user.run(*arguments(chatml_model, "out", *more))
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {problem}")


@pytest.mark.slow
@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_ray_that_is_not_installed_is_an_error(user: CommandLine, chatml_model: Path) -> None:
    done = user.run(*arguments(chatml_model, "out", "--ray", "auto"))
    assert done.code == 1
    assert done.err.splitlines() == [
        "error: --ray needs the package ray, which is not installed",
        f" hint: {sys.executable} -m pip install 'cerebrum-cli[ray]'",
    ]


def test_ray_node_finds_the_model_by_its_digest(tmp_path: Path, chatml_model: Path, mistral_model: Path) -> None:
    library = Library((), tmp_path / "models", lambda: Capacity(2**34))
    library.cache = Cache(tmp_path / "hub")
    here = tmp_path / "chatml.gguf"
    shutil.copyfile(chatml_model, here)
    digest = hash_file(here)
    file = NodeFile(f"{digest.sha256} {digest.size}", digest.size, here, "chatml")
    assert find_file(library, file).path == here
    elsewhere = tmp_path / "elsewhere.gguf"
    here.rename(elsewhere)
    shutil.copyfile(mistral_model, here)  # another model at the same path
    with pytest.raises(ModelNotFound, match=f"chatml is not installed .* SHA-256, {digest.sha256[:12]}"):
        find_file(library, file)
    moved = hash_file(elsewhere)
    library.registry.add(RegistryEntry("mine", elsewhere, moved.size, moved.sha256, moved.mtime_ns, "local"))
    assert find_file(library, file).path == elsewhere


class RayBatch:
    """A batch on two nodes of this machine, in a child process."""

    def __init__(self, user: CommandLine, model: Path) -> None:
        self._user = user
        self.process = subprocess.Popen(
            [COMMAND, *arguments(model, "out", "--ray", "local:2")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=user.environment(),
            cwd=user.home,
        )

    @property
    def done(self) -> int:
        return len(complete_lines(self._user.home / "out.partial"))

    def nodes(self) -> list[psutil.Process]:
        """The processes of the nodes, the first one's first."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        found = [child for child in children if child.name() == "raylet"]
        return sorted(found, key=lambda each: each.create_time())

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=4 * TIMEOUT_S)
        return self.process.returncode, out, err


def answers(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@needs_ray
@pytest.mark.slow
def test_ray_node_that_is_killed_loses_no_row(user: CommandLine, chatml_model: Path) -> None:
    local = user.run(*arguments(chatml_model, "local"))
    assert local.code == 0
    batch = RayBatch(user, chatml_model)
    wait_until(lambda: batch.done > 5)
    assert batch.done < ROWS
    node = batch.nodes()[-1]
    for process in [node, *node.children(recursive=True)]:
        process.kill()
    code, out, err = batch.finish()
    assert (code, out) == (0, "")
    assert "is unavailable: its process has ended" in err and "raylet" not in err
    assert answers(user.home / "out") == answers(user.home / "local")
    [record] = json.loads((user.home / "out.meta.json").read_text())["notes"]["servers"]
    assert record["kind"] == "ray"


@needs_ray
@pytest.mark.slow
def test_ray_ends_with_its_killed_command_which_resumes(user: CommandLine, chatml_model: Path) -> None:
    batch = RayBatch(user, chatml_model)
    wait_until(lambda: batch.done > 5)
    nodes = batch.nodes()
    batch.process.kill()
    batch.finish()
    wait_for_end(nodes)
    done = batch.done
    resumed = user.run(*arguments(chatml_model, "out"))
    assert resumed.code == 0 and 5 < done < ROWS
    assert len(answers(user.home / "out")) == ROWS
