"""Types of the KV cache and flash attention: what is refused, what they are part of, and what they override."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
from command_line import CommandLine
from gguf_files import write_model
from installations import installation
from llama_engines import TALE, options
from tiny_models import Shape, write_chatml

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.requests import LoadOptions
from cerebrum_cli.engine.step import StopFlag, TokenRow
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.lm_eval.lm_eval_command import open_model
from cerebrum_cli.replies.source import ModelSource


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of 32 elements, which a quantized cache can hold."""
    return write_chatml(tmp_path_factory.mktemp("models") / "wide.gguf", shape=Shape(width=128))


def options_with(path: Path, **settings: Any) -> LoadOptions:
    model = InstalledModel("tiny", (path,))
    return ModelSource(installation(), model, Settings(**settings)).options()


# What is refused before loading.


@pytest.mark.parametrize(
    ("model", "settings", "problem"),
    [
        ("narrow", {"cache_type": "q4_0"}, "cache_type=q4_0 needs a head size that is a multiple of 32.* is 16"),
        ("narrow", {"cache_type": "f16:q4_0"}, "cache_type=f16:q4_0 needs a head size that is a multiple of 32.* is"),
        ("deepseek2", {"cache_type": "f16:q8_0", "ctx": 256}, "deepseek2 needs the same type for keys and values"),
    ],
)
def test_cache_types_that_a_model_cannot_have_are_refused(
    tmp_path: Path, chatml_model: Path, wide: Path, model: str, settings: dict[str, Any], problem: str
) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_key_length(128)
        writer.add_value_length(128)
        if model == "deepseek2":
            writer.add_key_length_mla(192)

    path = {"narrow": chatml_model, "wide": wide}.get(model) or write_model(tmp_path / "model.gguf", fill, model)
    with pytest.raises(UsageError, match=problem):
        options_with(path, **settings)
    allowed = options_with(wide, cache_type="q8_0:f16", flash_attn="off")
    assert (allowed.context.flash_attention, allowed.context.cache_type_v) == (False, "f16")


def test_cache_types_change_the_memory_and_little_else(wide: Path) -> None:
    def logits(**types: str) -> Any:
        plain = options(wide)
        context = replace(plain.context, **types)  # type: ignore[arg-type]
        backend = open_llama(replace(plain, context=context), lambda _: None, StopFlag())
        try:
            backend.reserve(64)
            backend.decode([TokenRow(0, index, 20 + index, index == 9) for index in range(10)])
            backend.decode([TokenRow(0, 10, 40, True)])
            return np.array(backend.logits(0)), backend.context.state_size(0), backend.state_kind
        finally:
            backend.close()

    plain, plain_size, plain_kind = logits()
    for keys, values in (("f16", "f16"), ("f16", "q8_0"), ("q8_0", "f16"), ("q4_0", "q4_0")):
        other, size, kind = logits(cache_type_k=keys, cache_type_v=values)
        is_default = (keys, values) == ("f16", "f16")
        assert (np.abs(plain - other).max() == 0, size == plain_size, kind == plain_kind) == (is_default,) * 3
        assert np.corrcoef(plain, other)[0, 1] > 0.8


# What they override, and what they are part of.


@pytest.mark.slow
def test_prompt_cache_and_batch_of_another_cache_type_are_never_used(new_user: CommandLine, wide: Path) -> None:
    def cached(*arguments: str) -> int:
        done = new_user.run("ask", "-m", wide, "--json", "--max-tokens", "2", TALE, *arguments)
        assert done.code == 0, done.err
        return int(done.object["cached_tokens"])

    quantized = ("--set", "cache_type=f16:q8_0")
    assert (cached(), cached(*quantized)) == (0, 0)
    assert min(cached(), cached(*quantized)) > 256
    (new_user.home / "in.txt").write_text("one\ntwo\n")
    command = ("batch", "in.txt", "-o", "out.jsonl", "-m", wide, "--max-tokens", "2", "-q")
    assert new_user.run(*command, *quantized).code == 0
    done = new_user.run(*command)
    assert (done.code, "out.jsonl was made with other settings: cache_type" in done.err) == (1, True)


def test_exact_scores_keep_their_own_cache(wide: Path) -> None:
    opened: list[LoadOptions] = []
    model = InstalledModel("tiny", (wide,))
    settings = Settings(cache_type="q4_0", flash_attn="on", threads=1)

    def open_file(options: LoadOptions, emit: Any, stop: Any) -> Any:
        opened.append(options)
        return open_llama(options, emit, stop)

    uses: tuple[Literal["scoring", "generation"], ...] = ("scoring", "generation")
    source = ModelSource(installation(open_file), model, settings, raw=True)
    for use in uses:
        loaded = open_model(source, use)
        list(loaded.engine.load())
        loaded.engine.close()
    types = [(each.context.cache_type_k, each.context.cache_type_v, each.context.flash_attention) for each in opened]
    assert types == [("f32", "f32", False), ("q4_0", "q4_0", True)]
