"""LoRA adapters on real tiny models: their effect, what is refused before loading, and what they are part of."""

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from adapter_files import RANK, Factors, factors_for, write_adapter
from command_line import CommandLine, assert_error
from gguf_files import rewritten
from installations import installation
from llama_engines import TALE, options
from scripted_command import app_for
from tiny_models import Shape, write_quantized

from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.llama.bindings import accelerators
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.step import StopFlag, TokenRow
from cerebrum_cli.library.adapters import adapter_size
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.source import ModelSource

Values = npt.NDArray[Any]
TOKENS = range(20, 40)
TOLERANCE = 0.03 if accelerators() else 0.02  # GPUs may round to F16


def write_merged(path: Path, model: Path, *changes: tuple[Factors, float]) -> Path:
    """Write a model whose weights have these changes, each with the factor of its effect, in full precision."""

    def merge(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        for factors, scale in changes:
            if name in factors:
                a, b = factors[name]
                values += np.float32(scale) * (a @ b.T if name == "token_embd.weight" else b @ a)
        return values

    return rewritten(model, path, change=merge)


def logits(model: Path, *adapters: tuple[Path, float]) -> npt.NDArray[np.float32]:
    with closing(open_llama(replace(options(model), adapters=adapters), lambda _: None, StopFlag())) as backend:
        backend.reserve(64)
        backend.decode([TokenRow(0, index, token, index == len(TOKENS) - 1) for index, token in enumerate(TOKENS)])
        return np.array(backend.logits(len(TOKENS) - 1))


@pytest.fixture(scope="module")
def adapter(chatml_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "style.gguf", factors_for(chatml_model))


def assert_equals_merged(
    model: Path, folder: Path, *adapters: tuple[Factors, float, float], tolerance: float = TOLERANCE
) -> None:
    """Check adapters, each of factors, an alpha and a scale, against the same changes made to the weights."""
    paths = [write_adapter(folder / f"{at}.gguf", each, alpha=alpha) for at, (each, alpha, _) in enumerate(adapters)]
    changes = [(each, alpha / RANK * scale) for each, alpha, scale in adapters]
    adapted = logits(model, *((path, scale) for path, (_, _, scale) in zip(paths, adapters, strict=True)))
    assert np.abs(adapted - logits(write_merged(folder / "merged.gguf", model, *changes))).max() < tolerance
    assert np.abs(adapted - logits(model)).max() > 0.5
    for path, (factors, _, _) in zip(paths, adapters, strict=True):
        assert adapter_size(path, "llama") == sum(a.nbytes + b.nbytes for a, b in factors.values())


def test_adapters_equal_their_changes_merged_into_the_weights(tmp_path: Path, chatml_model: Path) -> None:
    assert_equals_merged(chatml_model, tmp_path, (factors_for(chatml_model), 6.0, 0.5))
    names = ("blk.0.ffn_up.weight", "output.weight")
    assert_equals_merged(chatml_model, tmp_path, (factors_for(chatml_model, names), 6.0, 0.5))
    first, second = (factors_for(chatml_model, seed=seed) for seed in (1, 2))
    assert_equals_merged(chatml_model, tmp_path, (first, 6.0, 0.5), (second, 6.0, -1.0))
    random = np.random.default_rng(3)
    a, b = random.standard_normal((275, RANK), np.float32), random.standard_normal((64, RANK), np.float32)
    assert_equals_merged(chatml_model, tmp_path, ({"token_embd.weight": (a, b)}, 0.5, 1.0))


def test_adapter_of_experts_equals_its_change_merged(tmp_path: Path) -> None:
    model = write_quantized(tmp_path / "experts.gguf", shape=Shape(width=256, ffn=512), experts=4, encoding="F16")
    factors = factors_for(model, ("blk.0.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"))
    assert_equals_merged(model, tmp_path, (factors, 4.0, 1.0), tolerance=0.1)


def test_adapter_applies_to_repacked_quantized_weights(tmp_path: Path, seven: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", factors_for(seven))
    assert np.abs(logits(seven, (path, 1.0)) - logits(seven)).max() > 0.5


# What is refused.

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"metadata": {"general.type": "model"}}, "a model, not an adapter"),
    ({"metadata": {"adapter.type": "dora"}}, "llama.cpp cannot apply it: "),
    ({"metadata": {"general.architecture": "gemma2"}}, "made for the architecture 'gemma2', but the model's is"),
    ({"metadata": {"adapter.alora.invocation_tokens": [1, 2]}}, "an activated LoRA adapter"),
    ({"alpha": np.float64(6)}, "llama.cpp crashes on it: "),
    ({"change": lambda name, values: (name.replace("blk.0", "blk.7"), values)}, "llama.cpp cannot apply it: "),
]


