"""Time `pull` of a 1 GB file from a Hub server on loopback against `hf download`, and time `list` and `show`.

Also time it from a server that limits each connection to 20 MB/s, against a pull over one connection, and count
the bytes which that server sends to a pull that is killed three times, and to one of which it breaks five connections.

Usage: python -m benchmarks.pull [--runs N] [--gigabytes G] [--dry-run]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import ROOT, SCRIPT, Row, alternate, argument_parser, record, run

sys.path += [str(ROOT / "tests" / "support" / folder) for folder in ("", "hub", "servers")]

import numpy as np
from gguf import GGUFWriter
from hub_server import Fault, HubServer

REPOSITORY, FILE = "someone/Model-GGUF", "Model-F16.gguf"
LIMITED, LIMITED_BYTES = "someone/Limited-GGUF", 400_000_000
SLOW = Fault(part="cdn", path=LIMITED, times=None, bytes_per_second=20_000_000)  # each connection
PEER = str(Path(sys.executable).parent / "hf")
ONE_CONNECTION = """
from cerebrum_cli.library import download
download.MAX_CONNECTIONS = 1
import runpy
runpy.run_module("cerebrum_cli", run_name="__main__")
"""
INTERPRETER = [sys.executable, "-c", "pass"]


def main() -> None:
    """Measure all rows and record them."""
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT) as name, HubServer() as hub:
        directory = Path(name)
        hub.repository(REPOSITORY, {FILE: write_model(directory / FILE, int(arguments.gigabytes * 1e9))})
        os.environ.update(hub.environment(directory / "home"))
        os.environ.update(XDG_DATA_HOME=str(directory / "data"), XDG_CONFIG_HOME=str(directory / "config"))
        hub.repository(LIMITED, {FILE: write_model(directory / "limited.gguf", LIMITED_BYTES)})
        limited = limited_row(directory, hub, arguments.runs)
        losses = [kills_row(directory, hub, limited), breaks_row(directory, hub)]
        rows = [limited, *losses, download_row(directory, arguments), *listing_rows(arguments.runs)]
        record("Downloads", rows, arguments.dry_run)


def write_model(path: Path, size: int) -> Path:
    """Write a GGUF file of about `size` bytes: one tensor of noise."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("output.weight", np.random.default_rng(0).integers(0, 255, size, np.uint8).view(np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def download_row(directory: Path, arguments: argparse.Namespace) -> Row:
    """Compare whole downloads into an empty cache on the same disk; ours includes the checksum."""

    def timed(command: list[str]) -> Callable[[], float]:
        def measure() -> float:
            shutil.rmtree(directory / "home", ignore_errors=True)
            os.sync()  # the previous run's pending writes would slow down this one
            return run(command).seconds

        return measure

    ours, peer, ratio = alternate(
        timed([SCRIPT, "pull", "--quiet", REPOSITORY]), timed([PEER, "download", REPOSITORY, FILE]), arguments.runs
    )
    label = f"pull {arguments.gigabytes:g} GB from loopback, checksum included / hf download"
    return Row(label, f"{ours:.2f} s", f"{peer:.2f} s", ratio, "<= 1.6")


def limited_row(directory: Path, hub: HubServer, runs: int) -> Row:
    """Compare several connections with one."""

    def timed(command: list[str]) -> Callable[[], float]:
        def measure() -> float:
            shutil.rmtree(directory / "home", ignore_errors=True)
            armed = hub.arm(SLOW)
            seconds = run([*command, "pull", "--quiet", LIMITED]).seconds
            armed.disarm()
            return seconds

        return measure

    ours, peer, ratio = alternate(timed([SCRIPT]), timed([sys.executable, "-c", ONE_CONNECTION]), runs)
    label = "pull 400 MB at 20 MB/s a connection / over one connection"
    return Row(label, f"{ours:.2f} s", f"{peer:.2f} s", ratio, "<= 0.3")


def kills_row(directory: Path, hub: HubServer, limited: Row) -> Row:
    """Kill a pull three times, at random moments of the time that a whole one takes."""
    seconds = float(limited.ours.split()[0])
    clear(directory, hub)
    armed = hub.arm(SLOW)
    for _ in range(3):
        process = subprocess.Popen([SCRIPT, "pull", "--quiet", LIMITED])
        time.sleep(random.uniform(seconds / 4, seconds / 2))
        process.kill()
        process.wait()
    run([SCRIPT, "pull", "--quiet", LIMITED])
    armed.disarm()
    return sent_row(hub, "killed three times")


def breaks_row(directory: Path, hub: HubServer) -> Row:
    """Reset five connections of a pull at random bytes of their pieces."""
    clear(directory, hub)
    breaks = [
        replace(SLOW, times=1, let_through=1, cut_after=random.randrange(16_000_000), reset=True) for _ in range(5)
    ]
    armed = [hub.arm(fault) for fault in (*breaks, SLOW)]
    run([SCRIPT, "pull", "--quiet", LIMITED])
    for each in armed:
        each.disarm()
    return sent_row(hub, "five connections reset")


def clear(directory: Path, hub: HubServer) -> None:
    shutil.rmtree(directory / "home", ignore_errors=True)
    hub.log.clear()


def sent_row(hub: HubServer, what: str) -> Row:
    """Compare the bytes that the server has sent with those of the file."""
    sent = sum(request.sent for request in hub.log.requests("cdn"))
    label = f"pull 400 MB, {what}: bytes sent / bytes of the file"
    return Row(label, f"{sent / 1e6:.1f} MB", f"{LIMITED_BYTES / 1e6:.0f} MB", sent / LIMITED_BYTES, "<= 1.1")


def listing_rows(runs: int) -> list[Row]:
    """Compare `list` and `show` with the start of a bare Python interpreter."""
    run([SCRIPT, "pull", "--quiet", REPOSITORY])
    rows = []
    for label, command in (
        ("list", ["list"]),
        ("list --available", ["list", "--available"]),
        ("show", ["show", REPOSITORY]),
    ):
        ours, peer, ratio = alternate(
            lambda: run([SCRIPT, *command]).seconds,  # noqa: B023
            lambda: run(INTERPRETER).seconds,
            3 * runs,
        )
        rows.append(Row(f"{label} / python -c pass", f"{ours * 1e3:.0f} ms", f"{peer * 1e3:.0f} ms", ratio, "<= 25"))
    return rows


if __name__ == "__main__":
    main()
