"""Tuning profiles: saved, loaded, used by commands, and printed."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from command_line import Finished
from scripted_backend import ScriptedBackend
from scripted_bench import ScriptedBench, SpeedModel
from scripted_command import app_for, run_here
from tiny_models import CHATML_TEMPLATE, Shape, write_chatml, write_vocabulary

from cerebrum_cli.cli.app import App
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.files import lock_file
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.memory import HEADROOM, ContextOptions, Device
from cerebrum_cli.engine.model_options import LoadOptions, Tuning
from cerebrum_cli.engine.step_costs import MEASURED_ROWS, StepCosts
from cerebrum_cli.library.installed import NANO
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.main import run
from cerebrum_cli.replies.profiles import Profile, ProfileStore, Speeds, TunedUse, UseName
from cerebrum_cli.replies.source import CHAT_CONTEXT, load_options
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.tune.tune import bench_options

DEFAULT_SPEEDS = Speeds(2.0, 30.0, 8.0, 8_000_000_000)
TUNED_SPEEDS = Speeds(0.5, 45.0, 5.6, 4_600_000_000)
DEFAULT_USE = TunedUse(Tuning(), DEFAULT_SPEEDS)
TUNED_USE = TunedUse(Tuning(repack=False), TUNED_SPEEDS, 1.31)
KEYS = ["model", "file", "created", "machine", "build", "uses", "tried"]
USE_KEYS = ["settings", "gain", "load_s", "prompt_tokens_per_second", "tokens_per_second", "memory", "step_costs"]
STEP_COSTS = StepCosts((1, 4, 8, 16), (1.0, 2.9, 2.0, 5.5))


def profile(
    model: str = "sha 1",
    machine: str = "here",
    build: str = "b1",
    *,
    chat: TunedUse = DEFAULT_USE,
    ask: TunedUse = TUNED_USE,
    batch: TunedUse = DEFAULT_USE,
) -> Profile:
    """A profile that differs from the defaults only for `ask`."""
    uses: dict[UseName, TunedUse] = {"chat": chat, "ask": ask, "batch": batch}
    return Profile(model, machine, build, "2026-11-20T20:58:34+00:00", uses)


ALL_SETTINGS = Tuning(False, 4, 6, 64, "12", 16, False)


def test_load_options_prefer_user_settings_over_the_tuning() -> None:
    model = InstalledModel("nano", (NANO,))
    tuned = load_options(model, Settings(), tuning=ALL_SETTINGS)
    context = tuned.context
    assert (tuned.repack, tuned.gpu_layers, context.n_threads, context.n_threads_batch) == (False, "12", 4, 6)
    assert (context.n_ubatch, context.slots, context.flash_attention) == (64, 1, False)
    settings = Settings(threads=2, gpu_layers="0", ctx=512, flash_attn="on")
    user_set = load_options(model, settings, tuning=ALL_SETTINGS)
    context = user_set.context
    assert context.flash_attention is True
    assert load_options(model, Settings(flash_attn="auto"), tuning=ALL_SETTINGS).context.flash_attention is None
    assert (context.n_threads, context.n_threads_batch, user_set.gpu_layers, context.length) == (2, 0, "0", 512)
    for context in (CHAT_CONTEXT, ContextOptions(slots=8, batch_invariant=True)):
        assert load_options(model, Settings(), context, ALL_SETTINGS).context.slots == context.slots
    default = load_options(model, Settings())
    assert bench_options(model, Settings()) == default == load_options(model, Settings(), tuning=Tuning())


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    return ProfileStore(tmp_path / "profiles", "here", "b1")


@pytest.mark.parametrize("name", ["sha 1", "/m\udcff.gguf 1 2"])
def test_profile_store_saves_replaces_and_deletes(store: ProfileStore, name: str) -> None:
    assert (store.find(name), store.find_other(name)) == (None, None)
    saved = profile(
        name, chat=replace(DEFAULT_USE, step_costs=STEP_COSTS), batch=TunedUse(ALL_SETTINGS, TUNED_SPEEDS, 1.2)
    )
    store.save(saved)
    assert (store.find(name), store.find_other(name)) == (saved, None)
    newer = replace(saved, created="2027-01-01T00:00:00+00:00")
    store.save(newer)
    assert store.find(name) == newer
    store.delete(name)
    assert store.find(name) is None


def test_profile_store_separates_machines_builds_and_models(store: ProfileStore, tmp_path: Path) -> None:
    saved = profile()
    store.save(saved)
    assert (store.find("sha 2"), store.find_other("sha 2")) == (None, None)
    for machine, build in (("there", "b1"), ("here", "b2"), ("here|b1", ""), ("", "here|b1")):
        other = ProfileStore(tmp_path / "profiles", machine, build)
        assert (other.find("sha 1"), other.find_other("sha 1")) == (None, saved)
    own = profile(machine="there")
    store.save(own)
    assert (store.find("sha 1"), store.find_other("sha 1")) == (saved, own)
    store.save(profile("sha 2"))
    store.delete("sha 1")
    assert (store.find("sha 1"), store.find_other("sha 1"), store.find("sha 2")) == (None, None, profile("sha 2"))


class CommandRunner:
    """Runs commands in one home, with a scripted model and bench; `loaded` lists the load options of models."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.loaded: list[LoadOptions] = []
        self.benches: list[ScriptedBench] = []
        self.speed_model = SpeedModel(single={("repack", False): (1.5, 0.9)}, batch={("slots", 16): (1.0, 1.5)})
        self.devices: tuple[Device, ...] = ()
        self.disturbed_jobs = 0
        self.row_cost: float | None = None

    def app(self, piped: bytes | None = None, streams: Streams | None = None) -> App:
        piped_input = None if piped is None else BytesIO(piped)
        streams = streams or Streams(StringIO(), StringIO(), piped_input, False, False, False)
        app = app_for({"rows": {}, "seeds": ["The answer is 7."]}, self.home, streams)
        open_scripted = app.open_file

        def open_file(options: LoadOptions, emit: Any, stop: Any) -> Any:
            self.loaded.append(options)
            return open_scripted(options, emit, stop)

        def bench(options: LoadOptions, directory: Path, gpus: tuple[Device, ...]) -> Any:
            assert options.file.path == self.model
            bench = ScriptedBench(self.speed_model, devices=self.devices, disturbed_jobs=self.disturbed_jobs)
            bench.row_cost = self.row_cost
            self.benches.append(bench)
            return bench

        app.open_file, app.bench = open_file, bench
        return app

    def run(self, *arguments: str | Path, piped: bytes | None = None) -> Finished:
        return self.run_with(self.app(piped), *arguments)

    def run_with(self, app: App, *arguments: str | Path) -> Finished:
        code = run([str(argument) for argument in arguments], app)
        out, err = app.streams.out, app.streams.err
        assert isinstance(out, StringIO) and isinstance(err, StringIO)
        return Finished(code, out.getvalue(), err.getvalue())

    def load_options(self, *arguments: str | Path, piped: bytes | None = None) -> LoadOptions:
        """Run a command that loads one model, and get its load options."""
        self.loaded.clear()
        done = self.run(*arguments, "-m", self.model, piped=piped)
        assert done.code == 0, done.err
        [options] = self.loaded
        return options

    def save_profile(self, measured: Profile) -> None:
        store = self.app().profiles()
        store.save(replace(measured, model=self.identity(), machine=store.machine, build=store.build))

    def identity(self) -> str:
        library = self.app().library
        model = library.resolve(str(self.model))
        library.registry.digest(model.path)
        return library.identity(model)

    @property
    def profiles(self) -> Path:
        return self.home / "data" / "cerebrum" / "profiles"


