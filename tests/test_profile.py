"""What was measured of a model: kept and found again, used from then on wherever nothing else is said, and shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from command_line import Finished
from hypothesis import given
from hypothesis import strategies as st
from scripted_bench import ScriptedBench, SpeedModel
from scripted_command import runtime_for

from cerebrum_cli.application.doctor.selftest import NANO
from cerebrum_cli.application.inference.loading import CHAT_PARALLEL, Parallel, load_options
from cerebrum_cli.application.inference.profiles import (
    Profile,
    ProfileStore,
    Speeds,
    TunedUse,
    UseName,
    profile_object,
    without_user_settings,
)
from cerebrum_cli.application.inference.question import estimate_tokens
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.application.tuning.tune import BenchFactory, search_space, trial_options
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.plan import Device, LoadOptions, Shape, Tuning
from cerebrum_cli.main import run
from cerebrum_cli.runtime.composition import Runtime
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tuning_report import print_profile

USUAL = Speeds(2.0, 30.0, 8.0, 8_000_000_000)
PLAIN = Speeds(0.5, 45.0, 5.6, 4_600_000_000)
AS_USUAL = TunedUse(Tuning(), USUAL, USUAL)
LONG = TunedUse(Tuning(repack=False), PLAIN, USUAL, 1.31, 0.987)
KEYS = ["model", "file", "created", "machine", "build", "long_from", "uses", "tried"]
USE_KEYS = ["settings", "gain", "agreement", "load_s", "prompt_tokens_per_second", "tokens_per_second", "memory"]


def profile(
    model: str = "sha 1",
    machine: str = "here",
    build: str = "b1",
    *,
    chat: TunedUse = AS_USUAL,
    ask: TunedUse = AS_USUAL,
    long: TunedUse = LONG,
    batch: TunedUse = AS_USUAL,
) -> Profile:
    """Return a profile where long questions are asked of weights as they are."""
    uses: dict[UseName, TunedUse] = {"chat": chat, "ask": ask, "ask-long": long, "batch": batch}
    return Profile(model, machine, build, "2026-11-20T20:58:34+00:00", uses)


# Which way a question is asked.


@pytest.mark.parametrize(
    ("long", "limit"),
    [
        (Speeds(2.0, 45.0, 5.6), 618),  # 128 / 5.6 - 128 / 8 seconds are lost, 1 / 30 - 1 / 45 a token saved
        (Speeds(3.0, 45.0, 8.0), 91),
        (Speeds(2.0, 31.0, 8.0), 65),  # a question of which nothing is known is not a long one
        (Speeds(1.0, 45.0, 5.6), 528),
        (Speeds(0.5, 45.0, 8.0), 65),
        (Speeds(2.0, 30.0, 9.0), None),
        (Speeds(0.1, 29.9, 5.0), None),
    ],
)
def test_a_prompt_is_long_from_where_what_is_saved_is_more_than_what_is_lost(long: Speeds, limit: int | None) -> None:
    usual = Speeds(2.0, 30.0, 8.0)
    measured = profile(ask=TunedUse(Tuning(), usual, usual), long=TunedUse(Tuning(repack=False), long, usual))
    assert measured.long_from == limit
    if limit:
        assert long.seconds(limit, 128) < usual.seconds(limit, 128)
        assert limit == 65 or long.seconds(limit - 1, 128) >= usual.seconds(limit - 1, 128)


def test_where_both_are_asked_in_one_way_no_prompt_is_long() -> None:
    same = profile(ask=LONG, long=replace(LONG, speeds=replace(PLAIN, prompt=99.0)))
    assert same.long_from is None
    assert same.tuning("ask", 10**9) == LONG.tuning


def test_only_a_question_may_be_a_long_one() -> None:
    chat, batch = (TunedUse(Tuning(n_threads=n), USUAL, USUAL) for n in (1, 2))
    measured = profile(chat=chat, batch=batch)
    limit = measured.long_from
    assert limit
    assert [measured.tuning("ask", n) for n in (0, limit - 1, limit)] == [Tuning(), Tuning(), Tuning(repack=False)]
    assert measured.tuning("chat", 10**6) == Tuning(n_threads=1)
    assert measured.tuning("batch", 10**6) == Tuning(n_threads=2)
    assert measured.tuning("ask-long") == Tuning(repack=False)


def test_about_four_bytes_are_a_token_and_what_was_answered_is_kept() -> None:
    assert estimate_tokens(None) == estimate_tokens(Conversation()) == 0
    assert estimate_tokens(Conversation(system_prompt="x" * 97).user("x" * 303)) == 100
    assert estimate_tokens(Conversation().user("東京" * 2)) == 3
    talk = Conversation().user("x" * 4000).assistant("y" * 4000)
    assert estimate_tokens(talk) == 0
    assert estimate_tokens(talk.user("z" * 40)) == 10


# What is said wins over what was measured.

ALL = Tuning(False, 4, 6, 64, True, "q8_0", "12", 16)
SHAPE = Shape(2048, 10**9, 32, 1000)
OPTIONS = LoadOptions(Path("m.gguf"), SHAPE)


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [
        (Settings(), ()),
        (Settings(threads=4), ("n_threads", "n_threads_batch")),
        (Settings(gpu_layers="0"), ("gpu_layers",)),
        (Settings(gpu_layers="all"), ("gpu_layers",)),
        (Settings(threads=1, gpu_layers="3"), ("n_threads", "n_threads_batch", "gpu_layers")),
    ],
)
def test_what_the_user_has_set_is_not_what_was_measured(settings: Settings, dropped: tuple[str, ...]) -> None:
    left = without_user_settings(ALL, settings).overrides
    assert left == {name: value for name, value in ALL.overrides.items() if name not in dropped}
    assert without_user_settings(Tuning(), settings) == Tuning()


def test_a_tuning_stands_in_for_what_is_usual_and_no_more() -> None:
    assert OPTIONS.with_tuning(Tuning()) == OPTIONS
    tuned = OPTIONS.with_tuning(ALL)
    assert {name: getattr(tuned, name) for name in ALL.overrides} == ALL.overrides
    assert replace(tuned, **{name: getattr(OPTIONS, name) for name in ALL.overrides}) == OPTIONS
    assert ALL.validated() is ALL


@pytest.mark.parametrize(
    "wrong",
    [
        {"repack": 1},
        {"repack": "yes"},
        {"flash_attention": 0},
        {"n_threads": 0},
        {"n_threads": -4},
        {"n_threads": 2.0},
        {"n_threads": True},
        {"n_threads": "4"},
        {"n_threads": 1025},
        {"n_threads_batch": 10**20},
        {"n_ubatch": 65537},
        {"slots": 257},
        {"slots": [4]},
        {"cache_type": "q4_0"},
        {"cache_type": 8},
        {"gpu_layers": 12},
        {"gpu_layers": "many"},
        {"gpu_layers": ""},
        {"gpu_layers": "-1"},
        {"gpu_layers": "9" * 5000},
    ],
    ids=lambda wrong: repr(wrong)[:30],
)
def test_a_tuning_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is "):
        Tuning(**wrong).validated()


def test_options_come_from_settings_then_from_the_tuning_then_from_the_use() -> None:
    model = Model("nano", (NANO,))
    tuned = load_options(model, Settings(), tuning=ALL)
    assert (tuned.repack, tuned.n_threads, tuned.n_threads_batch, tuned.gpu_layers) == (False, 4, 6, "12")
    assert (tuned.n_ubatch, tuned.flash_attention, tuned.cache_type, tuned.slots) == (64, True, "q8_0", 1)
    said = load_options(model, Settings(threads=2, gpu_layers="0", ctx=512), tuning=ALL)
    assert (said.n_threads, said.n_threads_batch, said.gpu_layers, said.context_size) == (2, None, "0", 512)
    assert said.cache_type == "q8_0"
    for parallel in (CHAT_PARALLEL, Parallel(8, batch_invariant=True)):
        assert load_options(model, Settings(), parallel, tuning=ALL).slots == parallel.slots
    assert (
        trial_options(model, Settings())
        == load_options(model, Settings())
        == load_options(model, Settings(), tuning=Tuning())
    )


def test_a_machine_is_what_memory_and_settings_leave_to_try() -> None:
    model = Model("nano", (NANO,))
    here = search_space(model, Settings())
    assert here.baseline.repack is True
    assert here.batch_baseline.slots == min(32, here.slots)
    assert 1 <= here.slots <= 64
    assert here.layers == model.header.n_layers
    assert search_space(model, Settings(threads=3)).threads == ()


# Kept and found again.


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    """Return a store on a machine called `here`, with build b1."""
    return ProfileStore(tmp_path / "profiles", "here", "b1")


def test_what_was_measured_is_found_as_it_was(store: ProfileStore) -> None:
    assert (store.find("sha 1"), store.find_other("sha 1")) == (None, None)
    kept = profile(batch=TunedUse(ALL, PLAIN, USUAL, 1.2, None))
    store.save(kept)
    assert store.find("sha 1") == kept
    assert store.find_other("sha 1") is None
    anew = replace(kept, created="2027-01-01T00:00:00+00:00")
    store.save(anew)
    assert store.find("sha 1") == anew
    store.delete("sha 1")
    assert store.find("sha 1") is None


def test_another_machine_build_or_model_has_none(store: ProfileStore, tmp_path: Path) -> None:
    kept = profile()
    store.save(kept)
    assert (store.find("sha 2"), store.find_other("sha 2")) == (None, None)
    for machine, build in (("there", "b1"), ("here", "b2"), ("here|b1", ""), ("", "here|b1")):
        other = ProfileStore(tmp_path / "profiles", machine, build)
        assert other.find("sha 1") is None
        assert other.find_other("sha 1") == kept
    own = profile(machine="there")
    store.save(own)
    assert (store.find("sha 1"), store.find_other("sha 1")) == (kept, own)
    store.save(profile("sha 2"))
    store.delete("sha 1")
    assert (store.find("sha 1"), store.find_other("sha 1"), store.find("sha 2")) == (None, None, profile("sha 2"))


def test_a_profile_under_anothers_name_is_not_taken_for_it(store: ProfileStore, tmp_path: Path) -> None:
    store.save(profile())
    [path] = (tmp_path / "profiles").iterdir()
    store.save(profile("sha 2"))
    [other] = {*(tmp_path / "profiles").iterdir()} - {path}
    path.replace(other)
    assert store.find("sha 2") is None


def test_a_name_of_any_bytes_can_be_kept(store: ProfileStore) -> None:
    kept = profile("/m\udcff.gguf 1 2")
    store.save(kept)
    assert store.find(kept.model) == kept


def test_a_profile_is_there_whole_or_not_at_all(store: ProfileStore, tmp_path: Path) -> None:
    kept = profile()
    store.save(kept)
    [path] = (tmp_path / "profiles").iterdir()
    store.save(replace(kept, created="later"))
    assert [each.name for each in (tmp_path / "profiles").iterdir()] == [path.name]
    (tmp_path / "profiles" / "tmp123.part").write_text('{"version": 2,')  # of one that was killed
    assert store.find("sha 1") == replace(kept, created="later")
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        store.save(kept)
    assert {each.name for each in (tmp_path / "profiles").iterdir()} == {path.name, "tmp123.part"}


WHOLE: dict[str, Any] = {"version": 2, **asdict(profile())}


def find(content: bytes, folder: Path) -> Profile | None:
    """Return what is found where this was kept; whatever it is, it can be used and shown."""
    store = ProfileStore(folder, "here", "b1")
    store.save(profile())
    [path] = folder.iterdir()
    path.write_bytes(content)
    found = store.find("sha 1")
    store.find_other("sha 1")
    if found:
        assert all(found.tuning("ask", tokens).validated() for tokens in (0, 10**9))
        json.dumps(profile_object(found), allow_nan=False)
        print_profile(Streams(StringIO(), StringIO(), None, False, False, False), found)
    return found


def changed(value: Any, at: tuple[str, ...], new: Any) -> Any:
    """Return an object with another value at a place."""
    return {**value, at[0]: changed(value[at[0]], at[1:], new) if len(at) > 1 else new}


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (("version",), 3),
        (("version",), "1"),
        (("version",), None),
        (("model",), 7),
        (("created",), None),
        (("machine",), ["here"]),
        (("uses",), []),
        (("uses",), {"chat": WHOLE["uses"]["chat"]}),
        (("uses", "chat"), None),
        (("uses", "chat", "tuning"), None),
        (("uses", "chat", "tuning"), {"colour": "red"}),
        (("uses", "chat", "tuning", "n_threads"), 10**9),
        (("uses", "chat", "tuning", "gpu_layers"), "many"),
        (("uses", "chat", "new"), 1),
        (("uses", "chat", "gain"), None),
        (("uses", "chat", "gain"), "1.5"),
        (("uses", "chat", "gain"), math.nan),
        (("uses", "chat", "gain"), math.inf),
        (("uses", "chat", "agreement"), "all"),
        (("uses", "chat", "agreement"), math.nan),
        (("uses", "chat", "agreement"), 97),
        (("uses", "ask", "speeds", "prompt"), 0),
        (("uses", "ask", "speeds", "prompt"), -30.0),
        (("uses", "ask", "speeds", "prompt"), math.inf),
        (("uses", "ask", "speeds", "prompt"), 5e-324),
        pytest.param(("uses", "ask", "speeds", "prompt"), 10**400, id="prompt-10**400"),
        (("uses", "ask", "speeds", "generate"), math.nan),
        (("uses", "ask", "speeds", "generate"), "8"),
        (("uses", "ask", "speeds", "generate"), {}),
        (("uses", "ask", "speeds", "load_s"), -1),
        (("uses", "ask", "speeds", "load_s"), math.inf),
        (("uses", "ask", "speeds", "memory"), math.inf),
        (("uses", "ask", "speeds", "memory"), None),
        (("uses", "ask", "baseline", "memory"), 10**30),
        (("uses", "ask", "baseline", "colour"), 1),
    ],
)
def test_what_cannot_have_been_measured_is_as_if_nothing_was(tmp_path: Path, at: tuple[str, ...], new: Any) -> None:
    assert find(json.dumps(WHOLE).encode(), tmp_path) == profile()
    assert find(json.dumps(changed(WHOLE, at, new)).encode(), tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"7", b'"x"', b"{}", b"\xff\xfe", b"[" * 100_000, b"{" * 9])
def test_what_is_no_profile_is_none(tmp_path: Path, content: bytes) -> None:
    assert find(content, tmp_path) is None


def test_a_folder_in_a_profiles_place_is_none(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "profiles", "here", "b1")
    store.save(profile())
    [path] = (tmp_path / "profiles").iterdir()
    path.unlink()
    path.mkdir()
    assert store.find("sha 1") is None
    store.delete("sha 1")


def places(value: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return all places in an object."""
    inner = (
        [place for key, each in value.items() for place in places(each, (*at, key))] if isinstance(value, dict) else []
    )
    return [*([at] if at else []), *inner]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([10**400, 1e308]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(at=st.sampled_from(places(WHOLE)), new=ANYTHING)
def test_a_profile_with_anything_in_any_place_is_used_or_none(tmp_path_factory: Any, at: Any, new: Any) -> None:
    find(json.dumps(changed(WHOLE, at, new)).encode("utf-8", "surrogatepass"), tmp_path_factory.mktemp("p"))


@given(cut=st.integers(0, len(json.dumps(WHOLE)) - 1), byte=st.integers(0, 255), is_cut=st.booleans())
def test_a_damaged_profile_is_used_or_none(tmp_path_factory: Any, cut: int, byte: int, is_cut: bool) -> None:
    whole = json.dumps(WHOLE).encode()
    content = whole[:cut] if is_cut else whole[:cut] + bytes([byte]) + whole[cut + 1 :]
    found = find(content, tmp_path_factory.mktemp("p"))
    assert not (found and is_cut)


# Used from then on.


class Desk:
    """Commands on a scripted model and a scripted bench, in one home; `loaded` is how models were opened."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.loaded: list[LoadOptions] = []
        self.benches: list[ScriptedBench] = []
        self.cost = SpeedModel(single={("repack", False): (1.5, 0.7)}, batch={("slots", 16): (1.0, 1.5)})
        self.devices: tuple[Device, ...] = ()

    def runtime(self, piped: bytes | None = None) -> Runtime:
        """Return a runtime that remembers what it opens."""
        streams = Streams(StringIO(), StringIO(), None if piped is None else BytesIO(piped), False, False, False)
        runtime = runtime_for({"rows": {}, "seeds": ["The answer is 7."]}, self.home, streams)
        opener = runtime.open_backend

        def open_backend(options: LoadOptions) -> Any:
            self.loaded.append(options)
            return opener(options)

        def bench(options: LoadOptions, model: Model, directory: Path, offloadable: int) -> Any:
            assert options.path == model.path == self.model
            self.benches.append(ScriptedBench(self.cost, devices=self.devices))
            return self.benches[-1]

        runtime.open_backend, runtime.bench = open_backend, bench
        return runtime

    def run(self, *arguments: str | Path, piped: bytes | None = None) -> Finished:
        """Run one command line."""
        runtime = self.runtime(piped)
        code = run([str(argument) for argument in arguments], runtime)
        out, err = runtime.streams.out, runtime.streams.err
        assert isinstance(out, StringIO) and isinstance(err, StringIO)
        return Finished(code, out.getvalue(), err.getvalue())

    def opened(self, *arguments: str | Path, piped: bytes | None = None) -> LoadOptions:
        """Return how a command opened its model, the only one."""
        self.loaded.clear()
        done = self.run(*arguments, "-m", self.model, piped=piped)
        assert done.code == 0, done.err
        [options] = self.loaded
        return options

    def keep(self, measured: Profile) -> None:
        """Keep a profile of the model, as measured here."""
        store = self.runtime().profiles()
        store.save(replace(measured, model=self.identity(), machine=store.machine, build=store.build))

    def identity(self) -> str:
        """Return the model's identity, its digest known."""
        library = self.runtime().library
        model = library.resolve(str(self.model))
        library.digest(model, lambda *_: None)
        return library.identity(model)

    @property
    def profiles(self) -> Path:
        """The folder of profiles."""
        return self.home / "data" / "cerebrum" / "profiles"


@pytest.fixture
def desk(tmp_path: Path, chatml_model: Path) -> Desk:
    """Return where commands are run."""
    return Desk(tmp_path, chatml_model)


def threads(count: int, speeds: Speeds = USUAL, slots: int | None = None) -> TunedUse:
    return TunedUse(Tuning(n_threads=count, n_threads_batch=count + 100, slots=slots), speeds, USUAL, 1.5, 1.0)


@pytest.fixture
def tuned(desk: Desk) -> Desk:
    """Return where commands are run on a model whose every use is opened on another number of threads."""
    desk.keep(profile(chat=threads(11), ask=threads(12), long=threads(13, PLAIN), batch=threads(14, slots=5)))
    return desk


LIMIT = profile().long_from or 0


def test_a_question_is_asked_as_questions_of_its_length_are_fastest(tuned: Desk) -> None:
    short = "x" * (4 * LIMIT - 1)
    assert tuned.opened("ask", short).n_threads == 12
    assert tuned.opened("ask", short + "x").n_threads == 13
    assert tuned.opened("ask", piped=short.encode()).n_threads == 12
    assert tuned.opened("ask", "What is this?", piped=short.encode()).n_threads == 13
    (tuned.home / "long.txt").write_text(short)
    assert tuned.opened("ask", "Sum up:", "-f", tuned.home / "long.txt").n_threads == 13
    assert tuned.opened("ask", "-", "--raw", piped=short.encode() + b"x").n_threads == 13
    assert tuned.opened("ask", "--dry-run", "hello").n_threads == 12


def test_what_was_answered_makes_no_question_long(tuned: Desk) -> None:
    assert tuned.opened("ask", "x" * 4 * LIMIT).n_threads == 13
    assert tuned.opened("ask", "-c", "And so?").n_threads == 12


def test_a_messages_list_is_as_long_as_what_nobody_has_answered(tuned: Desk) -> None:
    old = [{"role": "user", "content": "x" * 4 * LIMIT}, {"role": "assistant", "content": "y"}]
    for messages, count in ((old[:1], 13), ([*old, {"role": "user", "content": "z"}], 12)):
        assert tuned.opened("ask", "--messages", "-", piped=json.dumps(messages).encode()).n_threads == count


def test_a_vote_a_batch_and_a_chat_have_ways_of_their_own(tuned: Desk) -> None:
    vote = tuned.opened("ask", "--votes", "3", "hello")
    assert (vote.n_threads, vote.n_threads_batch, vote.slots) == (14, 114, 3)
    chat = tuned.opened("chat", piped=b"hello\n")
    assert (chat.n_threads, chat.n_threads_batch, chat.slots, chat.kv_unified) == (11, 111, CHAT_PARALLEL.slots, True)
    rows = "".join(f"question {n}\n" for n in range(9)).encode()
    batch = tuned.opened("batch", "-", "-o", "-", piped=rows)
    assert (batch.n_threads, batch.slots, batch.batch_invariant) == (14, 5, True)
    assert tuned.opened("batch", "-", "-o", "-", piped=b"one\ntwo\n").slots == 2
    for parallel, slots in (("8", 8), ("2", 2)):
        assert tuned.opened("batch", "-", "-o", "-", "--parallel", parallel, piped=rows).slots == slots


def test_what_is_given_wins_over_what_was_measured(tuned: Desk) -> None:
    given = tuned.opened("ask", "--threads", "2", "hello")
    assert (given.n_threads, given.n_threads_batch) == (2, None)
    (tuned.home / "config" / "cerebrum").mkdir(parents=True)
    (tuned.home / "config" / "cerebrum" / "config.toml").write_text("threads = 3\n")
    configured = tuned.opened("chat", piped=b"hello\n")
    assert (configured.n_threads, configured.n_threads_batch) == (3, None)


COMMANDS: Mapping[str, tuple[str, ...]] = {
    "ask": ("ask", "hello"),
    "vote": ("ask", "--votes", "3", "hello"),
    "chat": ("chat",),
    "batch": ("batch", "-", "-o", "-"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_profile_all_is_as_if_it_had_never_been(
    tuned: Desk, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arguments = COMMANDS[command]
    piped = None if "hello" in arguments else b"hello\n"
    untuned = Desk(tmp_path_factory.mktemp("home"), tuned.model).opened(*arguments, piped=piped)
    assert untuned.n_threads is None
    assert tuned.opened(*arguments, "--no-profile", piped=piped) == untuned
    assert tuned.opened(*arguments, piped=piped) != untuned
    monkeypatch.setenv("CEREBRUM_NO_PROFILE", "1")
    assert tuned.opened(*arguments, piped=piped) == untuned


def test_a_damaged_profile_is_as_if_it_had_never_been(tuned: Desk) -> None:
    [path] = tuned.profiles.iterdir()
    path.write_text(path.read_text().replace("30.0", "Infinity"))
    assert tuned.opened("ask", "hello").n_threads is None
    assert tuned.run("show", tuned.model, "--json").object["profile"] is None
    path.write_bytes(b"\x00")
    assert tuned.opened("chat", piped=b"hello\n").n_threads is None


def test_a_model_file_that_has_changed_has_no_profile(tuned: Desk) -> None:
    copy = tuned.home / "copy.gguf"
    copy.write_bytes(tuned.model.read_bytes())
    tuned.model = copy
    assert tuned.opened("ask", "hello").n_threads is None


# Measured by the command.


def test_what_tune_finds_is_used_from_then_on(desk: Desk) -> None:
    usual = desk.opened("ask", "x" * 4000)
    done = desk.run("tune", desk.model, "--quick", "--json")
    assert (done.code, done.err) == (0, "")
    assert list(done.object) == KEYS
    assert (done.object["model"], done.object["long_from"]) == (desk.model.stem, 618)
    uses = done.object["uses"]
    assert {name: use["settings"] for name, use in uses.items()} == {
        "chat": {},
        "ask": {},
        "ask-long": {"repack": False},
        "batch": {"slots": 16},
    }
    assert all(list(use) == USE_KEYS for use in uses.values())
    assert [(use["gain"] > 1, use["agreement"]) for use in uses.values()] == [
        (False, None),
        (False, None),
        (True, 1.0),
        (True, 1.0),
    ]
    assert {tuple(tried) for tried in done.object["tried"]} == {("settings", "batch", "ratios", "agreement", "dropped")}
    assert [bench.closed for bench in desk.benches] == [True]
    assert sorted(path.suffix for path in desk.profiles.iterdir()) == ["", ".json"], "a lock and a profile"
    assert desk.opened("ask", "x" * 4000) == replace(usual, repack=False)
    assert desk.opened("ask", "hello") == usual
    shown = desk.run("show", desk.model, "--json").object["profile"]
    assert shown == {key: value for key, value in done.object.items() if key not in ("model", "file", "tried")}


def test_the_table_has_a_row_for_each_use_and_a_line_for_each_way(desk: Desk) -> None:
    done = desk.run("tune", desk.model, "--quick")
    assert done.code == 0
    rows = [line.split("  ") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == [
        "use",
        "chat",
        "ask",
        "ask, long prompt",
        "batch",
        "prompts of 618 tokens or more count as long",
    ]
    long = [cell.strip() for cell in rows[3] if cell.strip()]
    assert long == ["ask, long prompt", "1.23 x", "not repacked", "45.0", "5.6", "2.0 s", "1 kB", "100.0%"]
    lines = done.err.splitlines()
    assert "not repacked: prompt 1.50 x, gen 0.70 x" in lines
    assert lines[-1].endswith("--no-profile ignores it")
    assert not {"\x1b", "\r"} & {*done.out, *done.err}
    assert desk.run("tune", desk.model, "--quick", "--quiet") == Finished(0, done.out, "")
    assert done.out in desk.run("show", desk.model).out


def test_a_model_that_was_never_measured_shows_none(desk: Desk) -> None:
    assert desk.run("show", desk.model, "--json").object["profile"] is None
    assert "reads/s" not in desk.run("show", desk.model).out


def test_a_profile_of_another_machine_is_told_and_not_used(desk: Desk) -> None:
    desk.runtime().profiles().save(profile(desk.identity(), ask=threads(12)))
    assert desk.opened("ask", "hello").n_threads is None
    done = desk.run("show", desk.model)
    assert "another machine" in done.err
    assert "reads/s" not in done.out


def test_accelerators_nobody_had_seen_before_do_not_make_it_another_machine(desk: Desk) -> None:
    desk.devices = (Device("CUDA0", "NVIDIA H200", 140_000_000_000, 150_000_000_000),)
    done = desk.run("tune", desk.model, "--quick", "--json")
    assert done.object["machine"].endswith(", NVIDIA H200")
    assert {tried["settings"].get("gpu_layers") for tried in done.object["tried"]} >= {"0", "1"}
    assert desk.opened("ask", "x" * 4000).repack is False


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--quick", "--thorough"), "--quick and --thorough exclude each other"),
        (("--reencode", "--quick"), "--reencode and --quick exclude each other"),
        (("--reencode", "--thorough"), "--reencode and --thorough exclude each other"),
        (("--apply", "Q8_0"), "--apply without --reencode"),
        (("--force",), "--force without --apply"),
        (("--reencode", "--force"), "--force without --apply"),
        (("--threads", "0"), "--threads is 0"),
    ],
)
def test_options_that_do_not_go_together_are_told_before_anything_is_measured(
    desk: Desk, arguments: tuple[str, ...], what: str
) -> None:
    done = desk.run("tune", desk.model, *arguments)
    assert (done.code, done.out, done.err.splitlines()[0]) == (2, "", f"error: {what}")
    assert desk.benches == []


def test_a_model_that_is_not_here_is_told(desk: Desk) -> None:
    done = desk.run("tune", "nobody/knows-this", "--offline")
    assert (done.code, done.out, desk.benches) == (3, "", [])


def test_a_profile_that_cannot_be_kept_is_told_in_a_line(desk: Desk) -> None:
    desk.profiles.parent.mkdir(parents=True)
    desk.profiles.write_text("a file in its place")
    done = desk.run("tune", desk.model, "--quick", "--json")
    assert (done.code, done.out) == (1, "")
    what, do = done.err.splitlines()
    assert what == f"error: cannot save the profile: {desk.profiles}: File exists"
    assert "check its permissions and free space" in do
    assert desk.opened("ask", "hello").n_threads is None


def test_a_model_nothing_can_be_measured_of_keeps_nothing(desk: Desk) -> None:
    bench = ScriptedBench(refusal=lambda _: "needs 99.0 GB of memory, but only 8.0 GB is free")
    runtime = desk.runtime()
    runtime.bench = cast("BenchFactory", lambda *_: bench)
    assert run(["tune", str(desk.model)], runtime) == 1
    assert isinstance(runtime.streams.err, StringIO)
    assert "error: this model cannot be measured here: needs 99.0 GB" in runtime.streams.err.getvalue()
    assert (bench.closed, list(desk.profiles.glob("*.json"))) == (True, [])


def test_what_cannot_be_opened_as_tuned_is_opened_as_usual(tuned: Desk) -> None:
    runtime = tuned.runtime()
    opener = runtime.open_backend

    def refusing(options: LoadOptions) -> Any:
        def open_backend(tell: Any, stop: Any) -> Any:
            if options.n_threads_batch:
                raise EngineError("no memory on the GPU", "see its log with -v")
            return opener(options)(tell, stop)

        return open_backend

    runtime.open_backend = refusing
    assert run(["ask", "-m", str(tuned.model), "hello"], runtime) == 0
    out, err = runtime.streams.out, runtime.streams.err
    assert isinstance(out, StringIO) and isinstance(err, StringIO)
    assert out.getvalue() == "The answer is 7.\n"
    assert err.getvalue().startswith("note: cannot open the model as tuned: no memory on the GPU\n")