@pytest.mark.slow
@pytest.mark.parametrize(("details", "problem"), REFUSED)
def test_adapter_that_does_not_fit_is_refused(
    user: CommandLine, chatml_model: Path, details: Mapping[str, Any], problem: str
) -> None:
    path = write_adapter(user.home / "a.gguf", factors_for(chatml_model), **details)
    done = user.run("ask", "-m", "small", "--lora", path, "hello", "--max-tokens", "2")
    assert_error(done, 2, f"{path}: {problem}")


def answer(user: CommandLine, *arguments: str | Path) -> dict[str, Any]:
    done = user.run("ask", "-m", "small", "--json", "--max-tokens", "8", *arguments)
    assert done.code == 0, done.err
    return dict(done.object)


@pytest.mark.slow
def test_adapter_is_beside_the_catalog_the_settings_or_the_saved_prompt_that_names_it(
    user: CommandLine, chatml_model: Path
) -> None:
    path = write_adapter(user.config / "style.gguf", factors_for(chatml_model))
    plain = answer(user, "hello", "--no-log")["text"]
    row = '[models.small]\nfile = "{}"\n[models.small.settings]\nlora = ["style.gguf:0.9", "style.gguf:0.1"]\n'
    (user.config / "models.toml").write_text(row.format(chatml_model.name))
    assert answer(user, "hello", "--no-log")["text"] != plain
    assert answer(user, "hello", "--no-log", "--lora", "none")["text"] == plain
    assert f", lora {path}:0.9 and {path}:0.1\n" in user.run("show", "small").out
    assert user.run("show", "small", "--json").object["ask"]["lora"] == [f"{path}:0.9", f"{path}:0.1"]
    (user.config / "models.toml").unlink()
    (user.config / "config.toml").write_text('lora = ["style.gguf:0.9"]\n')
    assert answer(user, "hello", "--no-log")["text"] != plain
    (user.config / "config.toml").unlink()
    prompts = user.config / "prompts"
    prompts.mkdir()
    path.rename(prompts / "style.gguf")
    (prompts / "styled.md").write_text('+++\nlora = ["style.gguf:0.9"]\n+++\n')
    assert answer(user, "hello", "--no-log", "-p", "styled")["text"] != plain
    assert answer(user, "hello", "--no-log", "-p", "styled", "--lora", "none")["text"] == plain


@pytest.mark.slow
def test_prompt_cache_of_another_adapter_is_never_used(user: CommandLine, adapter: Path) -> None:
    question = (TALE,)
    assert answer(user, *question)["cached_tokens"] == 0
    assert answer(user, *question)["cached_tokens"] > 256
    for lora in (f"{adapter}", f"{adapter}:0.5"):
        assert answer(user, *question, "--lora", lora)["cached_tokens"] == 0
        assert answer(user, *question, "--lora", lora)["cached_tokens"] > 256
    assert answer(user, *question, "--lora", f"{adapter}:0")["cached_tokens"] > 256