@pytest.fixture
def runner(tmp_path: Path, chatml_model: Path) -> CommandRunner:
    return CommandRunner(tmp_path, chatml_model)


def tuned_use(count: int, slots: int | None = None) -> TunedUse:
    return TunedUse(Tuning(n_threads=count, n_threads_batch=count + 100, slots=slots), DEFAULT_SPEEDS, 1.5)


@pytest.fixture
def tuned(runner: CommandRunner) -> CommandRunner:
    """A runner with a profile that has a different number of threads for each use."""
    runner.save_profile(profile(chat=tuned_use(11), ask=tuned_use(12), batch=tuned_use(14, slots=5)))
    return runner


@pytest.mark.slow
def test_commands_use_the_settings_of_their_use(tuned: CommandRunner) -> None:
    vote = tuned.load_options("ask", "--votes", "3", "hello").context
    assert (vote.n_threads, vote.n_threads_batch, vote.slots) == (14, 114, 3)
    chat = tuned.load_options("chat", piped=b"hello\n").context
    assert (chat.n_threads, chat.n_threads_batch, chat.slots, chat.kv_unified) == (11, 111, CHAT_CONTEXT.slots, True)
    rows = "".join(f"question {n}\n" for n in range(9)).encode()
    batch = tuned.load_options("batch", "-", "-o", "-", piped=rows).context
    assert (batch.n_threads, batch.slots, batch.batch_invariant) == (14, 5, True)
    assert tuned.load_options("batch", "-", "-o", "-", piped=b"one\ntwo\n").context.slots == 2
    for parallel, slots in (("8", 8), ("2", 2)):
        assert tuned.load_options("batch", "-", "-o", "-", "--parallel", parallel, piped=rows).context.slots == slots


