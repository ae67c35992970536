"""Compare answers of a llama-server with local ones, count what it evaluates, and time a batch with it.

Needs `make peers` and `cerebrum pull starter`.
Usage: python benchmarks/endpoints.py --data DIR [--only PART] [--runs N] [--rows N] [--dry-run]

DIR contains gsm8k-200.jsonl, see benchmarks/batch.py. All parts use the starter, and a llama-server on loopback.

texts     PROMPTS questions at temperature 0, each to `cerebrum ask` with the server and without. Both evaluate the
          whole prompt, in equal steps: with other steps, or after a prefix from a cache, log probabilities differ by up
          to 0.2, and so do some texts. The ids that arrive at the server must be those of `--dry-run`, and as many as
          the server evaluates; the last question ends with special tokens, which are text. Where texts differ, the
          local model's two most likely tokens at the first difference are compared.
cache     A chat with the server: turns, a retry, an undo, and the reply to another question. Evaluated tokens are the
          prompt's tokens that the server did not take from its cache; new ones are those after the longest prefix in
          common with what it evaluated last, at least one, as llama.cpp needs it for logits. Then a reply whose ids do
          not all arrive, since a character takes several tokens, and the next turn: it shares the previous prompt.
votes     A vote of VOTES samples: prompts that the server evaluates, by its log, and seeds equal to those of a vote on
          this machine.
batch     Rows per second of ROWS questions, of which the server answers SLOTS at a time on one thread with TOKENS
          tokens each, from the connected engine to the complete result on disk, against a bare httpx2.AsyncClient that
          sends the same bodies, as recorded in a warm-up, from its first request to the last reply. Each run has a
          process and a server of its own. Printed: the CPU time of either process a row.
failover  Servers that fail, and servers and batches that are killed. See benchmarks/failover.py.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from answering import THREADS, BatchJob, gsm8k, loaded_model, model_path, run_batch
from chat import close_chat, finish_of, open_chat
from failover import failover_rows
from harness import (
    SCRIPT,
    Environment,
    Row,
    argument_parser,
    in_subprocess,
    isolated_environment,
    medians,
    pair,
    record,
    require_peers,
    run,
)
from relay import running_relay
from server import LlamaServer, completion, running_server

from cerebrum_cli.batch.input_row import InputRow as Question
from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, TokenEvent
from cerebrum_cli.core.row_events import RowEvent
from cerebrum_cli.core.settings import fold
from cerebrum_cli.core.token_ids import common_prefix
from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest
from cerebrum_cli.engine.memory import CPU_UBATCH
from cerebrum_cli.servers.endpoint import Endpoint

PARTS = ("texts", "cache", "votes", "batch", "failover")
PROMPTS, TEXT_TOKENS = 20, 64
SPECIAL_TOKENS = " <|im_end|>\n<|im_start|>assistant\n<s></s>"
CLEARING = b'{"prompt": [0], "n_predict": 1}'  # its only token begins no chat, so that nothing of it is reused
NEAR_TIE = 0.05  # nats between the two most likely tokens
TURNS, TURN_TOKENS = 3, 48
UNUSUAL = "Continue: " + "\N{SLIGHTLY SMILING FACE}" * 12
VOTES, VOTE_TOKENS, SEED = 8, 48, 1
VOTE_QUESTION = "What is 17 * 3? Answer with a number."
ROWS, TOKENS, SLOTS = 48, 32, 16
CONTEXT, SLOT_CONTEXT = 2048, 512


def main() -> None:
    """Measure all parts or one, and record each when it is done."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with gsm8k-200.jsonl")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs in `batch` [default: 5]")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows in `batch` [default: {ROWS}]")
    options = parser.parse_args()
    if not options.data:
        return print("skipping servers: they need --data")
    require_peers()
    parts = [options.only] if options.only else PARTS
    model, questions = model_path("starter"), gsm8k(options.data, max(PROMPTS, options.rows))
    prompts = [question.prompt or "" for question in questions[:PROMPTS]]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = isolated_environment(directory)
        measured: dict[str, Callable[[], Iterable[Row]]] = {
            "texts": lambda: text_rows(model, prompts, environment),
            "cache": lambda: cache_rows(model, prompts, directory),
            "votes": lambda: vote_rows(model, environment),
            "batch": lambda: [batch_row(model, questions[: options.rows], options.runs)],
            "failover": lambda: failover_rows(directory, model, environment),
        }
        for part in parts:
            for row in measured[part]():
                record([row], options.dry_run)
    return None


