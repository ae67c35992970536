"""Run the tasks of lm_eval_parity.py on a model of lm-eval; as a program, on transformers, and print a JSON object.

Usage: PYTHON benchmarks/lm_eval_hf.py FILE.gguf DIRECTORY THREADS BATCH_SIZE, in an environment with lm-eval and
transformers alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

CHOICES, TEXTS = "choices", "texts"  # names of the tasks


def evaluate(model: Any, directory: Path, task: str) -> dict[str, Any]:
    """Run a task of a directory: the seconds of lm-eval's whole call, and its responses by item, in order."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(directory), include_defaults=False)
    start = time.perf_counter()
    results = simple_evaluate(model=model, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0)
    seconds = time.perf_counter() - start
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return {"seconds": seconds, "responses": [[response[0] for response in sample["resps"]] for sample in samples]}


def encode_choices(model: Any, directory: Path) -> list[tuple[list[int], list[int]]]:
    """Tokens of each context and of each of its choices."""
    items = [json.loads(line) for line in (directory / f"{CHOICES}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [model._encode_pair(item["context"], choice) for item in items for choice in item["choices"]]


def main() -> None:
    """Run both tasks on transformers in float32."""
    import torch
    from lm_eval.models.huggingface import HFLM

    file, directory, threads, batch_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    model = HFLM(pretrained=str(file.parent), gguf_file=file.name, dtype="float32", device="cpu", batch_size=batch_size)
    outcome = {task: evaluate(model, directory, task) for task in (CHOICES, TEXTS)}
    print(json.dumps({**outcome, "tokens": encode_choices(model, directory)}))


if __name__ == "__main__":
    main()
