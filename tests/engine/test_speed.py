"""Forecasts of speed: bytes that are read for a token, and what replies show of the machine."""

from pathlib import Path

import pytest
from command_line import CommandLine

from cerebrum_cli.core.events import Timings
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.capacity import Capacity, Forecast
from cerebrum_cli.engine.local import MachineRecords
from cerebrum_cli.engine.machine import Speed, expected_speed, instruction_set, thread_count
from cerebrum_cli.gguf.contents import Metadata
from cerebrum_cli.gguf.sizes import Hyperparameters, LayerSizes, ModelSizes, model_sizes

MB = 1_000_000
DENSE: Metadata = {"general.architecture": "llama", "llama.block_count": 1}
MIXTURE: Metadata = {**DENSE, "llama.expert_count": 8, "llama.expert_used_count": 2}
LAYERS = ModelSizes((LayerSizes(36 * MB),) * 24, output_bytes=40 * MB, input_bytes=96 * MB, active_share=0.904)


@pytest.mark.parametrize(
    ("metadata", "tensors", "active"),
    [
        (DENSE, {"blk.0.ffn_up.weight": 700, "token_embd.weight": 200, "output.weight": 300}, 1000),
        (DENSE, {"blk.0.ffn_up.weight": 700, "token_embd.weight": 200}, 900),  # which are the output matrix, too
        (DENSE, {"blk.0.ffn_up.weight": 700, "token_embd.weight": 200, "per_layer_token_embd.weight": 500}, 900),
        (MIXTURE, {"blk.0.ffn_up_exps.weight": 800, "blk.0.attn_q.weight": 50, "output.weight": 60}, 310),
        (DENSE, {}, 0),
    ],
)
def test_sizes_count_the_weights_that_are_read_for_a_token(
    metadata: Metadata, tensors: dict[str, int], active: int
) -> None:
    sizes = model_sizes(Hyperparameters(Path(), metadata), tensors.items())
    assert round(sizes.active_bytes) == active
    assert round(sizes.with_weights(2 * sum(tensors.values())).active_bytes) == 2 * active


def test_forecast_is_in_proportion_to_bytes_and_layers() -> None:
    sizes = ModelSizes((LayerSizes(36 * MB),) * 24, output_bytes=40 * MB)  # 904 MB, and 96 or 288 MB for layers
    with_avx512 = Capacity(0, (), Speed(28e9, 119.2e9, prompt_layer=12 * MB))
    assert with_avx512.forecast(sizes, 2000) == Forecast(28, 2, 71)
    found = Capacity(0, (), Speed(28e9, 100e9)).forecast(sizes)
    assert found and found.first_token_s == 2
    assert found.answer_s == pytest.approx(2 + 100 / 28)


def test_speed_is_that_of_the_fastest_reply_that_is_long_enough() -> None:
    sizes = ModelSizes((LayerSizes(36 * MB),) * 24, output_bytes=40 * MB)
    reply = Timings(prefill_s=2, prefill_tokens=200, decode_s=2, decode_steps=56)
    assert Speed().with_reply(sizes, reply) == Speed(28e9, 100e9)
    assert Speed(30e9, 90e9, 1).with_reply(sizes, reply) == Speed(30e9, 100e9, 1)
    with_avx512 = Speed(prompt_layer=12 * MB)
    assert with_avx512.with_reply(sizes, reply) == with_avx512._replace(generation=28e9, prompts=119.2e9)
    drafted = Timings(prefill_s=2, prefill_tokens=200, decode_s=2, decode_steps=70, draft_n=16, draft_n_accepted=14)
    assert Speed().with_reply(sizes, drafted) == Speed(28e9, 100e9), "accepted drafts are no steps"
    for short in (
        Timings(prefill_s=0.1, prefill_tokens=31, decode_s=0.1, decode_steps=56),
        Timings(prefill_s=0.1, prefill_tokens=200, decode_s=0.1, decode_steps=15),
        Timings(prefill_s=0.1, prefill_tokens=200, decode_s=0.1, decode_steps=56, draft_n=18),
    ):
        assert Speed().with_reply(sizes, short) == Speed()


def test_speed_before_a_reply_is_that_of_the_processor_within_the_memory() -> None:
    assert expected_speed(2, True, Speed(prompt_layer=5)) == Speed(28e9, 120e9, prompt_layer=5)
    assert expected_speed(2, False, Speed(bandwidth=50e9)) == Speed(20e9, 70e9, 50e9)
    assert expected_speed(16, False, Speed(bandwidth=20e9)) == Speed(40e9, 560e9, 20e9)


def test_speed_file_is_of_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "speed.json"
    reply = Timings(prefill_s=2, prefill_tokens=200, decode_s=2, decode_steps=56)
    MachineRecords(tmp_path).record_replies(ModelSizes((LayerSizes(MB),) * 24), [reply])
    assert not path.exists(), "the model is too small"
    monkeypatch.setattr(machine, "READ_BYTES", 1000)
    machine.record_bandwidth(tmp_path)
    recorded = path.read_bytes()
    machine.record_bandwidth(tmp_path)
    assert path.read_bytes() == recorded, "once"
    machine.record_replies(tmp_path, LAYERS, [reply, reply])
    measured = machine.load_speed(tmp_path)
    assert measured.bandwidth and measured.generation == pytest.approx(28e9, rel=0.01)
    monkeypatch.setattr(machine, "processor_name", lambda: "another")
    other = machine.load_speed(tmp_path)
    assert other == expected_speed(
        thread_count(), instruction_set() == "avx512", Speed(prompt_layer=other.prompt_layer)
    )
    path.write_text("[]")
    assert not machine.load_speed(tmp_path).bandwidth


def test_list_forecasts_from_earlier_replies(
    new_user: CommandLine, chatml_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.machine.MIN_BYTES", 0)
    new_user.run("pull", chatml_model, "--name", "tiny")
    [before] = new_user.run("list", "--json").object
    options = ("--no-log", "--raw", "-n", "20", "--set", "speculative=off")
    asked = new_user.run("ask", "-m", "tiny", *options, "x" * 40)
    assert asked.code == 0, asked.err
    [after] = new_user.run("list", "--json").object
    assert before["speed"] and after["speed"] and before["speed"] != after["speed"]
    assert " t/s after " in new_user.run("list").out
