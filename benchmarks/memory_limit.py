"""Answer a batch of 64 rows in a cgroup with little memory, and count how often weights are read from disk again.

Usage (as root): python benchmarks/memory_limit.py MODEL.gguf [GB]

The file is dropped from the system's cache first, so that the cgroup is charged for what it maps. A batch that was
planned as if mapped weights took no memory evicts them: each step then causes thousands of major page faults.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import FinishEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.load_options import GgufFile, LoadOptions
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.memory import ContextOptions
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.formats.plain import CEREBRUM
from cerebrum_cli.gguf.header import read_header

ROWS, MAX_TOKENS = 64, 16
CGROUPS, NAME = Path("/sys/fs/cgroup"), "cerebrum-memory-limit"


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Run this process in a new cgroup, of version 1 or 2, with so many bytes of memory."""
    is_v1 = (CGROUPS / "memory").is_dir()
    root = CGROUPS / "memory" if is_v1 else CGROUPS
    group, limit = root / NAME, "memory.limit_in_bytes" if is_v1 else "memory.max"
    previous = next(
        line for line in Path("/proc/self/cgroup").read_text().splitlines() if "memory" in line or not is_v1
    )
    group.mkdir()
    try:
        (group / limit).write_text(str(size))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (root / previous.split(":")[2].lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def answer_rows(path: Path) -> None:
    """Answer the rows, and print the number of slots, the time and the major page faults after loading."""
    header = read_header(path)
    context = ContextOptions(slots=ROWS, batch_invariant=True)
    options = LoadOptions(GgufFile(path, header.context_length or 2048, header.sizes), context, repack=False)
    engine = LocalEngine(lambda emit, stop: open_llama(options, emit, stop))
    try:
        list(engine.load())
        faults, start = major_faults(), time.perf_counter()
        questions = (Conversation().user(f"What is {row} times 17, and why?") for row in range(ROWS))
        prompts = [engine.vocabulary.tokenize(CEREBRUM.render(question)) for question in questions]
        requests = [Request(prompt, SamplingParams(max_tokens=MAX_TOKENS), ignore_eos=True) for prompt in prompts]
        finished = sum(isinstance(event, FinishEvent) for event in engine.generate(requests))
        seconds = time.perf_counter() - start
        print(f"{finished} rows with {engine.backend.slots} slots in {seconds:.0f} s: {major_faults() - faults} faults")
    finally:
        engine.close()


def major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python benchmarks/memory_limit.py MODEL.gguf [GB]")
    model = Path(sys.argv[1])
    with model.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with memory_limit(int(float(sys.argv[2] if len(sys.argv) > 2 else 6) * 1e9)):
        answer_rows(model)
