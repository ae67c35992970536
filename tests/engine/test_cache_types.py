"""Types of the KV cache, returning to earlier tokens, and moving to longer slots."""

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
from asking import ask, collect_replies, generate, loaded, running_engine
from command_line import CommandLine
from gguf_files import write_model
from installations import installation
from llama_engines import TALE, in_f32, options
from scripted_backend import ScriptedBackend, endless, replies, tokens
from tiny_models import Shape, write_chatml

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine import requests as engine_requests
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import OPENING_TOKENS, LoadOptions, Request
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
        writer.add_key_length_mla(192)

    path = chatml_model if model == "narrow" else write_model(tmp_path / "model.gguf", fill, model)
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


BUDGET = 10_000
END = OPENING_TOKENS
FIRST = "a question of more than sixteen tokens, asked first? "
SCRIPT = {FIRST: "An answer. ", f"{FIRST}An answer. Another? ": "So. ", f"{FIRST}An answer. A third? ": "Or so. "}


def recurrent(slots: int = 1, **options: Any) -> ScriptedBackend:
    return ScriptedBackend(replies(SCRIPT), slots, 200, can_trim=False, checkpoint_budget=BUDGET, **options)


@pytest.mark.parametrize("slots", [1, 3])
def test_recurrent_model_returns_to_checkpoints(slots: int) -> None:
    """The last question again, and then another one in its place, as after an undo."""
    first, second, third = SCRIPT
    with running_engine(recurrent(slots, kv_unified=slots > 1)) as engine:
        said = [ask(engine, prompt)[0] for prompt in (first, first, second, second, third)]
    assert [reply.text for reply in said] == ["An answer. ", "An answer. ", "So. ", "So. ", "Or so. "]
    answered = len(first) + len("An answer. ")
    assert [reply.cached for reply in said] == [0, len(first) - END, answered, answered, answered]


def test_recurrent_model_samples_one_after_another_from_a_checkpoint() -> None:
    with running_engine(recurrent()) as engine:
        said = ask(engine, FIRST, n=4)
    assert [reply.cached for reply in said] == [0, *[len(FIRST) - END] * 3]


def test_samples_share_the_checkpoints_of_their_prompt() -> None:
    """One of 37 tokens, of which each slot has its own, though it would not fit into the budget four times."""
    backend = recurrent(4, kv_unified=True)
    backend.checkpoint_budget = 4 * 100
    with running_engine(backend) as engine:
        ask(engine, FIRST, n=4)
        again = ask(engine, FIRST, n=4)
    assert [reply.cached for reply in again] == [len(FIRST) - END, *[len(FIRST)] * 3]


def test_checkpoints_stay_within_their_budget() -> None:
    """Each takes 4 bytes a token: the first, of 37 tokens, is dropped for the second, of 64."""
    first, second, _ = SCRIPT
    backend = recurrent()
    backend.checkpoint_budget = 4 * 100
    with running_engine(backend) as engine:
        for prompt in (first, second, first):
            [reply] = ask(engine, prompt)
    assert (reply.text, reply.cached) == ("An answer. ", 0)


def test_common_prefix_is_snapshot_for_slots_that_cannot_be_trimmed() -> None:
    """The second prompt shows what is common, the third loads it."""
    common = "Some examples that all questions have in common, in more than sixty-four tokens: "
    script = {f"{common}{name}": "Yes." for name in ("first", "second", "third", "fourth")}
    backend = ScriptedBackend(replies(script), 2, 200, can_trim=False)
    with running_engine(backend) as engine:
        said = [ask(engine, prompt)[0] for prompt in script]
    assert [reply.cached for reply in said] == [0, 0, len(common), len(common)]


def growing(slots: int, **options: Any) -> tuple[ScriptedBackend, list[Request]]:
    """Requests whose replies outgrow slots of 40 tokens: 90 tokens after 10."""
    script = {f"{name} prompt. ": name for name in "abcd"}
    backend = ScriptedBackend(endless(script), slots, 100, **options)
    return backend, [Request(tokens(prompt)) for prompt in script]


@pytest.mark.parametrize(
    ("cells", "limit", "reserved"),
    [
        (1_000_000, None, [(40, 4), (70, 4), (100, 4)]),
        (170, None, [(40, 4), (70, 2), (100, 1)]),
        (1_000_000, 80, [(90, 4)]),  # as long as requested if memory is free
    ],
)
def test_sequences_are_evaluated_again_in_longer_slots(
    monkeypatch: pytest.MonkeyPatch, cells: int, limit: int | None, reserved: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", 30)
    backend, requests = growing(4, fitting_cells=cells)
    limited = [replace(request, params=SamplingParams(max_tokens=limit)) for request in requests]
    with running_engine(backend) as engine:
        said = collect_replies(generate(engine, limited)).values()
    assert [len(reply.ids) for reply in said] == [limit or 90] * 4
    is_moved = len(reserved) > 1
    assert (backend.evaluated > 4 * (9 + (limit or 90))) == is_moved
    assert backend.reserved == reserved


def test_llama_tells_states_of_other_numbers_of_slots_apart(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "state"
    backend = open_llama(options(tiny_model, slots=4), lambda event: None, StopFlag())
    backend.reserve(256, 4)
    kind = backend.state_kind
    assert backend.decode([TokenRow(1, at, 5 + at, at == 99) for at in range(100)])
    backend.context.save_state(1, array("i", range(5, 105)), path)
    assert backend.context.load_state(2, path)
    assert backend.context.length(2) == 100
    backend.reserve(256, 2)
    assert backend.state_kind != kind
    path.unlink()
    assert not backend.context.load_state(0, path)
    assert backend.context.length(0) == 0
    backend.close()


@pytest.mark.slow
def test_llama_replies_continue_in_longer_slots(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """Texts are those of slots that were long enough at first."""
    load_options = in_f32(options(tiny_model, slots=3, context_size=2048))
    params = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
    said = []
    for expected in (30, 1024):
        monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", expected)
        monkeypatch.setattr(Request, "max_length", lambda self, size: size)
        with loaded(LocalEngine(lambda tell, stop: open_llama(load_options, tell, stop))) as engine:
            prompt = engine.vocabulary.tokenize([Text(TALE)])[:60]
            found = collect_replies(generate(engine, [Request(prompt, params, Ask(n=3, ignore_eos=True))]))
            said.append([reply.ids for reply in found.values()])
    assert said[0] == said[1]
