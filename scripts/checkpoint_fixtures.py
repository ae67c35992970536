"""Write what transformers makes of a tiny random model of each family: the files in tests/data/checkpoints.

Usage: python scripts/checkpoint_fixtures.py [NAME...]

Needs numpy, torch and transformers 5, but nothing of this project, so that it can run in an environment of its own. The
weights are not stored: they follow from names and seeds (tests/support/models/checkpoint_models.py). The seed of a
model is the first for which its greedy reply is unambiguous, varied, and without special tokens.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support" / "models"))
from checkpoint_models import FIXTURES, tensor_weights, write_weights

SPECIAL_TOKENS = 9  # of the vocabulary, at its beginning
VOCABULARY = 275
PROMPT_TOKENS, LONG_PROMPT_TOKENS, REPLY_TOKENS = 12, 90, 20
MIN_MARGIN = 0.01  # between the two highest logits at each step
MIN_DISTINCT = 10  # tokens in a reply

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
TIED = {"tie_word_embeddings": True}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}


class Family(NamedTuple):
    """A class of transformers, and what its configuration has besides COMMON; `norm` is the mean weight of a norm."""

    config: str
    options: Mapping[str, Any] = {}
    norm: float = 1.0
    saves_head: bool = False  # though it is tied to the embeddings


GEMMA3 = {
    **TIED,
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 32,
    "hidden_activation": "gelu_pytorch_tanh",
}
EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 48}
FAMILIES: Mapping[str, Family] = {
    "llama2": Family("LlamaConfig", {"num_key_value_heads": 4}),
    "llama31": Family("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama32": Family("LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 16, **TIED}),
    "llama-head-saved": Family("LlamaConfig", TIED, saves_head=True),
    "llama-biases": Family("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": Family(
        "LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}
    ),
    "llama-yarn": Family(
        "LlamaConfig",
        {"rope_parameters": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}},
    ),
    "mistral": Family(
        "MistralConfig", {"sliding_window": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    ),
    "mistral-window": Family("MistralConfig", {"sliding_window": 32}),
    "mistral-head-dim": Family("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "mixtral": Family("MixtralConfig", {**EXPERTS, "num_local_experts": 4, "sliding_window": None}),
    "qwen2": Family("Qwen2Config"),
    "qwen2-tied-padded": Family("Qwen2Config", {**TIED, "vocab_size": VOCABULARY + 13}),
    "qwen2-yarn": Family("Qwen2Config", {"rope_parameters": {**YARN, "attention_factor": 1.4}}),
    "qwen3": Family("Qwen3Config", {"head_dim": 32}),
    "qwen3-yarn": Family("Qwen3Config", {"head_dim": 16, "rope_parameters": YARN}),
    "qwen3-moe": Family(
        "Qwen3MoeConfig",
        {
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
    "gemma3": Family("Gemma3TextConfig", GEMMA3, norm=0.0),
    "gemma3-linear": Family(
        "Gemma3TextConfig",
        {
            **GEMMA3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        norm=0.0,
    ),
}


def main(names: Sequence[str]) -> None:
    """Write the files of these families, or of all."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    FIXTURES.mkdir(exist_ok=True)
    for name in names or FAMILIES:
        written = write_family(name, FAMILIES[name])
        sys.stdout.write(f"{name}: {written:,} bytes\n")
        sys.stdout.flush()


def write_family(name: str, family: Family) -> int:
    """Write the file of a family, and return its size."""
    options = {**COMMON, **family.options}
    config = getattr(transformers, family.config)(**options)
    config.architectures = [model_class(config).__name__]
    shapes = saved_shapes(config)
    if family.saves_head:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    prompt = random_tokens(PROMPT_TOKENS, 1)
    long_prompt = random_tokens(LONG_PROMPT_TOKENS, 2)
    for seed in count():
        model = load(config, shapes, seed, family.norm)
        tokens = greedy_reply(model, prompt)
        is_plain = all(SPECIAL_TOKENS <= token < VOCABULARY for token in tokens)
        if len(tokens) == REPLY_TOKENS and is_plain and len({*tokens}) >= MIN_DISTINCT:
            break
    stored = {
        "config": json.loads(config.to_json_string()),
        "shapes": shapes,
        "seed": seed,
        "norm": family.norm,
        "prompt": prompt,
        "tokens": tokens,
        "logits": last_logits(model, prompt),
        "long_prompt": long_prompt,
        "long_logits": last_logits(model, long_prompt),
    }
    path = FIXTURES / f"{name}.json"
    rows = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in stored.items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    return path.stat().st_size


def model_class(config: Any) -> Any:
    """The class of the model of a configuration."""
    return transformers.AutoModelForCausalLM._model_mapping[type(config)]


def saved_shapes(config: Any) -> dict[str, list[int]]:
    """Shapes of the tensors in the file that transformers writes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        model_class(config)(config).save_pretrained(folder)
        with Path(folder, "model.safetensors").open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    return {name: entry["shape"] for name, entry in sorted(header.items())}


def load(config: Any, shapes: Mapping[str, Sequence[int]], seed: int, norm: float) -> Any:
    """Load a model with the weights of a seed from files, which transformers checks."""
    with tempfile.TemporaryDirectory() as folder:
        tensors = {
            name: tensor_weights(name, shape, seed, norm, config.tie_word_embeddings) for name, shape in shapes.items()
        }
        write_weights(Path(folder), tensors, "F32")
        config.save_pretrained(folder)
        model, report = model_class(config).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    problems = {key: value for key, value in report.items() if value}
    if problems:
        raise RuntimeError(f"transformers reports {problems}")
    return model.eval()


def random_tokens(length: int, seed: int) -> list[int]:
    drawn = np.random.RandomState(seed).randint(SPECIAL_TOKENS, VOCABULARY, length)
    return [int(token) for token in drawn]


def greedy_reply(model: Any, prompt: Sequence[int]) -> list[int]:
    """The most likely tokens, up to one whose logit hardly exceeds the next."""
    tokens = list[int]()
    while len(tokens) < REPLY_TOKENS:
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, -1]
        best, second = torch.topk(logits, 2).values.tolist()
        if best - second < MIN_MARGIN:
            break
        tokens.append(int(logits.argmax()))
    return tokens


def last_logits(model: Any, prompt: Sequence[int]) -> list[float]:
    logits = model(torch.tensor([list(prompt)]), use_cache=False).logits[0, -1]
    return [round(logit, 4) for logit in logits.tolist()]


if __name__ == "__main__":
    main(sys.argv[1:])
