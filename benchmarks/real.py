"""Compare `cerebrum` with its peers on a real model: first token, decode, a whole answer, a batch and an edit.

Needs `make peers`. Usage: python -m benchmarks.real --data DIR --model FILE [--only PART] [--runs N] [--dry-run]

DIR contains gsm8k-200.jsonl, see benchmarks/batch.py. FILE is an instruction model with a chat template, such as
qwen2.5-coder-0.5b.gguf. All programs run on two threads, at temperature 0, without the user's configuration. Each run
is a separate process, alternating with the peer's, after one warm-up each.

first    From exec to the first byte of the reply, for prompts of about SHORT and LONG tokens, against llama-completion
         with the rendered prompt and the same context. Then the second question of a session whose first prompt had
         LONG tokens, against llama-completion with all of it.
decode   STEPS tokens from the start of a text, against llama-bench.
ask      A whole process that answers a question with 32 to 250 tokens, and its peak memory, against llama-completion.
decide   Rows of decisions/news.jsonl in DIR, labelled news, against llama-bench.
batch    Questions of GSM8K in `cerebrum batch`, against llama-server with SERVER_SLOTS slots, of which the best counts,
         and against the limit that llama-batched-bench gives for prompts of one length.
edit     A file of LINES lines, written again with one name changed: tokens per second, against speculative=off, with
         flash attention and without: on CPUs, it evaluates 2 to 63 rows of one sequence slowly behind a long prompt.
"""

from __future__ import annotations

import csv
import inspect
import json
import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.answering import THREADS, Decoding, gsm8k, tokenized_prompts
from benchmarks.batch import best_slots, make_job, server_rounds
from benchmarks.completion import completion_peers, preview
from benchmarks.harness import (
    PEER_PROGRAMS,
    SCRIPT,
    Environment,
    Row,
    alternate,
    argument_parser,
    in_subprocess,
    isolated_environment,
    kernels,
    medians,
    pair,
    peak_private_mib,
    record,
    require_peers,
    run,
    time_to_first_byte,
)
from benchmarks.server import batched_bench
from cerebrum_cli.replies.interface import open_model

SHORT, LONG = 60, 2000  # tokens of a prompt
STEPS = 128
ANSWERS = {32: "<= 0.75", 128: "<= 0.98", 250: "<= 0.98"}  # tokens
DECISIONS = 300
SERVER_SLOTS = (4, 8, 16)
LINES = 200
EXPLAIN = "Explain in detail how a binary search tree works, with insertion, deletion and traversal, and an example."
SECTION, SECTIONS = "Which section is this news from? {text}", "world,sports,business,science and technology"
FOLLOW_UP = "Which of these questions is the hardest?"
EDIT = "Rename the parameter `dialect` to `style` everywhere in this file. Print the whole file, and nothing else.\n\n"


