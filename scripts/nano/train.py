"""Train nano or thinker and write it as a GGUF file; the same seed on the same machine writes the same bytes.

Nano must sometimes be wrong, so that votes can improve on single samples. Trained on correct sums alone it makes
almost no errors, and if training stops early, it fails on the same sums in every sample. It is therefore trained on
correct replies first, then on replies with a known error rate: the correct answer stays the most likely one, and errors
are sampled in proportion. The training rates exceed the sampled ones, since temperature 0.8 favors likely tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch.nn import functional

from scripts.nano import data, thinker
from scripts.nano.data import IGNORE_INDEX, Example, Vocabulary, batches
from scripts.nano.export import NANO, THINKER, Description, write_model
from scripts.nano.mistral_vocabulary import MetadataValue, tokenizer_metadata
from scripts.nano.model import Nano, Shape
from scripts.nano.replies import Noise

ROOT = Path(__file__).parents[2]
MUON_RATE, ADAM_RATE = 0.02, 4e-3
THREADS = 1  # the bytes depend on it, and so small a model does not benefit from more


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Hyperparameters of the training."""

    noise: Noise
    seed: int = 1
    steps: int = 2000
    noisy_from: float = 0.65  # of all steps
    batch: int = 64
    pool: int = 40
    warm_up: int = 50

    def rate_factor(self, step: int) -> float:
        """Learning rate factor of a step: linear warm-up, constant, then linear decay over the second half."""
        return min(1.0, (step + 1) / self.warm_up, 2.0 * (self.steps - step) / self.steps)


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a model is trained on: the tokens that every prompt starts with, and the conversations after them."""

    description: Description
    tokenizer: Mapping[str, MetadataValue]
    vocabulary: Vocabulary
    prefix: tuple[int, ...]
    examples: Callable[[Random, Noise], Iterator[Example]]


def nano_lessons(seed: int) -> Lessons:
    """Conversations in the `cerebrum` format, with Mistral's vocabulary."""
    tokenizer = data.Tokenizer()
    vocabulary = data.collect_vocabulary(tokenizer, seed)
    prefix = vocabulary.encode(tokenizer.prefix())
    return Lessons(NANO, tokenizer_metadata(), vocabulary, prefix, partial(data.examples, tokenizer, vocabulary))


def thinker_lessons(seed: int) -> Lessons:
    """Conversations with reasoning, in ChatML, with a vocabulary of their own."""
    tokenizer = thinker.train_tokenizer(seed)
    vocabulary = thinker.collect_vocabulary(tokenizer, seed)
    prefix = vocabulary.encode(tokenizer.encode(thinker.START))
    return Lessons(THINKER, tokenizer.metadata(), vocabulary, prefix, partial(thinker.examples, tokenizer, vocabulary))


MODELS = {
    "nano": (
        nano_lessons,
        TrainingPlan(Noise(error_rate=0.45, no_answer_rate=0.06)),
        ROOT / "cerebrum_cli/data/nano.gguf",
    ),
    "thinker": (thinker_lessons, TrainingPlan(Noise(error_rate=0.2), steps=3000), ROOT / "tests/data/thinker.gguf"),
}


def train(lessons: Lessons, plan: TrainingPlan, shape: Shape) -> Nano:
    """Train a model."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    model = Nano(shape, lessons.vocabulary.unknown_id, lessons.vocabulary.other_count)
    optimizers = _make_optimizers(model)
    prefix = torch.tensor(lessons.prefix)
    noisy_start = int(plan.steps * plan.noisy_from)
    step, start = 0, time.perf_counter()
    for noise, last_step in ((Noise(), noisy_start), (plan.noise, plan.steps)):
        random = Random(f"{plan.seed} {last_step}")
        batch_source = batches(lessons.examples(random, noise), random, plan.batch, plan.pool)
        while step < last_step:
            ids, targets = map(torch.from_numpy, next(batch_source))
            loss = _train_step(model, optimizers, prefix, ids, targets, plan.rate_factor(step))
            step += 1
            if step % 100 == 0:
                print(f"step {step:5} loss {loss:.4f} after {time.perf_counter() - start:.0f} s", flush=True)
    return model


def _make_optimizers(model: Nano) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which then need fewer steps, and AdamW for the rest."""
    matrices = [weight for weight in model.blk.parameters() if weight.dim() == 2]
    rest = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon([{"params": matrices, "initial_lr": MUON_RATE}], weight_decay=0.01),
        torch.optim.AdamW([{"params": rest, "initial_lr": ADAM_RATE}], betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _train_step(
    model: Nano,
    optimizers: list[torch.optim.Optimizer],
    prefix: torch.Tensor,
    ids: torch.Tensor,
    targets: torch.Tensor,
    rate_factor: float,
) -> float:
    """Run one optimizer step; return the loss before it."""
    is_target = targets != IGNORE_INDEX
    loss = functional.cross_entropy(model(prefix, ids, is_target), targets[is_target])
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor
        optimizer.step()
    return float(loss.detach())


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    make_lessons, default, target = MODELS[options.model]
    plan = replace(default, seed=options.seed or default.seed, steps=options.steps or default.steps)
    lessons, path = make_lessons(plan.seed), options.out or target
    write_model(path, train(lessons, plan, Shape()), lessons.vocabulary, lessons.description, lessons.tokenizer)
    written = path.read_bytes()
    digest = hashlib.sha256(written).hexdigest()
    print(f"{path}: {len(written):,} bytes, {lessons.vocabulary.unknown_id} tokens, sha256 {digest}")


if __name__ == "__main__":
    main()