def test_batch_drafts_with_the_costs_measured_for_ask(runner: CommandRunner) -> None:
    script: dict[str, Any] = {"rows": {}, "seeds": ["the cat sat on the mat. " * 8]}

    def most_outputs(*options: str) -> int:
        command = ("batch", "-", "-o", "-", "-m", str(runner.model), *options)
        assert run_here(script, runner.home, *command, piped=b"hello\n").code == 0
        backend: ScriptedBackend = script["backends"][-1]
        return max(sum(row.output for row in step) for step in backend.steps)

    assert (most_outputs(), most_outputs("--set", "speculative=on")) == (1, 64)
    runner.save_profile(profile(ask=replace(DEFAULT_USE, step_costs=StepCosts((1, 2), (1.0, 1.1)))))
    assert (most_outputs(), most_outputs("--set", "speculative=on")) == (1, 2)


@pytest.mark.parametrize("arguments", [("ask", "hello"), ("batch", "-", "-o", "-")])
def test_no_profile_option_gives_default_settings(
    tuned: CommandRunner,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    piped = None if "hello" in arguments else b"hello\n"
    untuned = CommandRunner(tmp_path_factory.mktemp("home"), tuned.model).load_options(*arguments, piped=piped)
    assert untuned.context.n_threads == 0
    assert tuned.load_options(*arguments, "--set", "no_profile=on", piped=piped) == untuned
    assert tuned.load_options(*arguments, piped=piped) != untuned
    monkeypatch.setenv("CEREBRUM_NO_PROFILE", "1")
    assert tuned.load_options(*arguments, piped=piped) == untuned


def test_damaged_profile_or_changed_model_gives_default_settings(tuned: CommandRunner) -> None:
    tuned.model, model = tuned.home / "copy.gguf", tuned.model
    tuned.model.write_bytes(model.read_bytes())
    assert tuned.load_options("ask", "hello").context.n_threads == 0
    tuned.model = model
    assert tuned.load_options("ask", "hello").context.n_threads == 12
    [path] = tuned.profiles.iterdir()
    path.write_bytes(b"\x00")
    assert tuned.run("show", tuned.model, "--json").object["profile"] is None
    assert tuned.load_options("chat", piped=b"hello\n").context.n_threads == 0


def test_tune_saves_a_profile_that_other_commands_use(runner: CommandRunner) -> None:
    default, chat = runner.load_options("ask", "hello"), runner.load_options("chat", piped=b"hello\n")
    done = runner.run("tune", runner.model, "--json")
    assert (done.code, done.err, list(done.object), done.object["model"]) == (0, "", KEYS, runner.model.stem)
    uses = done.object["uses"]
    settings = {name: use["settings"] for name, use in uses.items()}
    assert settings == {"chat": {}, "ask": {"repack": False}, "batch": {"slots": 16}}
    assert all(list(use) == USE_KEYS for use in uses.values())
    assert [use["gain"] > 1 for use in uses.values()] == [False, True, True]
    assert {tuple(tried) for tried in done.object["tried"]} == {("settings", "batch", "ratios", "dropped")}
    assert [bench.closed for bench in runner.benches] == [True]
    assert sorted(path.suffix for path in runner.profiles.iterdir()) == ["", ".json"], "a lock and a profile"
    assert runner.load_options("ask", "hello") == replace(default, repack=False, baseline=default)
    assert runner.load_options("chat", piped=b"hello\n") == chat
    shown = runner.run("show", runner.model, "--json").object["profile"]
    assert shown == {key: value for key, value in done.object.items() if key not in ("model", "file", "tried")}


def test_tune_prints_a_row_per_use_and_a_summary(runner: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.tune.tune.instruction_set", lambda: "avx512")
    done = runner.run("tune", runner.model, "--threads", "1")
    rows = [line.split("  ") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == ["use", "chat", "ask", "batch", "speculative decoding: off"]
    ask = [cell.strip() for cell in rows[2] if cell.strip()]
    assert ask == ["ask", "1.21 x", "not repacked", "45.0", "7.2", "2.0 s", "1 kB"]
    assert done.err.splitlines()[1:] == [
        "measured, relative to the defaults:",
        "  not repacked: prompt 1.50 x, gen 0.90 x",
        "  no flash attention: prompt 1.00 x, gen 1.00 x",
        "  not repacked, no flash attention: prompt 1.50 x, gen 0.90 x",
        "  batch, not repacked: prompt 1.00 x, gen 1.00 x",
        "  batch, 16 sequences: prompt 1.00 x, gen 1.50 x",
        "  batch, 32 sequences: prompt 1.00 x, gen 1.00 x",
        *(f"  not repacked, n_ubatch {size}: prompt 1.50 x, gen 0.90 x" for size in (64, 256, 512)),
        "changed:",
        "  ask: not repacked (before: defaults)",
        "  batch: 16 sequences (before: defaults)",
        "ask, chat and batch now use these settings for chatml with --threads 1; --set no_profile=on ignores them",
    ]
    assert not {"\x1b", "\r"} & {*done.out, *done.err}
    assert done.code == 0
    assert runner.run("tune", runner.model, "--threads", "1", "--quiet") == Finished(0, done.out, "")
    monkeypatch.setenv("CEREBRUM_THREADS", "1")
    assert done.out in runner.run("show", runner.model).out


@pytest.mark.parametrize(
    ("options", "instructions", "tried"),
    [
        ((), "avx512", {False}),
        ((), "arm64", {False, True}),
        (("--set", "flash_attn=on"), "arm64", set()),
        (("--set", "cache_type_v=q8_0"), "arm64", set()),
        (("--set", "cache_type_k=q8_0"), "avx512", {False}),
    ],
)
def test_tune_tries_without_flash_attention_where_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], instructions: str, tried: set[bool]
) -> None:
    """In a batch not on x86, where answers would depend on speculative decoding."""
    monkeypatch.setattr("cerebrum_cli.tune.tune.instruction_set", lambda: instructions)
    runner = CommandRunner(tmp_path, write_chatml(tmp_path / "wide.gguf", shape=Shape(width=128)))
    done = runner.run("tune", runner.model, "--json", *options)
    assert {each["batch"] for each in done.object["tried"] if "flash_attention" in each["settings"]} == tried


def test_tuned_flash_attention_is_used_shown_and_overridden(runner: CommandRunner) -> None:
    runner.speed_model = SpeedModel(single={("flash_attention", False): (1.3, 1.3)})
    assert "  chat: no flash attention (before: defaults)" in runner.run("tune", runner.model).err.splitlines()
    assert "no flash attention" in runner.run("show", runner.model).out
    chosen = [
        runner.load_options("ask", *options, "hello").context.flash_attention
        for options in ((), ("--set", "flash_attn=on"), ("--set", "no_profile=on"))
    ]
    assert chosen == [False, True, None]


@pytest.mark.parametrize(
    ("template", "context_length", "free", "depth"),
    [
        (CHATML_TEMPLATE, 40_960, 10**9, 2048),
        (f"{CHATML_TEMPLATE}<think>", 40_960, 10**9, 8192),
        (f"{CHATML_TEMPLATE}<think>", 4096, 10**9, 2048),
        (f"{CHATML_TEMPLATE}<think>", 40_960, HEADROOM, 128),
    ],
)
def test_tune_decodes_after_long_reasoning_if_the_model_thinks_and_memory_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, context_length: int, free: int, depth: int
) -> None:
    monkeypatch.setattr("cerebrum_cli.tune.tune.available_memory", lambda: free)
    model = write_chatml(tmp_path / "model.gguf", chat_template=template, context_length=context_length)
    runner = CommandRunner(tmp_path, model)
    assert runner.run("tune", model, "--json").code == 0
    [bench] = runner.benches
    assert {job.depth for tuning, job in bench.jobs if job.kind == "decode" and not tuning.slots} == {depth}


