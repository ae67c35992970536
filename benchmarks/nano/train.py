"""Train nano and write it as a GGUF file; the same seed on the same machine writes the same bytes.

The model must sometimes be wrong, so that votes can improve on single samples. Trained on correct sums alone it makes
almost no errors, and if training stops early, it fails on the same sums in every sample. It is therefore trained on
correct replies first, then on replies with a known error rate: the correct answer stays the most likely one, and errors
are sampled in proportion. The training rates exceed the sampled ones, since temperature 0.8 favors likely tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from torch.nn import functional

from nano.data import IGNORE_INDEX, Tokenizer, Vocabulary, batches, collect_vocabulary, examples
from nano.export import write_model
from nano.model import Nano, Shape
from nano.replies import Noise

TARGET = Path(__file__).parents[2] / "cerebrum_cli" / "nano.gguf"
MUON_RATE, ADAM_RATE = 0.02, 4e-3
THREADS = 1  # the bytes depend on it, and so small a model does not benefit from more


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Hyperparameters of the training."""

    seed: int = 1
    steps: int = 2000
    noisy_from: float = 0.65  # of all steps
    noise: Noise = field(default_factory=lambda: Noise(error_rate=0.45, no_answer_rate=0.06))
    batch: int = 64
    pool: int = 40
    warm_up: int = 50

    def rate_factor(self, step: int) -> float:
        """Learning rate factor of a step: linear warm-up, constant, then linear decay over the second half."""
        return min(1.0, (step + 1) / self.warm_up, 2.0 * (self.steps - step) / self.steps)


def train(plan: TrainingPlan, shape: Shape) -> tuple[Nano, Vocabulary]:
    """Train a model; return it with its vocabulary."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    tokenizer = Tokenizer()
    vocabulary = collect_vocabulary(tokenizer, plan.seed)
    model = Nano(shape, vocabulary.unknown_id, vocabulary.other_count)
    optimizers = _make_optimizers(model)
    prefix = torch.tensor(vocabulary.encode(tokenizer.prefix()))
    noisy_start = int(plan.steps * plan.noisy_from)
    step, start = 0, time.perf_counter()
    for noise, last_step in ((Noise(), noisy_start), (plan.noise, plan.steps)):
        random = Random(f"{plan.seed} {last_step}")
        batch_source = batches(examples(tokenizer, vocabulary, random, noise), random, plan.batch, plan.pool)
        while step < last_step:
            ids, targets = map(torch.from_numpy, next(batch_source))
            loss = _train_step(model, optimizers, prefix, ids, targets, plan.rate_factor(step))
            step += 1
            if step % 100 == 0:
                print(f"step {step:5} loss {loss:.4f} after {time.perf_counter() - start:.0f} s", flush=True)
    return model, vocabulary


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
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--seed", type=int, default=TrainingPlan().seed)
    parser.add_argument("--steps", type=int, default=TrainingPlan().steps)
    options = parser.parse_args()
    model, vocabulary = train(TrainingPlan(seed=options.seed, steps=options.steps), Shape())
    write_model(options.out, model, vocabulary)
    data = options.out.read_bytes()
    print(
        f"{options.out}: {len(data):,} bytes, {vocabulary.unknown_id} tokens, sha256 {hashlib.sha256(data).hexdigest()}"
    )


if __name__ == "__main__":
    main()