def main() -> None:
    """Measure all parts or one, and record each when it is done."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="directory with gsm8k-200.jsonl")
    parser.add_argument(
        "--model", type=lambda text: Path(text).resolve(), required=True, metavar="FILE", help="an instruction model"
    )
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs [default: 3]")
    parser.add_argument("--questions", type=int, default=64, help="of the batch [default: 64]")
    parser.add_argument("--tokens", type=int, default=160, help="per reply of the batch [default: 160]")
    options = parser.parse_args()
    require_peers()
    for part in [options.only] if options.only else PARTS:
        with tempfile.TemporaryDirectory() as name:
            for row in PARTS[part](options, isolated_environment(Path(name))):
                record("A real model", [row], options.dry_run)


def name_of(model: Path) -> str:
    """Name of a model in a row, with the kernels it runs on: rows of both kinds of processor are kept."""
    return f"{model.stem}, {kernels()}"


def ask_command(model: Path, tokens: int, *arguments: str) -> list[str]:
    """Command that generates at most `tokens` tokens."""
    command = [SCRIPT, "ask", "-m", str(model), "-n", str(tokens), "--set", f"threads={THREADS}", "--temperature", "0"]
    return [*command, *arguments]


def first_rows(options: Namespace, environment: Environment) -> Iterator[Row]:
    """Compare the time to the first byte."""
    model, runs = options.model, options.runs
    text = " ".join(question.prompt or "" for question in gsm8k(options.data, 64)).split()
    for tokens in (SHORT, LONG):
        words = " ".join(text[: tokens * 3 // 4])
        ask = ask_command(model, 1, "--no-log", "--set", "cache_gb=0", words)
        peer = completion_peers(ask, str(model), 1, environment)[0]
        ours_s, peer_s, ratio = alternate(
            lambda: time_to_first_byte(ask, environment),  # noqa: B023
            lambda: time_to_first_byte(peer.command, environment),  # noqa: B023
            runs,
        )
        count = preview(ask, environment)["prompt_tokens"]
        label = (
            f"first token, {name_of(model)}, prompt of {count} tokens / llama-completion --no-warmup, {peer.context}"
        )
        yield Row(label, f"{ours_s:.2f} s", f"{peer_s:.2f} s", ratio, "<= 1.05")
    run(ask_command(model, 1, words), environment=environment)
    again = ask_command(model, 1, "-c", FOLLOW_UP)
    peer = completion_peers(again, str(model), 1, environment)[0]
    count = preview(again, environment)["prompt_tokens"]
    pairs = []
    for number in range(runs):
        run(ask_command(model, 1, words), environment=environment)  # the session that is continued
        pairs.append(
            pair(
                lambda: time_to_first_byte(again, environment),
                lambda: time_to_first_byte(peer.command, environment),
                number,
            )
        )
    ours_s, peer_s, ratio = medians(pairs)
    label = (
        f"first token, {name_of(model)}, second question of a session, {count} tokens / llama-completion --no-warmup"
    )
    yield Row(label, f"{ours_s:.2f} s", f"{peer_s:.2f} s", ratio, "<= 0.6")


def decode_rows(options: Namespace, _: Environment) -> Iterator[Row]:
    """Compare the speed of single-stream decode, in tokens per second."""
    model = options.model
    bench = [str(PEER_PROGRAMS / "llama-bench"), "-m", str(model), "-p", "0", "-n", str(STEPS), "-r", "1"]
    bench += ["-t", str(THREADS), "-o", "json"]
    ours_rate, peer_rate, ratio = alternate(
        lambda: in_subprocess(decode_rate, str(model)),
        lambda: float(json.loads(run(bench).output)[0]["avg_ts"]),
        2 * options.runs,
    )
    label = f"decode of {STEPS} tokens, {name_of(model)}, llama-bench"
    yield Row(label, f"{ours_rate:.1f} tok/s", f"{peer_rate:.1f} tok/s", ratio, ">= 0.97")


def decode_rate(model: str) -> float:
    """Tokens per second of a reply, with weights repacked as in a chat; to be called in a subprocess."""
    with open_model(model, raw=True, temperature=0, speculative=False, threads=THREADS) as loaded:
        reply = loaded.reply("The", max_tokens=STEPS + 1)
        return reply.finish.timings.tokens_per_second


def answer_rows(options: Namespace, environment: Environment) -> Iterator[Row]:
    """Compare a whole process that answers a question, and its memory beside the file, which is mapped."""
    model = options.model
    for tokens, target in ANSWERS.items():
        ask = ask_command(model, tokens, "--set", "cache_gb=0", EXPLAIN)
        peer = completion_peers(ask, str(model), tokens, environment)[0]
        ours_s, peer_s, ratio = alternate(
            lambda: run(ask, environment=environment).seconds,  # noqa: B023
            lambda: run(peer.command).seconds,  # noqa: B023
            options.runs,
        )
        what = f"{tokens} tokens, {name_of(model)}"
        beside = f"llama-completion --no-warmup, {peer.context}"
        yield Row(f"ask, {what}, whole process / {beside}", f"{ours_s:.2f} s", f"{peer_s:.2f} s", ratio, target)
    ours_mib, peer_mib, ratio = alternate(
        lambda: peak_private_mib(ask, environment), lambda: peak_private_mib(peer.command, environment), options.runs
    )
    label = f"ask, {what}, peak memory beside mapped files / {beside}"
    yield Row(label, f"{ours_mib:.0f} MiB", f"{peer_mib:.0f} MiB", ratio, "<= 1.1")


def decide_rows(options: Namespace, environment: Environment) -> Iterator[Row]:
    """Compare the prompt tokens that `cerebrum decide` evaluates a second, in its whole process, with llama-bench."""
    bench = [str(PEER_PROGRAMS / "llama-bench"), "-m", str(options.model), "-p", "512", "-n", "0", "-r", "10"]
    bench += ["-t", str(THREADS), "--repack", "0", "-o", "json"]
    rows = options.data / "decisions" / "news.jsonl"
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "rows.jsonl"
        source.write_text("".join(rows.read_text().splitlines(keepends=True)[:DECISIONS]))
        ours_rate, peer_rate, ratio = medians(
            pair(
                lambda: in_subprocess(decide_rate, options.model, source, environment),
                lambda: float(json.loads(run(bench).output)[0]["avg_ts"]),
                number,
            )
            for number in range(options.runs)
        )
    label = f"decide, {DECISIONS} rows, {name_of(options.model)}, whole process / llama-bench -p 512, not repacked"
    yield Row(label, f"{ours_rate:.1f} tok/s", f"{peer_rate:.1f} tok/s", ratio, ">= 0.95")


def decide_rate(model: Path, source: Path, environment: Environment) -> float:
    """Prompt tokens per second of deciding rows; to be called in a subprocess."""
    start = time.perf_counter()
    from cerebrum_cli.main import run as run_command

    os.environ.update(environment)
    decoding = Decoding()
    words = ["decide", "-m", str(model), SECTION, str(source), "-o", f"{source}.csv", "--choices", SECTIONS, "-q"]
    if code := run_command([*words, "--restart", "--set", f"threads={THREADS}"]):
        raise RuntimeError(f"cerebrum decide failed with exit code {code}")
    return decoding.rows / (time.perf_counter() - start)


def batch_rows(options: Namespace, _: Environment) -> Iterator[Row]:
    """Compare a batch with llama-server at its best, and with the limit for prompts of one length."""
    model, count, tokens = options.model, options.questions, options.tokens
    questions = gsm8k(options.data, count)
    prompts = in_subprocess(tokenized_prompts, str(model), questions)
    length = round(statistics.mean(map(len, prompts)))
    job = make_job(str(model), questions, tokens, None)
    rates = server_rounds(model, job, prompts, SERVER_SLOTS, options.runs)
    best = best_slots([peer for _, peer in rates])
    label = f"batch of {count} questions, {tokens} tokens each, {name_of(model)}"
    ours_rate, peer_rate, ratio = medians([(ours, peer[best]) for ours, peer in rates])
    tried = " or ".join(map(str, SERVER_SLOTS))
    yield Row(
        f"{label}, llama-server -np {tried}",
        f"{ours_rate:.1f} tok/s",
        f"{peer_rate:.1f} tok/s (-np {best})",
        ratio,
        ">= 1.0",
    )
    bounds = {
        slots: slots * tokens / sum(batched_bench(model, length, tokens, slots, THREADS))
        for slots in (*SERVER_SLOTS, 2 * SERVER_SLOTS[-1])
        if slots <= count
    }
    limit = max(bounds.values())
    yield Row(
        f"{label}, llama-batched-bench -npl {' or '.join(map(str, bounds))}",
        f"{ours_rate:.1f} tok/s",
        f"{limit:.1f} tok/s",
        ours_rate / limit,
        ">= 0.98",
    )


def edit_rows(options: Namespace, environment: Environment) -> Iterator[Row]:
    """Compare the speed of an edit with and without speculative decoding, in tokens per second."""
    model = options.model
    lines = inspect.getsource(csv).splitlines(keepends=True)[-LINES:]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "csv.py"
        file.write_text("".join(lines))
        ask = ask_command(model, 4096, "--no-log", "--json", "--set", "cache_gb=0", "-f", str(file), EDIT)
        for attention in ("auto", "off"):
            shares: list[float] = []

            def rate_with(speculative: str) -> float:
                settings = ["--set", f"speculative={speculative}", "--set", f"flash_attn={attention}"]  # noqa: B023
                reply = json.loads(run([*ask, *settings], environment=environment).output)
                shares.append(reply["timings"]["draft_n_accepted"] / reply["completion_tokens"])  # noqa: B023
                return float(reply["timings"]["tokens_per_second"])

            pairs = [pair(lambda: rate_with("on"), lambda: rate_with("off"), number) for number in range(options.runs)]
            ours_rate, peer_rate, ratio = medians(pairs)
            label = f"edit of a file of {len(lines)} lines, {name_of(model)}, flash_attn={attention}, drafts on / off"
            ours = f"{ours_rate:.1f} tok/s ({max(shares):.0%} of the tokens drafted)"
            yield Row(label, ours, f"{peer_rate:.1f} tok/s", ratio, ">= 2.0")


PARTS = {
    "first": first_rows,
    "decode": decode_rows,
    "ask": answer_rows,
    "decide": decide_rows,
    "batch": batch_rows,
    "edit": edit_rows,
}


if __name__ == "__main__":
    main()
