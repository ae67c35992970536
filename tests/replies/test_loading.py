"""Loading: planned context, layers and slots; progress, logs and errors of llama.cpp."""

import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.core.errors import EngineError, ModelFileError
from cerebrum_cli.core.events import Event, LoadEvent
from cerebrum_cli.engine.llama.bindings import Log
from cerebrum_cli.engine.llama.load import open_llama, option_notices
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.memory import GPU_UBATCH, HEADROOM, Device, FreeMemory, LoadPlan
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.header import read_header
from cerebrum_cli.gguf.sizes import uniform_sizes

GIB = 2**30
DEBUG, INFO, WARNING, ERROR, CONTINUED = range(1, 6)


def options(path: Path) -> LoadOptions:
    return LoadOptions(path, 2048, uniform_sizes(1_000_000, 2, 128), ContextOptions(n_threads=1))


def opened(told: list[Event], load: LoadOptions, stop: StopFlag | None = None) -> None:
    open_llama(load, told.append, stop or StopFlag()).close()


def test_load_reports_progress(chatml_model: Path) -> None:
    told: list[Event] = []
    opened(told, options(chatml_model))
    fractions = [event.fraction for event in told if isinstance(event, LoadEvent)]
    assert fractions == sorted(fractions) and 0.0 <= fractions[0] <= fractions[-1] <= 1.0


def test_load_reports_the_first_load_in_a_child_only_if_there_is_one(chatml_model: Path, tmp_path: Path) -> None:
    starts = []
    for _ in range(2):
        events: list[Event] = []
        open_llama(options(chatml_model), events.append, StopFlag(), records=tmp_path).close()
        starts.append(events.count(LoadEvent(0.0)))
    assert starts[0] == starts[1] + 1


def test_load_offloads_a_recurrent_model_with_the_one_state_it_gets(
    recurrent_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = read_header(recurrent_model).sizes
    all_layers = (len(sizes.layers) + 1,)
    needs = LoadPlan(sizes, ContextOptions(2048, 1, 1, GPU_UBATCH), all_layers).needs
    gpu = Device("CUDA0", "a GPU", needs.devices[0] + HEADROOM, GIB)
    monkeypatch.setattr("cerebrum_cli.engine.llama.load.free_memory", lambda: FreeMemory(8 * GIB, (gpu,)))
    context = ContextOptions(n_threads=1, slots=16, kv_unified=True)  # as a chat does
    load = LoadOptions(recurrent_model, 2048, sizes, context)
    backend = open_llama(load, lambda event: None, StopFlag())
    assert backend._plan.offloaded == all_layers
    backend.close()


def test_load_plans_batches_beside_mapped_weights(seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = read_header(seven).sizes
    batch = ContextOptions(1024, 64, 1, 128)
    cache = LoadPlan(sizes, replace(batch, slots=10)).context_needs.host
    load = LoadOptions(seven, 2048, sizes, batch)
    for allocated in (0, sizes.weight_bytes // 3, sizes.weight_bytes):  # while the file is loaded
        before = HEADROOM + sizes.weight_bytes + cache
        measured = iter([FreeMemory(before), *[FreeMemory(before - allocated)] * 2])
        for module in ("load", "llama_backend"):
            monkeypatch.setattr(f"cerebrum_cli.engine.llama.{module}.free_memory", lambda values=measured: next(values))
        backend = open_llama(load, lambda event: None, StopFlag())
        assert backend.slots_for(1024) == 10
        backend.close()


def test_load_repacks_weights_where_memory_allows(seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = LoadOptions(seven, 2048, read_header(seven).sizes, repack=True)
    for free, repacks in ((8 * GIB, True), (HEADROOM, False)):
        monkeypatch.setattr("cerebrum_cli.engine.llama.load.free_memory", lambda free=free: FreeMemory(free))
        with closing(open_llama(load, lambda event: None, StopFlag())) as backend:
            assert backend.repacks == repacks


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are Unicode")
def test_load_accepts_undecodable_file_names(chatml_model: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff\xfe.gguf")
    path.write_bytes(chatml_model.read_bytes())
    opened([], options(path))


DAMAGES: tuple[tuple[Callable[[bytes], bytes], str], ...] = (
    (lambda model: b"", "failed to read magic"),
    (lambda model: b"hello" * 100, "invalid magic characters: 'hell', expected 'GGUF'"),
    (lambda model: model[:3000], "failed to read key-value pairs"),
    (lambda model: model[:4] + b"\t\0\0\0" + model[8:], "this GGUF file is version 9 but this software"),
    (lambda model: model[:-1000], "tensor 'blk.1.ffn_down.weight' data is not within the file bounds"),
    (lambda model: model.replace(b"llama", b"lamma", 1), "unknown model architecture: 'lamma'"),
)


@pytest.mark.parametrize(("change", "reason"), DAMAGES)
def test_load_of_a_damaged_file_gives_the_reason(
    chatml_model: Path, tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(change(chatml_model.read_bytes()))
    engine = LocalEngine(lambda tell, stop: open_llama(options(path), tell, stop))
    for _ in range(2):
        with pytest.raises(ModelFileError) as caught:
            list(engine.load())
        assert caught.value.message.startswith(f"{path}: llama.cpp cannot load it: ")
        assert reason in caught.value.message
    engine.close()


def test_load_stops_when_interrupted(chatml_model: Path) -> None:
    stop = StopFlag()
    stop.set()
    with pytest.raises(EngineError, match="interrupted"):
        opened([], options(chatml_model), stop)


def test_log_forwards_lines_and_keeps_problems() -> None:
    kept, heard = Log(), list[str]()
    kept.forward = heard.append
    kept.write(DEBUG, b"inside ")
    kept.write(CONTINUED, b"and out\n")
    kept.write(INFO, b"shown\n")
    kept.write(WARNING, b"beware\nof ")
    kept.write(CONTINUED, b"the fox\n")
    kept.write(ERROR, "Füchse\n".encode())
    kept.write(INFO, b"not yet")
    assert list(kept.problems) == ["beware", "of the fox", "Füchse"]
    assert heard == ["shown", *kept.problems]


@pytest.mark.parametrize(
    ("changes", "devices", "problem"),
    [
        ({"context": ContextOptions(2049)}, (), "--ctx 2049 exceeds the model's trained context of 2048 tokens"),
        ({"context": ContextOptions(2048)}, (), ""),
        ({"gpu_layers": "all"}, (), "--gpu-layers all: llama.cpp finds no GPU; using the CPU"),
        ({"gpu_layers": "all"}, (Device("CUDA0", "a GPU", GIB, GIB),), ""),
    ],
)
def test_load_notes_options_without_effect(changes: dict[str, Any], devices: tuple[Device, ...], problem: str) -> None:
    asked = replace(options(Path("model.gguf")), **changes)
    assert "".join(notice.message for notice in option_notices(asked, devices)) == problem
