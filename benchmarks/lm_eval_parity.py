"""Compare the adapter for lm-eval with lm-eval's own transformers back end: scores, texts, rows evaluated and time.

Needs `cerebrum pull starter`, the extra `lm-eval`, and DIR with gsm8k-200.jsonl. PyTorch and transformers are installed
into an environment of their own in .peers/, once: about 1.5 GB.
Usage: python benchmarks/lm_eval_parity.py --data DIR [--items N] [--runs N] [--dry-run]

Both run two tasks on the starter model, its weights written as F32, on two threads:

choices   N questions of GSM8K with the reasoning of their solution: which of four numbers follows? The log-likelihoods
          may differ by TOLERANCE, as in lm-eval's own tests, and the likeliest choices must be the same.
texts     The first TEXT_ITEMS of these, without the reasoning, continued greedily by TEXT_TOKENS tokens: the texts must
          be identical.

The time is that of lm-eval's whole call for the choices, with the model loaded.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from answering import GSM8K, THREADS, model_path
from harness import ROOT, Row, argument_parser, in_subprocess, medians, pair, record, run
from lm_eval_hf import CHOICES, TEXTS, encode_choices, evaluate
from quantized import F32, quantize

from cerebrum_cli.cli.app import App
from cerebrum_cli.core.events import Event, StageEvent
from cerebrum_cli.core.settings import fold
from cerebrum_cli.engine.loglikelihood import build_paths
from cerebrum_cli.eval.lm_eval_command import open_for_lm_eval
from cerebrum_cli.replies.source import ModelSource

TOLERANCE = 1e-2
TEXT_ITEMS, TEXT_TOKENS = 20, 32
BATCH_SIZE = 8  # of transformers
PEER = ROOT / ".peers" / "lm-eval"
PEER_PACKAGES = ("torch==2.13.0", "transformers", "accelerate", "gguf")
CALCULATION = re.compile(r"<<.*?>>")
SPACES = re.compile(" +")  # transformers splits two spaces before a digit otherwise: it ignores tokenizer.ggml.pre


class Item(NamedTuple):
    """A question, its reasoning, and four numbers of which the first follows."""

    question: str
    reasoning: str
    choices: tuple[str, ...]

    @property
    def context(self) -> str:
        return f"Question: {self.question}\nAnswer: {self.reasoning}\nThe answer is"


class Outcome(NamedTuple):
    """What one side printed: seconds and log-likelihoods of the choices, greedy texts, tokens, and rows evaluated."""

    seconds: float
    scores: list[float]
    texts: list[str]
    tokens: list[tuple[list[int], list[int]]]
    rows: int = 0


def main() -> None:
    """Measure both, and record the comparison."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"directory with {GSM8K}")
    parser.add_argument("--items", type=int, default=200, help="questions [default: 200]")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs [default: 3]")
    options = parser.parse_args()
    if options.data is None:
        return
    python = peer_python()
    with tempfile.TemporaryDirectory() as name:
        directory, model = Path(name), str(Path(name) / "starter-f32.gguf")
        write_tasks(read_items(options.data / GSM8K, options.items), directory)
        in_subprocess(quantize, model_path("starter"), Path(model), F32)
        pairs = [
            pair(
                lambda: in_subprocess(run_ours, model, directory),
                lambda: run_peer(python, model, directory),
                number,
            )
            for number in range(options.runs)
        ]
    record(rows_of(pairs, options.items), options.dry_run)


def peer_python() -> Path:
    """Python of the environment with transformers, which is made if it is missing or of another version of lm-eval."""
    python, mark = PEER / "bin" / "python", PEER / f"lm-eval-{version('lm-eval')}.installed"
    if not mark.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEER], check=True)
        packages = (*PEER_PACKAGES, f"lm-eval=={version('lm-eval')}")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        mark.touch()
    return python


def read_items(path: Path, count: int) -> list[Item]:
    """Make items of the first questions of GSM8K."""
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [make_item(**json.loads(line)) for line in lines]


def make_item(question: str, answer: str) -> Item:
    """Make an item whose other choices are as long as the answer, or nearly so."""
    reasoning, _, reference = answer.partition("\n#### ")
    number = int(reference.replace(",", ""))
    others = [each for each in (number + 1, number * 2, number + 10, number - 2, number + 3) if each != number][:3]
    question, reasoning = SPACES.sub(" ", question), SPACES.sub(" ", CALCULATION.sub("", reasoning))
    return Item(question, reasoning, tuple(str(each) for each in (number, *others)))


