"""How fast models come and are listed: a 1 GB file from a Hub on loopback against `hf download`; `list` and `show`.

python benchmarks/pull.py [--runs N] [--gigabytes G]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import ROOT, SCRIPT, Row, alternate, record, run

sys.path.append(str(ROOT / "tests"))

import numpy as np
from gguf import GGUFWriter
from hub_server import HubServer

REPOSITORY, FILE = "someone/Model-GGUF", "Model-F16.gguf"
PEER = str(Path(sys.executable).parent / "hf")
INTERPRETER = [sys.executable, "-c", "pass"]


def main() -> None:
    """Measure, and record what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT) as name, HubServer() as hub:
        directory = Path(name)
        hub.repository(REPOSITORY, {FILE: written(directory / FILE, int(arguments.gigabytes * 1e9))})
        os.environ.update(hub.environment(directory / "home"))
        os.environ.update(XDG_DATA_HOME=str(directory / "data"), XDG_CONFIG_HOME=str(directory / "config"))
        record([downloading(directory, arguments), *listing(arguments.runs)])


def written(path: Path, size: int) -> Path:
    """Write a GGUF file of about that many bytes: one tensor of noise."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("output.weight", np.random.default_rng(0).integers(0, 255, size, np.uint8).view(np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def downloading(directory: Path, arguments: argparse.Namespace) -> Row:
    """Compare whole downloads into an empty cache on the same disk, checksum included in ours."""

    def timed(command: list[str]) -> Callable[[], float]:
        def measure() -> float:
            shutil.rmtree(directory / "home", ignore_errors=True)
            os.sync()  # what the last run left to be written is not this one's
            return run(command).seconds

        return measure

    ours, peer, ratio = alternate(
        timed([SCRIPT, "pull", "--quiet", REPOSITORY]), timed([PEER, "download", REPOSITORY, FILE]), arguments.runs
    )
    what = f"pull {arguments.gigabytes:g} GB from loopback, checksum included / hf download"
    return Row(what, f"{ours:.2f} s", f"{peer:.2f} s", ratio, "<= 1.6")


def listing(runs: int) -> list[Row]:
    """Compare looking at what is here with starting Python."""
    run([SCRIPT, "pull", "--quiet", REPOSITORY])
    rows = []
    for what, command in (
        ("list", ["list"]),
        ("list --available", ["list", "--available"]),
        ("show", ["show", REPOSITORY]),
    ):
        ours, peer, ratio = alternate(
            lambda: run([SCRIPT, *command]).seconds,  # noqa: B023
            lambda: run(INTERPRETER).seconds,
            3 * runs,
        )
        rows.append(Row(f"{what} / python -c pass", f"{ours * 1e3:.0f} ms", f"{peer * 1e3:.0f} ms", ratio, "<= 25"))
    return rows


if __name__ == "__main__":
    main()
