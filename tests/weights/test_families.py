"""Checkpoints of each family, converted and run by llama.cpp, against the tokens and logits of transformers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from asking import loaded
from checkpoint_models import FIXTURES, older_config, read_model, write_checkpoint, write_json, write_weights
from llama_engines import greedy, in_f32, options
from merges import convert_checkpoint
from numpy.typing import NDArray

from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

FAMILIES = tuple(sorted(path.stem for path in FIXTURES.glob("*.json")))
MAX_DIFFERENCE = {"F32": 0.002, "F16": 0.05}  # of logits
# llama.cpp 0c1e57098 has no sliding windows for these: after as many tokens, its attention sees more.
UNLIMITED = ("mistral-window",)

Logprobs = NDArray[np.float64]
read_model = cache(read_model)


def open_engine(path: Path) -> AbstractContextManager[LocalEngine]:
    load_options = in_f32(options(path, context_size=256))
    return loaded(LocalEngine(lambda tell, stop: open_llama(load_options, tell, stop)))


def next_token_logprobs(engine: LocalEngine, prompt: tuple[int, ...], vocabulary: int) -> Logprobs:
    request = ScoreRequest(prompt, tuple((token,) for token in range(vocabulary)))
    [scores] = [event.scores for event in engine.score([request]) if isinstance(event, LogprobScores)]
    return np.array([score.logprob_sum for score in scores])


def logprobs_of(logits: Sequence[float]) -> Logprobs:
    below = np.array(logits) - max(logits)
    return np.asarray(below - np.log(np.exp(below).sum()))


def difference(engine: LocalEngine, prompt: tuple[int, ...], logits: Sequence[float]) -> float:
    """Largest difference of logits, up to a constant, which changes no probability."""
    differences = next_token_logprobs(engine, prompt, len(logits)) - logprobs_of(logits)
    return float(np.abs(differences - np.median(differences)).max())


@pytest.mark.parametrize("kind", MAX_DIFFERENCE)
@pytest.mark.parametrize("name", FAMILIES)
def test_checkpoint_replies_like_transformers(name: str, kind: str, tmp_path: Path) -> None:
    model = read_model(name)
    path = convert_checkpoint(write_checkpoint(tmp_path / "checkpoint", model), tmp_path / "model.gguf", kind)
    prompts = [(model.prompt, model.logits)]
    if model.name not in UNLIMITED:
        prompts.append((model.long_prompt, model.long_logits))
    with open_engine(path) as engine:
        if kind == "F32":
            assert greedy(engine, model.prompt, len(model.tokens)).ids == list(model.tokens)
        assert max(difference(engine, prompt, logits) for prompt, logits in prompts) < MAX_DIFFERENCE[kind]


@pytest.mark.parametrize("name", FAMILIES)
def test_configuration_of_transformers_4_is_of_the_same_model(name: str, tmp_path: Path) -> None:
    model = read_model(name)
    folder = write_checkpoint(tmp_path, model)
    newer = read_checkpoint(folder, "tiny")
    write_json(folder / "config.json", older_config(model.config))
    older = read_checkpoint(folder, "tiny")
    assert older.tensors == newer.tensors
    base = older.metadata[f"{older.architecture}.rope.freq_base"]
    default = {f"{older.architecture}.rope.freq_base_swa": base}  # in llama.cpp
    assert {**default, **older.metadata} == {**default, **newer.metadata}


@pytest.mark.parametrize(("dtype", "shards"), [("F32", 1), ("F16", 2), ("BF16", 3)])
def test_types_and_shards_of_a_checkpoint_do_not_change_its_weights(dtype: str, shards: int, tmp_path: Path) -> None:
    for name in ("gemma3", "mixtral", "llama2"):
        model = read_model(name)
        one = convert_checkpoint(write_checkpoint(tmp_path / name, model), tmp_path / "one.gguf", "Q8_0")
        folder = write_checkpoint(tmp_path / f"{name}-other", model, dtype=dtype, shards=shards)
        other = convert_checkpoint(folder, tmp_path / "other.gguf", "Q8_0")
        assert other.read_bytes() == one.read_bytes()


def test_whole_model_in_one_file_precedes_the_shards_in_an_index(tmp_path: Path) -> None:
    model = read_model("mistral")
    folder = write_checkpoint(tmp_path, model, shards=3)
    write_weights(folder, dict(model.weights()))
    assert {tensor.path.name for tensor in read_checkpoint(folder, "tiny").tensors.values()} == {"model.safetensors"}


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_language_model_of_a_multimodal_gemma_is_converted(prefix: str, tmp_path: Path) -> None:
    model = read_model("gemma3-linear")
    alone = convert_checkpoint(write_checkpoint(tmp_path / "alone", model), tmp_path / "alone.gguf", "BF16")
    folder = write_checkpoint(tmp_path / "multimodal", model)
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {}}
    write_json(folder / "config.json", {**config, "text_config": older_config(model.config)})
    tensors = {prefix + name.removeprefix("model."): values for name, values in model.weights()}
    tensors["vision_tower.vision_model.embeddings.patch_embedding.bias"] = np.zeros(4, np.float32)
    tensors["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(4, np.float32)
    write_weights(folder, tensors)
    assert convert_checkpoint(folder, tmp_path / "multimodal.gguf", "BF16").read_bytes() == alone.read_bytes()