def test_tune_reports_changes_from_the_previous_profile(runner: CommandRunner) -> None:
    name = runner.model.stem
    assert "now use these settings" in runner.run("tune", runner.model).err
    last = runner.run("tune", runner.model).err.splitlines()[-2:]
    assert last[1] == f"nothing changed for {name}: the same settings are fastest"
    runner.speed_model = SpeedModel(single={("repack", False): (1.5, 1.5)}, batch={("slots", 16): (1.0, 1.5)})
    assert runner.run("tune", runner.model).err.splitlines()[-3:] == [
        "changed:",
        "  chat: not repacked (before: defaults)",
        f"ask, chat and batch now use these settings for {name}; --set no_profile=on ignores them",
    ]


def test_tune_deletes_the_profile_if_nothing_is_faster(tuned: CommandRunner) -> None:
    name, store = tuned.model.stem, tuned.app().profiles()
    for other in (("there", store.build), (store.machine, "another build")):
        store.save(profile(tuned.identity(), *other))
    tuned.speed_model = SpeedModel()
    done = tuned.run("tune", tuned.model)
    assert done.code == 0 and done.err.splitlines()[-3:] == [
        "  ask: defaults (before: 12 threads to decode, 112 threads to prefill)",
        "  batch: defaults (before: 14 threads to decode, 114 threads to prefill, 5 sequences)",
        f"ask, chat and batch use the defaults for {name} again",
    ]
    [path] = tuned.profiles.glob("*.json")
    assert json.loads(path.read_bytes())["machine"] == "there"
    assert tuned.load_options("ask", "hello").context.n_threads == 0
    done = tuned.run("tune", tuned.model)
    assert done.err.endswith(f"nothing changed for {name}: no settings proved faster than the defaults\n")
    assert list(tuned.profiles.glob("*.json")) == [path]
    assert tuned.run("tune", tuned.model, "--json").object.keys() == {*KEYS}


