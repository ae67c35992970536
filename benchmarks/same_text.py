"""Compare greedy replies of a real model with llama.cpp's own, token by token.

Needs `make peers`. Usage: python benchmarks/same_text.py --data DIR --model FILE [--plain] [--prompts N] [--dry-run]

DIR contains the three question files of benchmarks/all.py. FILE is a model with a chat template; one
without needs --plain, the format of Cerebrum. The N prompts are chat turns, programming tasks and questions in 20
languages, and every LONG_EVERYth is a text of about LONG words. Replies have at most TOKENS tokens.

Each way of answering runs as its command on two threads, without the user's configuration. Its replies are compared
with those of llama-server to the same token ids, in one slot and without a cache, through the same build of llama.cpp
and with as many tokens in a step. Where a reply differs, the reference's two likeliest tokens at that place are shown
with their log probabilities.

The kernels that llama.cpp takes depend on the number of rows in a step, so its last bits do, and of quantized weights
much more than these. What that alone does is measured with llama-server in SLOTS slots: where its replies differ from
its own in one slot, and by how much a log probability changes while the tokens are still equal. A gap between two
tokens is a tie of rounding if it is below twice that change, or if replies of llama-server itself differ at such a gap.

After `scripts/build.sh avx2 --target .venv/avx2`, with PYTHONPATH=.venv/avx2, both sides use the kernels of processors
without AVX-512.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from all import GSM8K, HUMAN_EVAL, MT_BENCH
from answering import THREADS, loaded_model
from completion import preview
from harness import (
    SCRIPT,
    Environment,
    argument_parser,
    in_subprocess,
    isolated_environment,
    kernels,
    machine,
    record_lines,
    require_peers,
    run,
)
from server import LlamaServer, completion, running_server

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.settings import fold
from cerebrum_cli.engine.memory import CPU_UBATCH
from cerebrum_cli.formats.prompt_format import CEREBRUM

TOKENS, LONG, LONG_EVERY, CONTEXT = 24, 1400, 20, 4096
SLOTS = 8
FOLLOW_UP = "Say that again in one short sentence."
HEADING = "Greedy replies, and llama.cpp's own"
HEAD = """
Replies of at most {tokens} tokens, and those of llama-server in one slot to the same token ids; written by
`benchmarks/same_text.py`.
A gap is the difference of log probabilities of the reference's two likeliest tokens where replies first differ: the
script prints each, and says which are larger than those at which llama-server differs from itself.

| model | kernels | way | equal | median gap | largest gap | date | machine |
|---|---|---|---|---|---|---|---|
"""
QUESTIONS = (
    "Warum ist der Himmel blau?",
    "Explique la photosynthèse en deux phrases.",
    "¿Cuál es la capital de Australia y por qué no es Sídney?",
    "Qual è la differenza tra un teorema e un'ipotesi?",
    "Como funciona um motor a diesel?",
    "Waarom drijft ijs op water?",
    "Czym różni się protokół TCP od UDP?",
    "Jak se vaří knedlíky?",
    "Почему зимой холодно?",
    "Що таке рекурсія?",
    "Neden gökkuşağı yedi renklidir?",
    "Τι είναι ο πρώτος αριθμός;",
    "ما هي عاصمة اليابان؟",
    "מהו מספר ראשוני?",
    "भारत की राजधानी क्या है?",
    "太阳为什么会发光？",
    "光合作用とは何ですか。",
    "왜 바닷물은 짠가요?",
    "Tại sao lá cây có màu xanh?",
    "ทำไมท้องฟ้าจึงเป็นสีฟ้า",
)


class Reference(NamedTuple):
    """A greedy reply of llama-server: its text, its tokens' bytes, and of each the likeliest with log probabilities."""

    text: str
    pieces: tuple[bytes, ...]
    likeliest: tuple[dict[str, float], ...]

    def at_difference(self, text: str) -> dict[str, float] | None:
        """The two likeliest tokens where a reply first differs; None if it does not.

        A token may be longer than the reference's and begin with it. Where the text fits both, it is the closer of the
        two places.
        """
        if text.strip() == self.text.strip():
            return None
        reply, read, places = text.strip().encode(), b"", list[dict[str, float]]()
        for piece, likeliest in zip(self.pieces, self.likeliest, strict=True):
            longer = [token.encode() for token in likeliest if len(token.encode()) > len(piece)]  # " your", not " you"
            is_equal = reply.startswith((read + piece).lstrip())
            if not is_equal or any(reply.startswith((read + token).lstrip()) for token in longer):
                places.append(likeliest)
            if not is_equal:
                break
            read += piece
        return min(places, key=gap_of, default={"the end": 0.0, "another token": -inf})

    def change(self, other: Reference) -> float:
        """Largest change of a log probability while the tokens are equal."""
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(self.pieces, other.pieces, strict=False))
        steps = zip(self.likeliest, other.likeliest[: 1 + sum(1 for _ in equal)], strict=False)
        shared = ((ours, theirs, token) for ours, theirs in steps for token in ours.keys() & theirs.keys())
        return max((abs(ours[token] - theirs[token]) for ours, theirs, token in shared), default=0.0)