def write_tasks(items: Sequence[Item], directory: Path) -> None:
    """Write the tasks, and the files they read."""
    choices = [{"context": item.context, "choices": [f" {each}" for each in item.choices]} for item in items]
    texts = [{"context": f"Question: {item.question}\nAnswer:"} for item in items[:TEXT_ITEMS]]
    settings: dict[str, Any] = {"until": ["\n\n"], "max_gen_toks": TEXT_TOKENS, "do_sample": False}
    scored = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": 0, "target_delimiter": ""}
    generated = {"output_type": "generate_until", "doc_to_target": "", "generation_kwargs": settings}
    for name, rows, details in ((CHOICES, choices, scored), (TEXTS, texts, generated)):
        file = directory / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "doc_to_text": "{{context}}",
            "metric_list": [{"metric": "acc" if name == CHOICES else "exact_match"}],
            **details,
        }
        (directory / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # which is YAML too


def run_ours(model: str, directory: Path) -> Outcome:
    """Run both tasks on the adapter; to be called in a subprocess."""
    from cerebrum_cli.eval.lm_eval.model import CerebrumLM

    app = App.of_user()
    found = app.library.resolve(model)
    source = ModelSource(app, found, fold({"threads": THREADS}), raw=True)
    rows: list[int] = []

    def count_rows(event: Event) -> None:
        if isinstance(event, StageEvent):
            rows.append(event.done)

    with closing(CerebrumLM(partial(open_for_lm_eval, source), count_rows)) as ours:
        tokens = encode_choices(ours, directory)  # loads the model
        choices = evaluate(ours, directory, CHOICES)
        evaluated = rows[-1]
        texts = evaluate(ours, directory, TEXTS)
    return outcome({CHOICES: choices, TEXTS: texts, "tokens": tokens}, evaluated)


def run_peer(python: Path, model: str, directory: Path) -> Outcome:
    """Run both tasks on transformers."""
    script = str(ROOT / "benchmarks" / "lm_eval_hf.py")
    finished = run([str(python), script, model, str(directory), str(THREADS), str(BATCH_SIZE)])
    return outcome(json.loads(finished.output.splitlines()[-1]), 0)


def outcome(printed: dict[str, Any], rows: int) -> Outcome:
    """Read the responses of both tasks."""
    scores = [response[0] for item in printed[CHOICES]["responses"] for response in item]
    texts = [item[0] for item in printed[TEXTS]["responses"]]
    tokens = [(list(context), list(choice)) for context, choice in printed["tokens"]]
    return Outcome(printed[CHOICES]["seconds"], scores, texts, tokens, rows)


def rows_of(pairs: Sequence[tuple[Outcome, Outcome]], items: int) -> Iterable[Row]:
    """Rows of the table. RuntimeError if the two sides have different tokens."""
    ours, peer = pairs[0]
    if ours.tokens != peer.tokens:
        raise RuntimeError("the tokens differ, so the scores cannot be compared")
    label = f"lm-eval, {items} x 4 choices, starter as F32 / transformers"
    difference = max(abs(a - b) for ours, peer in pairs for a, b in zip(ours.scores, peer.scores, strict=True))
    yield Row(f"{label}: largest difference", f"{difference:.4f}", f"{TOLERANCE}", difference / TOLERANCE, "<= 1")
    same = sum(map(int.__eq__, argmaxes(ours.scores), argmaxes(peer.scores)))
    yield Row(f"{label}: same choice", str(same), str(items), same / items, ">= 1")
    texts = sum(map(str.__eq__, ours.texts, peer.texts))
    yield Row(f"{label}: same greedy texts", str(texts), str(len(peer.texts)), texts / len(peer.texts), ">= 1")
    allowed = allowed_rows(ours.tokens)
    yield Row(f"{label}: rows / trie nodes and contexts", str(ours.rows), str(allowed), ours.rows / allowed, "<= 1")
    seconds, peer_seconds, ratio = medians([(ours.seconds, peer.seconds) for ours, peer in pairs])
    yield Row(f"{label}: time", f"{seconds:.1f} s", f"{peer_seconds:.1f} s", ratio, "<= 1")


def argmaxes(scores: Sequence[float]) -> list[int]:
    """Index of the likeliest of each four choices."""
    return [max(range(4), key=scores[at : at + 4].__getitem__) for at in range(0, len(scores), 4)]


def allowed_rows(tokens: Sequence[tuple[list[int], list[int]]]) -> int:
    """Unique nodes of the trie of all texts, and one for each context."""
    terms = [(tuple(context), tuple(choice)) for context, choice in tokens]
    return sum(len(path.tokens) - path.shared for path in build_paths(terms)) + len({context for context, _ in terms})


if __name__ == "__main__":
    main()