@pytest.mark.parametrize("options", [(), ("--json",), ("-q",)])
def test_tune_on_a_busy_machine_saves_nothing(runner: CommandRunner, options: tuple[str, ...]) -> None:
    runner.disturbed_jobs, runner.row_cost = 1, 0.25
    done = runner.run("tune", runner.model, *options)
    assert (done.code, bool(done.out)) == (1, True)
    assert done.err.splitlines()[-2:] == [
        "error: nothing was saved: other programs used the CPU during the measurement",
        " hint: run it again when the machine is idle",
    ]
    assert not list(runner.profiles.glob("*.json"))


def test_tune_saves_default_settings_only_with_drafts_that_pay(runner: CommandRunner) -> None:
    runner.speed_model = SpeedModel()
    for row_cost, saved in ((None, False), (0.9, False), (0.25, True), (0.9, False)):
        runner.row_cost = row_cost
        done = runner.run("tune", runner.model)
        costs = "verifying 2 tokens takes as long as generating 0.5" if saved else "off"
        assert (done.code, done.out.splitlines()[-1]) == (0, f"speculative decoding: {costs}")
        assert (runner.run("show", runner.model, "--json").object["profile"] is not None) == saved
        assert [*runner.benches[-1].stepped] == [Tuning(repack=True)] * (row_cost is not None), "once for both uses"