def gap_of(likeliest: Mapping[str, float]) -> float:
    high, low = likeliest.values()
    return high - low


def main() -> None:
    """Compare all ways of answering, and record a line for each."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="directory with the question files")
    parser.add_argument("--model", type=lambda text: Path(text).resolve(), required=True, metavar="FILE")
    parser.add_argument("--plain", action="store_true", help="use the format of Cerebrum")
    parser.add_argument("--prompts", type=int, default=100)
    options = parser.parse_args()
    require_peers()
    prompts = make_prompts(options.data, options.prompts)
    ids, repacks = in_subprocess(prompt_ids, str(options.model), options.plain, prompts)
    arguments = options.model, "--repack" if repacks else "--no-repack"
    with reference_server(*arguments, slots=SLOTS) as server, ThreadPoolExecutor(SLOTS) as clients:
        others = list(clients.map(lambda each: reference(server, each, options.plain), ids))
    with tempfile.TemporaryDirectory() as name, reference_server(*arguments, slots=1) as server:
        work = Path(name)
        environment = isolated_environment(work)
        references = [reference(server, each, options.plain) for each in ids]
        limit = 2 * max(map(Reference.change, references, others))

        def report(way: str, expected: Sequence[Reference], texts: Iterable[str]) -> float:
            return record_way(options, way, limit, expected, texts)

        limit = max(limit, report(f"llama-server -np {SLOTS}", references, [each.text for each in others]))
        report("ask, no drafts", references, answers(options, prompts, environment))
        for parallel in (1, SLOTS):
            texts = batch(options, prompts, parallel, work, environment)
            report(f"batch --parallel {parallel}", references, texts)
        follow_ups = [follow_up(options, prompt, environment) for prompt in prompts]
        restored = sum(each.cached_tokens > 0 for each in follow_ups)
        again = [reference(server, each.ids, options.plain) for each in follow_ups]
        report(f"ask -c, drafts ({restored} from a stored state)", again, [each.text for each in follow_ups])


def make_prompts(data: Path, count: int) -> list[str]:
    """Prompts of all kinds, in an order that mixes them."""
    chat = [each["turns"][0] for each in read_lines(data / MT_BENCH)]
    code = [f"Complete this function.\n\n{each['prompt']}" for each in read_lines(data / HUMAN_EVAL)]
    words = " ".join(each["question"] for each in read_lines(data / GSM8K)).split()
    foreign = list(QUESTIONS)
    kinds = [chat, code, chat, code, foreign, chat, code, chat, code, foreign]
    prompts, drawn = [], random.Random(1)
    for number in range(count):
        if number % LONG_EVERY == LONG_EVERY - 1:
            start = drawn.randrange(len(words) - LONG)
            prompts.append(f"{' '.join(words[start : start + LONG])}\n\nAnswer the last of these questions.")
        else:
            prompts.append(kinds[number % len(kinds)].pop(0))
    return prompts


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompt_ids(model: str, is_plain: bool, prompts: Sequence[str]) -> tuple[list[tuple[int, ...]], bool | None]:
    """Token ids of prompts, and whether weights are repacked; to be called in a subprocess."""
    settings = fold({"threads": THREADS}, {"format": CEREBRUM.name} if is_plain else {})
    with loaded_model(model, settings) as loaded:
        return [loaded.preview(Conversation().user(prompt))[1] for prompt in prompts], loaded.engine.repacks


# The reference.


@contextmanager
def reference_server(model: Path, *options: str, slots: int) -> Iterator[LlamaServer]:
    """Run llama-server with steps of the same size as ours."""
    steps = "-ub", str(CPU_UBATCH), "-b", str(CPU_UBATCH), "--cache-ram", "0"
    with running_server(model, CONTEXT, THREADS, slots, *steps, *options) as server:
        yield server


def reference(server: LlamaServer, ids: Sequence[int], is_plain: bool) -> Reference:
    """The server's reply to these token ids."""
    body = {"prompt": list(ids), "n_predict": TOKENS, "temperature": 0, "n_probs": 2, "cache_prompt": False}
    reply = completion(server.port, json.dumps(body).encode())
    if reply["tokens_evaluated"] != len(ids):
        raise RuntimeError(f"llama-server evaluated {reply['tokens_evaluated']} tokens, not {len(ids)}")
    tokens = reply.get("completion_probabilities", [])  # absent from an empty reply
    likeliest = [{each["token"]: float(each["logprob"]) for each in token["top_logprobs"]} for token in tokens]
    text = reply["content"].partition(CEREBRUM.stop[0])[0] if is_plain else reply["content"]
    return Reference(text, tuple(bytes(token["bytes"]) for token in tokens), tuple(likeliest))


