"""Time a merge that stacks the layers of a 7B-shaped model to 12.5B, against `cp` of as many bytes on the same disk.

Usage: python benchmarks/merge.py --shape FILE [--runs N] [--on DIR]

FILE is a model that benchmarks/mistral_shape.py has written. Both sides are timed until their file is on the disk, and
start with an idle disk and with what they read in the page cache. Unlike a copy, the merge is hashed while it is
written. Every tensor of a merge is compared with its source, and it generates a reply.
DIR is a directory on the disk to measure, with 16 GB free [default: the directory of FILE].
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from gguf import GGUFReader
from harness import SCRIPT, Row, Run, in_subprocess, isolated_environment, medians, pair, record, run

RECIPE = "cerebrum-12b"
PARAMETERS, TENSORS = 12_476_420_096, 507
MAX_MEMORY_MB = 1000.0  # limit for the peak memory of a merge
LINEAR = """merge_method: linear
models:
- {{model: {0}, parameters: {{weight: 0.3}}}}
- {{model: {1}, parameters: {{weight: 0.7}}}}
"""


def main() -> None:
    """Measure and verify the merges, and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=Path, metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--on", type=Path, metavar="DIR", help="a directory on the disk to measure")
    options = parser.parse_args()
    if options.shape is None:
        sys.exit("skipped: merging needs a model of Mistral-7B's shape, --shape FILE")
    with tempfile.TemporaryDirectory(dir=options.on or options.shape.parent) as name:
        directory = Path(name)
        os.environ.update(isolated_environment(directory))
        rows = stacking_rows(options.shape, directory, options.runs)
        in_subprocess(verify_stack, options.shape, directory / "stack.gguf")  # maps files, which would count as memory
        record([*rows, combining_row(options.shape, directory)])


def stacking_rows(shape: Path, directory: Path, runs: int) -> list[Row]:
    """Compare merges with copies of as many bytes, in pairs; the file that is copied is the first merge, `stack`."""
    stack, merged, copied = (directory / f"{name}.gguf" for name in ("stack", "merged", "copied"))
    merge = [SCRIPT, "merge", RECIPE, "--source", f"cerebrum-7b={shape}", "-q", "-y"]
    copy = ["cp", *(["--reflink=never"] if sys.platform == "linux" else []), str(stack), str(copied)]
    run([*merge, "-o", str(stack), "--name", "stack"])
    time_writing(copy, stack, copied)  # the warm-up
    pairs, peaks = [], []
    for number in range(runs):
        ours, peer = pair(
            lambda: time_writing([*merge, "-o", str(merged), "--name", "again"], shape, merged),
            lambda: time_writing(copy, stack, copied),
            number,
        )
        pairs.append((peer.seconds, ours.seconds))
        peaks.append(ours.peak_mib * 2**20 / 1e6)
        print(f"merge {ours.seconds:.1f} s, cp {peer.seconds:.1f} s, peak {ours.peak_mib:.0f} MiB", flush=True)
    peer_s, ours_s, ratio = medians(pairs)
    size = stack.stat().st_size / 1e9
    peak = median(peaks)
    return [
        Row(
            f"7B shape stacked to 56 layers, {size:.2f} GB with SHA-256 / cp, both to the disk: speed",
            f"{size / ours_s:.2f} GB/s",
            f"{size / peer_s:.2f} GB/s",
            ratio,
            ">= 0.5",
        ),
        Row(
            "7B shape stacked to 56 layers: peak memory",
            f"{peak:.0f} MB",
            f"{MAX_MEMORY_MB:.0f} MB",
            peak / MAX_MEMORY_MB,
            "<= 1",
        ),
    ]


def time_writing(command: Sequence[str], source: Path, target: Path) -> Run:
    """Run a command that writes a file, which is removed, and time it until that file is on the disk.

    Before, pending writes are flushed and the source is read into the page cache.
    """
    os.sync()
    with source.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass
    start = time.perf_counter()
    finished = run(command)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return finished._replace(seconds=seconds)


def verify_stack(shape: Path, merged: Path) -> None:
    """Compare every tensor with its source, and generate a reply; RuntimeError if anything is wrong."""
    source = {tensor.name: tensor for tensor in GGUFReader(shape).tensors}
    tensors = GGUFReader(merged).tensors
    parameters = sum(int(tensor.n_elements) for tensor in tensors)
    if (parameters, len(tensors)) != (PARAMETERS, TENSORS):
        raise RuntimeError(f"{parameters} parameters in {len(tensors)} tensors")
    for tensor in tensors:
        if tensor.data.tobytes() != source[source_name(tensor.name)].data.tobytes():
            raise RuntimeError(f"{tensor.name} differs from {source_name(tensor.name)}")
    reply = run([SCRIPT, "ask", "-m", "stack", "--format", "cerebrum", "-n", "4", "--ctx", "256", "--no-log", "Hello"])
    print(f"all {TENSORS} tensors are identical to their sources; the merge generates {reply.output!r}")


def source_name(name: str) -> str:
    """Source of a tensor of the stack: slices of eight layers, one starting at every fourth layer."""
    if not name.startswith("blk."):
        return name
    _, layer, rest = name.split(".", 2)
    number = int(layer)
    return f"blk.{4 * (number // 8) + number % 8}.{rest}"


def combining_row(shape: Path, directory: Path) -> Row:
    """Measure the peak memory of a linear merge of a model and its copy."""
    (directory / "stack.gguf").unlink()
    copy = directory / "other.gguf"
    subprocess.run(["cp", str(shape), str(copy)], check=True)
    recipe = directory / "linear.yaml"
    recipe.write_text(LINEAR.format(shape, copy))
    finished = run([SCRIPT, "merge", str(recipe), "-o", str(directory / "linear.gguf"), "--type", "Q8_0", "-q"])
    peak = finished.peak_mib * 2**20 / 1e6
    speed = 2 * shape.stat().st_size / 1e9 / finished.seconds
    print(f"linear merge of two 7B shapes to Q8_0: {finished.seconds:.0f} s, reading {speed:.2f} GB/s")
    label = "linear merge of two 7B shapes to Q8_0: peak memory"
    return Row(label, f"{peak:.0f} MB", f"{MAX_MEMORY_MB:.0f} MB", peak / MAX_MEMORY_MB, "<= 1")


if __name__ == "__main__":
    main()
