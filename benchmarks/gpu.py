"""Compare models on a GPU with llama.cpp's own programs, and the memory plan with what the driver says.

Needs `make peers`, built for the GPU. Usage: python benchmarks/gpu.py [--only PART] [--runs N] [--dry-run] DIR

DIR is where the models of benchmarks/mistral_shape.py are written, once: of 1.5B, of 7B, and a mixture of experts.

stream   One sequence: prefill of PROMPTS tokens and decode of DECODED tokens in a loaded model, against llama-bench;
         the first token of `cerebrum ask`, against llama-completion, from the start of the process.
batch    Questions, replies of REPLY tokens, and 1, 16, 64 and 256 slots, run as `cerebrum batch` does, against
         `llama-server -np` with the same number of slots and of clients, which send the same token ids.
share    Python's part of a decode step of 64 sequences of the 1.5B, whose vocabulary is the largest.
memory   What each plan counts for the GPU, against the memory that is used there after a step of most rows.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from answering import THREADS, BatchJob, run_batch, tokenized_prompts
from batch import checked_rate, make_job, measure_share
from harness import (
    PEER_PROGRAMS,
    SCRIPT,
    Row,
    argument_parser,
    in_subprocess,
    medians,
    pair,
    record,
    require_peers,
    run,
)
from mistral_shape import SHAPES, write_model
from same_text import QUESTIONS
from server import time_server

from cerebrum_cli.batch.input_row import InputRow, prompt_row
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.events import TokenEvent, raise_refusals
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.bindings import accelerators, free_memory
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.memory import LoadPlan
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions, Request
from cerebrum_cli.gguf.header import read_header

PARTS = ("stream", "batch", "share", "memory")
STREAMED = ("1.5b", "7b")
PROMPTS, DECODED = (512, 8192), 128
ROWS = {1: 4, 16: 64, 64: 128, 256: 256}  # questions by slots
REPLY = 64
MIB = 2**20
PADDING = 256
PLANS = (
    ("7b", "all", "auto", ContextOptions(8192, 1, THREADS)),
    ("7b", "all", "auto", ContextOptions(1024, 64, THREADS)),
    ("7b", "20", "auto", ContextOptions(8192, 1, THREADS)),
    ("1.5b", "all", "auto", ContextOptions(512, 256, THREADS)),
    ("1.5b", "all", "auto", ContextOptions(32768, 1, THREADS)),
    ("mixtral", "all", "off", ContextOptions(8192, 1, THREADS)),
    ("mixtral", "all", "4", ContextOptions(8192, 1, THREADS)),
)


def main() -> None:
    """Measure all parts or one."""
    parser = argument_parser(__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if not in_subprocess(accelerators):
        sys.exit("llama.cpp finds no GPU")
    require_peers()
    measure = {"stream": stream_rows, "batch": batch_rows, "share": share_rows, "memory": memory_rows}
    for part in [options.only] if options.only else PARTS:
        for row in measure[part](options):
            record([row], options.dry_run)
            sys.stdout.flush()


def model_file(options: Namespace, name: str) -> Path:
    """A file of one of the shapes, which is written unless it exists."""
    path: Path = options.directory / f"{name}.gguf"
    if not path.exists():
        write_model(path, SHAPES[name])
    return path


def stream_rows(options: Namespace) -> Iterator[Row]:
    """Rows of a single sequence."""
    for name in STREAMED:
        path = model_file(options, name)
        ours: dict[int, float] = in_subprocess(stream_rates, path, options.runs)
        bench = [PEER_PROGRAMS / "llama-bench", "-m", path, "-p", ",".join(map(str, PROMPTS)), "-n", DECODED]
        bench += ["-t", THREADS, "-ngl", 99, "-fa", 1, "-r", options.runs, "-o", "json"]
        results = json.loads(run([str(part) for part in bench]).output)
        peers = {each["n_prompt"]: statistics.median(each["samples_ts"]) for each in results}
        for prompt, rate in ours.items():
            what = f"prefill of {prompt:,} tokens" if prompt else f"decode of {DECODED} tokens"
            yield Row(f"GPU, {name}, {what}, llama-bench", *per_second(rate, peers[prompt]), ">= 0.97")
        yield first_token_row(name, path, options.runs)


def per_second(ours: float, peer: float) -> tuple[str, str, float]:
    return f"{ours:.1f} tok/s", f"{peer:.1f} tok/s", ours / peer


def first_token_row(name: str, path: Path, runs: int) -> Row:
    """Compare the first byte that `ask` writes with llama-completion's."""
    question = ["--raw", " ".join(QUESTIONS[:4])]
    ask = [SCRIPT, "ask", "-m", str(path), "-n", "4", "--set", "cache_gb=0", *question]
    peer = [str(PEER_PROGRAMS / "llama-completion"), "--no-warmup", "-m", str(path), "-n", "4", "-no-cnv", "-c", "512"]
    peer += ["--no-display-prompt", "-p", question[1]]
    run(ask), run(peer)
    pairs = [pair(lambda: run(ask).first_byte_s, lambda: run(peer).first_byte_s, number) for number in range(runs)]
    ours_s, peer_s, ratio = medians(pairs)
    label = f"GPU, {name}, ask, first token from the start of the process, llama-completion --no-warmup"
    return Row(label, f"{ours_s:.2f} s", f"{peer_s:.2f} s", ratio, "<= 1.5")