@pytest.mark.slow
def test_batch_is_not_resumed_with_another_adapter(user: CommandLine, chatml_model: Path, adapter: Path) -> None:
    (user.home / "in.txt").write_text("one\ntwo\n")
    command = ("batch", "in.txt", "-o", "out.jsonl", "-m", "small", "--max-tokens", "2", "-q")
    assert user.run(*command, "--lora", adapter).code == 0
    moved = user.home / "moved.gguf"
    moved.write_bytes(adapter.read_bytes())
    assert user.run(*command, "--lora", moved).code == 0
    other = write_adapter(user.home / "other.gguf", factors_for(chatml_model, seed=7))
    others: dict[tuple[str | Path, ...], str] = {
        (): "none",
        (f"{adapter}:0.5",): f"{adapter.name}:0.5",
        (other,): "other.gguf",
    }
    for adapters, now in {**others, (adapter, other): f"{adapter.name}, other.gguf"}.items():
        done = user.run(*command, *(part for path in adapters for part in ("--lora", path)))
        problem = f"out.jsonl was made with other settings: adapter ({moved.name}, now {now})"  # as last given
        assert_error(done, 1, problem)
    (user.home / "same").mkdir()
    same = write_adapter(user.home / "same/other.gguf", factors_for(chatml_model, seed=9))
    assert user.run(*command, "--lora", other, "--restart").code == 0
    assert "out.jsonl was made with other settings: adapter\n" in user.run(*command, "--lora", same).err


def test_adapter_with_scale_zero_is_no_part_of_the_identity(tmp_path: Path, chatml_model: Path, adapter: Path) -> None:
    library, plain = app_for({}, tmp_path).library, InstalledModel("tiny", (chatml_model,))
    assert library.with_adapters(plain, [f"{adapter}:0"]) == plain
    adapted = library.with_adapters(plain, [str(adapter)])
    assert library.identity(adapted) == library.identity(plain) and adapted.adapter_identity
    assert adapted.sizes.weight_bytes == plain.sizes.weight_bytes + 2048 + 1536 + 3072
    assert ModelSource(installation(), adapted, Settings()).options().adapters == ((adapter, 1.0),)
    both = [[f"{adapter}:1", f"{adapter}:2"], [f"{adapter}:2", f"{adapter}:1"]]
    assert len({library.with_adapters(plain, each).adapter_identity for each in both}) == 1


@pytest.mark.slow
def test_session_is_continued_with_its_adapter(user: CommandLine, adapter: Path) -> None:
    answer(user, "hello", "--lora", f"{adapter}:0.9")
    recorded = [f"{adapter}:0.9"]
    answer(user, "-c", "and now?")
    assert [each["params"].get("lora") for each in user.messages("hello")[1::2]] == [recorded] * 2
    assert user.params("hello")["lora"] == recorded
    answer(user, "-c", "without it?", "--lora", "none")
    assert "lora" not in user.messages("hello")[-1]["params"]
    assert "lora" not in user.params("hello")


@pytest.mark.slow
def test_chat_reloads_the_model_for_another_adapter(user: CommandLine, adapter: Path) -> None:
    env = {"CEREBRUM_MAX_TOKENS": "8", "CEREBRUM_TEMPERATURE": "0"}

    def chat(*lines: str) -> list[str]:
        script = "".join(f"{line}\n/help exit\n" for line in ("hello", *lines))
        done = user.run("chat", "small", "--quiet", stdin=script, env=env)
        refused.append("cannot be continued: the model's file or adapters have changed" in done.err)
        return [reply for reply in re.split(r"^/exit .*\n", done.out, flags=re.MULTILINE) if reply]

    refused: list[bool] = []
    plain, adapted, again = chat(f"/set lora {adapter}", "/retry", "/set lora default", "/retry")
    assert plain == again != adapted
    assert [len(chat("/continue")), len(chat(f"/set lora {adapter}", "/continue"))] == [2, 1]
    assert refused == [False, False, True]
