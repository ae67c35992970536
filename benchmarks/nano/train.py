"""Train nano and write it as a GGUF file; the same seed on the same machine writes the same bytes.

The model is to be wrong at times, for votes to mend. Sums alone would be learned nearly without a mistake, and where
training stops too early it is the same sums that fail, however often they are asked. So it is first taught right
replies only, and then replies of which a known share is wrong: what is right stays the likeliest, and what is wrong
is sampled in proportion. The shares are larger than those sampled: temperature 0.8 favours what is likely.
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

from nano.data import SILENT, Pieces, Words, batches, examples, survey
from nano.export import write
from nano.model import Nano, Shape
from nano.replies import Noise

TARGET = Path(__file__).parents[2] / "cerebrum_cli" / "nano.gguf"
MUON_RATE, ADAM_RATE = 0.02, 4e-3
THREADS = 1  # the bytes depend on it, and threads of so small a model mostly wait for each other


@dataclass(frozen=True, slots=True)
class Plan:
    """How long is trained on what."""

    seed: int = 1
    steps: int = 2000
    noisy_from: float = 0.65  # of all steps
    noise: Noise = field(default_factory=lambda: Noise(slip=0.45, unsure=0.06))
    batch: int = 64
    pool: int = 40
    warm_up: int = 50

    def rate(self, step: int) -> float:
        """Return the share of the learning rate in a step: it rises, stays, and falls over the second half."""
        return min(1.0, (step + 1) / self.warm_up, 2.0 * (self.steps - step) / self.steps)


def trained(plan: Plan, shape: Shape) -> tuple[Nano, Words]:
    """Return a trained model and the words it knows."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    pieces = Pieces()
    words = survey(pieces, plan.seed)
    model = Nano(shape, words.unknown, words.others)
    optimizers = _optimizers(model)
    preamble = torch.tensor(words.places(pieces.preamble()))
    quiet = int(plan.steps * plan.noisy_from)
    step, started = 0, time.perf_counter()
    for noise, until in ((Noise(), quiet), (plan.noise, plan.steps)):
        random = Random(f"{plan.seed} {until}")
        drawn = batches(examples(pieces, words, random, noise), random, plan.batch, plan.pool)
        while step < until:
            asked, targets = map(torch.from_numpy, next(drawn))
            loss = _learn(model, optimizers, preamble, asked, targets, plan.rate(step))
            step += 1
            if step % 100 == 0:
                print(f"step {step:5} loss {loss:.4f} after {time.perf_counter() - started:.0f} s", flush=True)
    return model, words


def _optimizers(model: Nano) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, which learn in fewer steps with it, and AdamW for what is left."""
    matrices = [weight for weight in model.blk.parameters() if weight.dim() == 2]
    rest = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon([{"params": matrices, "initial_lr": MUON_RATE}], weight_decay=0.01),
        torch.optim.AdamW([{"params": rest, "initial_lr": ADAM_RATE}], betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _learn(
    model: Nano,
    optimizers: list[torch.optim.Optimizer],
    preamble: torch.Tensor,
    asked: torch.Tensor,
    targets: torch.Tensor,
    rate: float,
) -> float:
    """Take one step; return the loss before it."""
    speaks = targets != SILENT
    loss = functional.cross_entropy(model(preamble, asked, speaks), targets[speaks])
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        optimizer.step()
    return float(loss.detach())


def main() -> None:
    """Train by the plan, or a shorter one, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--seed", type=int, default=Plan().seed)
    parser.add_argument("--steps", type=int, default=Plan().steps)
    options = parser.parse_args()
    model, words = trained(Plan(seed=options.seed, steps=options.steps), Shape())
    write(options.out, model, words)
    data = options.out.read_bytes()
    print(f"{options.out}: {len(data):,} bytes, {words.unknown} words, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