def stream_rates(path: Path, runs: int) -> dict[int, float]:
    """Prompt tokens per second by length of the prompt, and decoded tokens per second as 0; in a subprocess."""
    rates: dict[int, float] = {}
    with opened(path, ContextOptions(max(PROMPTS) + PADDING, 1, THREADS)) as (engine, _):
        for prompt in PROMPTS:
            rates[prompt] = prompt / statistics.median([timed(engine, prompt, 1)[0] for _ in range(runs + 1)][1:])
        rates[0] = DECODED / statistics.median([timed(engine, 1, DECODED + 1)[1] for _ in range(runs + 1)][1:])
    return rates


def timed(engine: LocalEngine, prompt: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first token of a reply to a random prompt, and from it to the last."""
    request = Request(random_tokens(prompt), SamplingParams(max_tokens=tokens, temperature=0), Ask(ignore_eos=True))
    start = time.perf_counter()
    events = raise_refusals(engine.complete([request]))
    times = [time.perf_counter() for event in events if isinstance(event, TokenEvent) and event.tokens]
    if len(times) != tokens:
        raise RuntimeError(f"{len(times)} events, not {tokens}")
    return times[0] - start, times[-1] - times[0]


def random_tokens(count: int) -> tuple[int, ...]:
    return tuple(random.choices(range(1000, 31000), k=count))


@contextmanager
def opened(
    path: Path, context: ContextOptions, gpu_layers: str = "all", cpu_moe: str = "auto"
) -> Iterator[tuple[LocalEngine, list[LlamaBackend]]]:
    """A loaded engine, and its backend."""
    options = LoadOptions(
        path,
        32768,
        read_header(path).sizes,
        context,
        gpu_layers,
        cpu_moe=cpu_moe,
        repack=False,
        whole_context=True,
        is_verified=True,
    )
    backends: list[LlamaBackend] = []

    def open_backend(emit, stop):  # type: ignore[no-untyped-def]
        backends.append(open_llama(options, emit, stop))
        return backends[0]

    with closing(LocalEngine(open_backend)) as engine:
        list(engine.load())
        yield engine, backends


def batch_rows(options: Namespace) -> Iterator[Row]:
    """Rows of each number of slots."""
    for name in STREAMED:
        path = model_file(options, name)
        for slots, count in ROWS.items():
            questions = [numbered_question(number) for number in range(1, count + 1)]
            prompts = in_subprocess(tokenized_prompts, str(path), questions)
            ours = checked_rate(in_subprocess(run_batch, job(path, questions, slots)), prompts, REPLY)
            peer = count * REPLY / time_server(path, prompts, REPLY, THREADS, slots)
            label = f"GPU, {name}, batch of {count} questions, {REPLY} tokens each, {slots} slots, llama-server"
            yield Row(label, *per_second(ours, peer), ">= 1.0")


def job(path: Path, questions: list[InputRow], slots: int) -> BatchJob:
    return make_job(str(path), questions, REPLY, slots)


def numbered_question(number: int) -> InputRow:
    """A question like no other from its first word on."""
    texts = [QUESTIONS[(number * 7 + each) % len(QUESTIONS)] for each in range(3)]
    return prompt_row(number, number, f"{number * 7919} {' '.join(texts)}")


def share_rows(options: Namespace) -> Iterator[Row]:
    """The row of Python's share."""
    questions = [numbered_question(number) for number in range(1, 65)]
    measured = job(model_file(options, "1.5b"), questions, 64)
    shares = [in_subprocess(measure_share, measured) for _ in range(options.runs)]
    engine_s = statistics.median(share.engine for share in shares)
    main_s = statistics.median(share.main for share in shares)
    step_s = statistics.median(share.step for share in shares)
    ours = f"{engine_s * 1e3:.2f} ms, and {main_s * 1e3:.2f} ms beside it"
    label = "GPU, 1.5b, Python in a decode step of 64 sequences"
    yield Row(label, ours, f"{step_s * 1e3:.1f} ms", engine_s / step_s, "<= 0.1")


def memory_rows(options: Namespace) -> Iterator[Row]:
    """Rows of each plan."""
    for name, layers, experts, context in PLANS:
        planned, used = in_subprocess(planned_and_used, model_file(options, name), layers, experts, context)
        slots = f"{context.slots} slots of {context.length}"
        label = f"GPU memory, {name}, layers {layers}, cpu_moe={experts}, {slots}, plan and driver"
        yield Row(label, f"{planned / MIB:.0f} MiB", f"{used / MIB:.0f} MiB", used / planned, "<= 1.0")


def planned_and_used(path: Path, layers: str, experts: str, context: ContextOptions) -> tuple[int, int]:
    """Bytes planned for the GPU, and those used after prefill and decode of all slots; in a subprocess."""
    before = free_memory().devices[0].free
    with opened(path, context, layers, experts) as (engine, (backend,)):
        params = SamplingParams(max_tokens=8, temperature=0)
        length = max(64, min(context.length - 16, 2048) // context.slots)
        requests = [Request(random_tokens(length), params, Ask(ignore_eos=True)) for _ in range(context.slots)]
        list(raise_refusals(engine.complete(requests)))
        used = before - free_memory().devices[0].free
        needs = LoadPlan(backend._plan.sizes, backend._made_with, backend._plan.offloaded).needs
    return needs.devices[0], used


if __name__ == "__main__":
    main()