# Our ways of answering.


def command(options: Namespace, name: str, *arguments: str) -> list[str]:
    """Command with equal limits for all ways."""
    limits = ["-n", str(TOKENS), "--temperature", "0", "--set", f"threads={THREADS}"]
    form = ["--format", CEREBRUM.name] if options.plain else []
    return [SCRIPT, name, "-m", str(options.model), *limits, *form, *arguments]


def answers(options: Namespace, prompts: Sequence[str], environment: Environment) -> Iterator[str]:
    """Replies of a process for each prompt."""
    for prompt in prompts:
        ask = command(options, "ask", "--json", "--no-log", "--set", "cache_gb=0", "--set", "speculative=off", prompt)
        yield json.loads(run(ask, environment=environment).output)["text"]


def batch(options: Namespace, prompts: Sequence[str], parallel: int, work: Path, environment: Environment) -> list[str]:
    """Replies of a batch."""
    questions, output = work / "questions.jsonl", work / f"answers-{parallel}.jsonl"
    questions.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    batch = command(options, "batch", str(questions), "-o", str(output), "--parallel", str(parallel))
    run(batch, environment=environment)
    return [row["text"] for row in read_lines(output)]


class FollowUp(NamedTuple):
    """The second question of a session: its token ids, how many were in a stored state, and the reply."""

    ids: list[int]
    cached_tokens: int
    text: str


def follow_up(options: Namespace, prompt: str, environment: Environment) -> FollowUp:
    """Ask a question, then a second one in the same session, whose state is on the disk if it is long."""
    run(command(options, "ask", "-q", prompt), environment=environment)
    ask = command(options, "ask", "-c", "--json", FOLLOW_UP)
    ids = preview(ask, environment)["token_ids"]
    reply = json.loads(run(ask, environment=environment).output)
    return FollowUp(ids, reply["cached_tokens"], reply["text"])


def record_way(
    options: Namespace, way: str, limit: float, references: Sequence[Reference], texts: Iterable[str]
) -> float:
    """Print every difference, and record a line; return the largest gap. Gaps above the limit are no ties."""
    gaps = []
    for number, (expected, text) in enumerate(zip(references, texts, strict=True), 1):
        if likeliest := expected.at_difference(text):
            gaps.append(gap_of(likeliest))
            far = "" if gaps[-1] <= limit else ", no tie of rounding"
            print(f"{options.model.stem}, {way}, prompt {number}: {likeliest}{far}", flush=True)
    key = f"| {options.model.stem} | {kernels()} | {way.partition(' (')[0]}"
    cells = (
        options.model.stem,
        kernels(),
        way,
        f"{len(references) - len(gaps)} of {len(references)}",
        f"{statistics.median(gaps):.3f}" if gaps else "",
        f"{max(gaps):.3f}" if gaps else "",
    )
    line = f"| {' | '.join(cells)} | {date.today()} | {machine()} |"
    print(line, flush=True)
    if not options.dry_run:
        record_lines(HEADING, HEAD.format(tokens=TOKENS), [line], (key,))
    return max(gaps, default=0.0)


if __name__ == "__main__":
    main()
