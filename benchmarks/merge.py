"""How fast layers are stacked: the 12.25B of a model of the 7B's shape, against `cp` of as many bytes on the same disk.

Usage: python benchmarks/merge.py --shape FILE [--runs N] [--on DIR]

FILE is what benchmarks/mistral_shape.py writes. The merge is hashed while it is written, and on disk when it is over,
which a copy is not. Then every block is compared with the one it is of, and the merge is asked. DIR, on the disk to be
measured, is the folder of FILE unless it is given, and needs 16 GB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from gguf import GGUFReader
from harness import SCRIPT, Row, in_subprocess, isolated_environment, medians, record, run

RECIPE = "cerebrum-12b"
PARAMETERS, TENSORS = 12_476_420_096, 507
MEMORY = 1000.0  # MB that a merge may take at most
LINEAR = """merge_method: linear
models:
- {{model: {0}, parameters: {{weight: 0.3}}}}
- {{model: {1}, parameters: {{weight: 0.7}}}}
"""


def main() -> None:
    """Measure, check what has come of it, and record both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=Path, metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--on", type=Path, metavar="DIR", help="a folder on the disk to be measured")
    given = parser.parse_args()
    if given.shape is None:
        sys.exit("left out: stacking layers takes a model of Mistral-7B's shape, --shape FILE")
    with tempfile.TemporaryDirectory(dir=given.on or given.shape.parent) as name:
        folder = Path(name)
        os.environ.update(isolated_environment(folder))
        rows = stacking(given.shape, folder, given.runs)
        in_subprocess(
            check, given.shape, folder / "merged.gguf"
        )  # what it maps would count as memory of what is started next
        record([*rows, combining(given.shape, folder)])


def stacking(shape: Path, folder: Path, runs: int) -> list[Row]:
    """Compare whole merges with whole copies, in turn."""
    merged, copied = folder / "merged.gguf", folder / "copied.gguf"
    command = [SCRIPT, "merge", RECIPE, "--source", f"cerebrum-7b={shape}", "-o", str(merged), "-q", "-y"]
    command += ["--name", "stack"]
    pairs, peaks = [], []
    for number in range(runs + 1):
        merged.unlink(missing_ok=True)
        settle()
        ours = run(command)
        settle()
        peer = run(["cp", *(["--reflink=never"] if sys.platform == "linux" else []), str(merged), str(copied)])
        copied.unlink()
        if number:  # the first pair warms up
            pairs.append((peer.seconds, ours.seconds))
            peaks.append(ours.peak_mib * 2**20 / 1e6)
        print(f"merge {ours.seconds:.1f} s, cp {peer.seconds:.1f} s, peak {ours.peak_mib:.0f} MiB", flush=True)
    peer_s, ours_s, ratio = medians(pairs)
    size = merged.stat().st_size / 1e9
    peak = median(peaks)
    return [
        Row(
            f"7B shape stacked to 56 layers, {size:.2f} GB with SHA-256 / cp: speed",
            f"{size / ours_s:.2f} GB/s",
            f"{size / peer_s:.2f} GB/s",
            ratio,
            ">= 0.5",
        ),
        Row("7B shape stacked to 56 layers: peak memory", f"{peak:.0f} MB", f"{MEMORY:.0f} MB", peak / MEMORY, "<= 1"),
    ]


def settle() -> None:
    """Have all that was written on disk, so that nobody waits for what somebody else wrote."""
    os.sync()


def check(shape: Path, merged: Path) -> None:
    """Compare every tensor with the one it is of, and ask the merge; raise where anything is not as it should be."""
    source = {tensor.name: tensor for tensor in GGUFReader(shape).tensors}
    tensors = GGUFReader(merged).tensors
    parameters = sum(int(tensor.n_elements) for tensor in tensors)
    if (parameters, len(tensors)) != (PARAMETERS, TENSORS):
        raise RuntimeError(f"{parameters} parameters in {len(tensors)} tensors")
    for tensor in tensors:
        if tensor.data.tobytes() != source[origin(tensor.name)].data.tobytes():
            raise RuntimeError(f"{tensor.name} is not {origin(tensor.name)}")
    said = run([SCRIPT, "ask", "-m", "stack", "--format", "cerebrum", "-n", "4", "--ctx", "256", "--no-log", "Hello"])
    print(f"all {TENSORS} tensors are their sources' byte for byte, and the merge says {said.output!r}")


def origin(name: str) -> str:
    """Return which tensor of the 7B becomes one of the stack: slices of eight layers begin at every fourth."""
    if not name.startswith("blk."):
        return name
    _, layer, rest = name.split(".", 2)
    number = int(layer)
    return f"blk.{4 * (number // 8) + number % 8}.{rest}"


def combining(shape: Path, folder: Path) -> Row:
    """Measure the memory of a weighted merge: of half of the 7B's layers, with themselves in another file."""
    (folder / "merged.gguf").unlink()
    other = folder / "other.gguf"
    subprocess.run(["cp", str(shape), str(other)], check=True)
    recipe = folder / "linear.yaml"
    recipe.write_text(LINEAR.format(shape, other))
    done = run([SCRIPT, "merge", str(recipe), "-o", str(folder / "linear.gguf"), "--type", "Q8_0", "-q"])
    peak = done.peak_mib * 2**20 / 1e6
    speed = 2 * shape.stat().st_size / 1e9 / done.seconds
    print(f"linear of two models of the 7B's shape to Q8_0: {done.seconds:.0f} s, {speed:.2f} GB/s read")
    what = "linear merge of two 7B shapes to Q8_0: peak memory"
    return Row(what, f"{peak:.0f} MB", f"{MEMORY:.0f} MB", peak / MEMORY, "<= 1")


if __name__ == "__main__":
    main()