def test_tune_measures_drafts_with_the_settings_of_each_use(runner: CommandRunner) -> None:
    runner.row_cost = 0.5
    runner.speed_model = SpeedModel(single={("repack", False): (1.0, 0.9)}, load_s={True: 12.0, False: 1.0})
    uses = runner.run("tune", runner.model, "--json").object["uses"]
    assert runner.benches[-1].stepped == [Tuning(repack=True), Tuning(repack=False)]
    costs = {"rows": [*MEASURED_ROWS], "costs": [1.0, *(0.5 * rows for rows in MEASURED_ROWS[1:])]}
    assert {name: use["step_costs"] for name, use in uses.items()} == {"chat": costs, "ask": costs, "batch": None}
    assert runner.run("show", runner.model, "--json").object["profile"]["uses"] == uses


def test_tune_measures_as_many_rows_as_a_recurrent_state_can_be_rolled_back(tmp_path: Path) -> None:
    runner = CommandRunner(tmp_path, write_vocabulary(tmp_path / "lfm2.gguf", "lfm2"))
    runner.row_cost = 0.25
    uses = runner.run("tune", runner.model, "--json").object["uses"]
    assert uses["chat"]["step_costs"]["rows"] == [1, 2, 3, 4, 6, 8]
    contexts = [runner.load_options("ask", *options, "q").context for options in ((), ("--set", "speculative=off"))]
    assert [context.n_rs_seq for context in contexts] == [7, 0]


def test_profile_of_another_machine_is_reported_and_not_used(runner: CommandRunner) -> None:
    runner.app().profiles().save(profile(runner.identity(), ask=tuned_use(12)))
    assert runner.load_options("ask", "hello").context.n_threads == 0
    done = runner.run("show", runner.model)
    assert "another machine" in done.err and "prompt t/s" not in done.out


def test_tune_saves_the_profile_for_newly_found_gpus(runner: CommandRunner) -> None:
    runner.devices = (Device("CUDA0", "NVIDIA H200", 140_000_000_000, 150_000_000_000),)
    done = runner.run("tune", runner.model, "--json")
    assert done.object["machine"].endswith(", NVIDIA H200")
    assert {tried["settings"].get("gpu_layers") for tried in done.object["tried"]} >= {"0", "1"}
    assert runner.load_options("ask", "hello").repack is False


def test_tune_reports_what_keeps_it_from_measuring(runner: CommandRunner) -> None:
    unknown = runner.run("tune", "nobody/knows-this", "--offline")
    assert (unknown.code, unknown.out) == (3, "")
    (runner.home / "text.gguf").write_text("hello")
    done = runner.run("tune", runner.home / "text.gguf")
    assert (done.code, done.out, runner.profiles.exists()) == (2, "", False)
    runner.profiles.mkdir(parents=True)
    with lock_file(runner.profiles / "lock", EngineError("locked")):
        done = runner.run("tune", runner.model)
    assert (done.code, done.out, runner.benches) == (1, "", [])
    assert done.err.startswith("error: another cerebrum tune is running")
    rmtree(runner.profiles)
    runner.profiles.write_text("a file in its place")
    done = runner.run("tune", runner.model, "--json")
    assert (done.code, done.out, runner.benches) == (2, "", [])
    assert done.err.splitlines() == [f"error: {runner.profiles}: File exists", " hint: check its permissions"]
    assert runner.load_options("ask", "hello").context.n_threads == 0


def test_ask_falls_back_to_defaults_if_tuned_settings_fail_to_load(tuned: CommandRunner) -> None:
    app = tuned.app()
    open_scripted = app.open_file

    def refusing(options: LoadOptions, emit: Any, stop: Any) -> Any:
        if options.context.n_threads_batch:
            raise EngineError("no memory on the GPU", "see its log with --set verbose=on")
        return open_scripted(options, emit, stop)

    app.open_file = refusing
    done = tuned.run_with(app, "ask", "-m", tuned.model, "hello")
    assert (done.code, done.out) == (0, "The answer is 7.\n")
    assert done.err.startswith("note: cannot use the tuned settings: no memory on the GPU\n")