# Texts.


def text_rows(model: Path, prompts: Sequence[str], environment: Environment) -> Iterator[Row]:
    """Compare prompt ids and replies."""
    prompts = [*prompts[:-1], prompts[-1] + SPECIAL_TOKENS]
    same_ids, gaps = 0, []
    options = "-ub", str(CPU_UBATCH), "--cache-ram", "0"
    with running_server(model, CONTEXT, THREADS, 1, *options) as server, running_relay(server) as relay:
        for prompt in prompts:
            completion(server.port, CLEARING)
            command = [SCRIPT, "ask", "-m", str(model), "-n", str(TEXT_TOKENS), "--no-log", "--json", prompt]
            ids = json.loads(run([*command, "--dry-run"], environment=environment).output)["token_ids"]
            local = json.loads(
                run([*command, "--set", f"threads={THREADS}", "--set", "cache_gb=0"], environment=environment).output
            )
            remote = json.loads(run([*command, "--endpoint", relay.url], environment=environment).output)
            (exchange,) = relay.take_completions()
            same_ids += exchange.body["prompt"] == ids and exchange.reply[-1]["tokens_evaluated"] == len(ids)
            if remote["text"] != local["text"]:
                gaps.append(in_subprocess(top_two_gap, str(model), prompt, local["text"], remote["text"]))
                print(f"{gaps[-1]:.4f} nats at the first difference of {local['text']!r} and {remote['text']!r}")
    count = len(prompts)
    label = f"ask --endpoint, llama-server, {count} prompts at temperature 0, -ub {CPU_UBATCH} as ours"
    yield Row(f"{label}: equal prompt ids", str(same_ids), str(count), same_ids / count, ">= 1")
    same, far = count - len(gaps), sum(gap >= NEAR_TIE for gap in gaps)
    cell = f"{same}, and {len(gaps)} near ties" if gaps and not far else str(same)
    yield Row(f"{label}: equal texts of {TEXT_TOKENS} tokens", cell, str(count), same / count, ">= 0.9")
    yield Row(f"{label}: differences that are no near tie", str(far), f"{len(gaps)} differ", far / count, "<= 0")


def top_two_gap(model: str, prompt: str, local: str, remote: str) -> float:
    """Nats between the two most likely tokens where two texts first differ; to be called in a subprocess."""
    settings = fold({"threads": THREADS}, {"max_tokens": TEXT_TOKENS})
    with loaded_model(model, settings) as loaded:
        request = loaded.prepare_reply(Ask(Conversation().user(prompt), settings))
        with closing(loaded.engine.complete([request])) as events:
            tokens = [token for event in events if isinstance(event, TokenEvent) for token in event.tokens]
        pieces = [loaded.engine.vocabulary.piece(token) for token in tokens]
        if b"".join(pieces).decode().strip() != local:
            raise RuntimeError(f"{b''.join(pieces)!r} instead of {local!r}")
        same = [
            token for token, text in zip(tokens, accumulate(pieces), strict=True) if remote.encode().startswith(text)
        ]
        context = (*request.prompt_tokens, *same)
        every_token = tuple((token,) for token in range(loaded.model.header.sizes.vocabulary_size))
        (scored,) = [
            event
            for event in loaded.engine.score([ScoreRequest(context, every_token)])
            if isinstance(event, LogprobScores)
        ]
    first, second = sorted((score.logprob_sum for score in scored.scores), reverse=True)[:2]
    return first - second


# The server's cache in a chat.


def cache_rows(model: Path, questions: Sequence[str], directory: Path) -> Iterator[Row]:
    """Compare the tokens that a chat evaluates with the new ones."""
    with chat_with_server(model, directory) as chat:
        log = CacheLog(chat)
        for question in questions[:TURNS]:
            log.send(question)
        log.retry()
        log.undo_and_send(questions[TURNS])
        log.send(questions[TURNS + 1])
        yield log.row(f"chat, llama-server, {TURNS + 2} turns, a retry and an undo: evaluated / new tokens")
    with chat_with_server(model, directory) as chat:
        log = CacheLog(chat)
        log.send(UNUSUAL)
        if chat.tree.last_reply and chat.tree.last_reply.message.tokens is not None:
            raise RuntimeError(f"all ids arrived of {chat.tree.last_reply.message.content!r}")
        log.send(questions[0])
        yield log.row("chat, llama-server, a reply with missing ids: evaluated / tokens after the shared prefix")


@contextmanager
def chat_with_server(model: Path, directory: Path) -> Iterator[Chat]:
    """Open a chat with a server of its own."""
    with running_server(model, 4 * CONTEXT, THREADS, 1, "--cache-ram", "0") as server:
        chat = open_chat(directory, Endpoint(server.url, server.url), model=str(model), max_tokens=TURN_TOKENS)
        try:
            yield chat
        finally:
            close_chat(chat)


class CacheLog:
    """What each reply of a chat evaluates, and what it must."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._held: tuple[int, ...] = ()  # tokens that the server is known to hold
        self._evaluated = self._new = 0

    def send(self, question: str) -> None:
        for _ in self._chat.load():
            pass
        self._reply(self._chat.conversation.user(question), self._chat.send(question))

    def retry(self) -> None:
        conversation = self._chat.conversation
        without_reply = replace(conversation, messages=conversation.messages[:-1])
        self._reply(without_reply, self._chat.retry())

    def undo_and_send(self, question: str) -> None:
        self._chat.tree.undo()
        self.send(question)

    def _reply(self, conversation: Conversation, events: Iterator[Event]) -> None:
        prompt = self._chat.loaded.prompts.tokenize(conversation)
        finish = finish_of(events)
        if finish.prompt_tokens != len(prompt):
            raise RuntimeError(f"{finish.prompt_tokens} prompt tokens, not {len(prompt)}")
        new = max(1, len(prompt) - common_prefix(prompt, self._held))
        evaluated = finish.prompt_tokens - finish.cached_tokens
        print(f"{evaluated} tokens evaluated, {new} new; {finish.reason}, {finish.completion_tokens} tokens")
        self._evaluated, self._new = self._evaluated + evaluated, self._new + new
        reply = self._chat.tree.last_reply
        tokens = reply.message.tokens if reply else None
        self._held = (*prompt, *(tokens[:-1] if tokens else ()))  # the last one is sampled, not evaluated

    def row(self, label: str) -> Row:
        return Row(label, f"{self._evaluated} tokens", f"{self._new} tokens", self._evaluated / self._new, "<= 1")


# Votes.


def vote_rows(model: Path, environment: Environment) -> Iterator[Row]:
    """Count prompt evaluations of a vote, and compare seeds and texts with those of one on this machine."""
    command = [SCRIPT, "ask", "-m", str(model), "-n", str(VOTE_TOKENS), "--no-log", "--json", "--seed", str(SEED)]
    command += ["--votes", str(VOTES), VOTE_QUESTION]
    with running_server(model, CONTEXT, THREADS, VOTES) as server, running_relay(server) as relay:
        remote = vote(command, "--endpoint", relay.url, environment=environment)
        exchanges, log = relay.take_completions(), server.log
    local = vote(command, "--set", f"threads={THREADS}", "--set", "cache_gb=0", environment=environment)
    evaluations, samples = log.count("is_child = 0"), [sample for each in exchanges for sample in each.reply]
    timings = [sample["timings"] for sample in samples]
    print(f"prompt_n {[each['prompt_n'] for each in timings]}, cache_n {[each['cache_n'] for each in timings]}")
    counted = list(zip(remote, local, strict=False))  # a vote ends where its outcome is certain
    same = sum(ours["text"] == theirs["text"] for ours, theirs in counted)
    label = f"ask --endpoint, llama-server, a vote of {VOTES}"
    yield Row(f"{label}: prompt evaluations", str(evaluations), f"{len(samples)} samples", float(evaluations), "<= 1")
    seeds = sum(ours["seed"] == theirs["seed"] for ours, theirs in counted)
    cell = f"{seeds} ({same} equal texts)"
    yield Row(f"{label}: seeds equal to those on this machine", cell, str(len(counted)), seeds / len(counted), ">= 1")


def vote(command: Sequence[str], *options: str, environment: Environment) -> list[dict[str, Any]]:
    """The samples of a vote."""
    answer = json.loads(run([*command, *options], environment=environment).output)
    return list(answer["votes"]["samples"])


# Throughput of a batch.


class Timed(NamedTuple):
    """Seconds from the first request to the last result, the CPU time of the process in them, and the prompt tokens
    that the server took from its cache.
    """

    seconds: float
    cpu_s: float
    cached_tokens: int


def batch_row(model: Path, questions: Sequence[Question], runs: int) -> Row:
    """Compare a batch with a bare client, in rows per second."""
    settings = {"max_tokens": TOKENS, "temperature": 0.0, "seed": SEED}
    job = BatchJob(str(model), questions, settings, ignore_eos=True)
    count = len(questions)
    timed: dict[str, list[Timed]] = {"ours": [], "peer": []}

    def fresh_server() -> AbstractContextManager[LlamaServer]:
        return running_server(model, SLOT_CONTEXT, 1, SLOTS, "--cache-ram", "0")

    def ours() -> float:
        with fresh_server() as server:
            timed["ours"].append(in_subprocess(time_batch, replace(job, endpoint=server.url)))
        return count / timed["ours"][-1].seconds

    def peer() -> float:
        with fresh_server() as server:
            timed["peer"].append(in_subprocess(time_client, server.url, bodies))
        return count / timed["peer"][-1].seconds

    with fresh_server() as server, running_relay(server) as relay:
        in_subprocess(time_batch, replace(job, endpoint=relay.url))
        bodies = sorted((each.body for each in relay.take_completions()), key=lambda body: int(body["seed"]))
    if [body["n_predict"] for body in bodies] != [TOKENS] * count:
        raise RuntimeError(f"{len(bodies)} requests for {count} rows")
    pairs = [pair(ours, peer, number) for number in range(runs)]
    for name, each in timed.items():
        cpu_ms = statistics.median(one.cpu_s for one in each) / count * 1e3
        rates = ", ".join(f"{count / one.seconds:.2f} ({one.cached_tokens} tokens cached)" for one in each)
        print(f"{name}: {rates} rows/s, CPU {cpu_ms:.2f} ms a row")
    ours_rate, peer_rate, ratio = medians(pairs)
    lengths = [len(body["prompt"]) for body in bodies]
    label = (
        f"batch --endpoint of {count} rows of {min(lengths)} to {max(lengths)} tokens, {TOKENS} tokens each, starter,"
        f" llama-server -np {SLOTS} -t 1, bare httpx2.AsyncClient"
    )
    return Row(label, f"{ours_rate:.2f} rows/s", f"{peer_rate:.2f} rows/s", ratio, ">= 0.95")


def time_batch(job: BatchJob) -> Timed:
    """Run a batch; to be called in a subprocess."""
    start, cached = 0.0, 0

    def observe(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        nonlocal start, cached
        for event in events:
            start = start or (time.process_time() if isinstance(event, RowEvent) else 0.0)
            cached += event.cached_tokens if isinstance(event, FinishEvent) else 0
            if isinstance(event, NoticeEvent):
                raise RuntimeError(event.message)
            yield event

    result = run_batch(job, observe)
    if wrong := [row for row in result.rows if row["completion_tokens"] != TOKENS]:
        raise RuntimeError(f"unexpected replies: {wrong[:3]}")
    return Timed(result.seconds, time.process_time() - start, cached)


def time_client(url: str, bodies: Sequence[Mapping[str, Any]]) -> Timed:
    """Send bodies with a bare client, SLOTS at a time, and read the replies; to be called in a subprocess."""
    return asyncio.run(send_all(url, bodies))


async def send_all(url: str, bodies: Sequence[Mapping[str, Any]]) -> Timed:
    import httpx2

    waiting, replies = iter(bodies), []

    async def send_waiting(client: httpx2.AsyncClient) -> None:
        for body in waiting:
            replies.append(await client.post("/completion", json=body))

    async with httpx2.AsyncClient(base_url=url, timeout=None) as client:
        start, cpu_start = time.perf_counter(), time.process_time()
        await asyncio.gather(*(send_waiting(client) for _ in range(SLOTS)))
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    return Timed(seconds, cpu_s, sum(int(reply.json()["timings"]["cache_n"]) for reply in replies))


if __name__ == "__main__":
    main()
