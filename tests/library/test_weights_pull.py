"""A repository or folder with safetensors and no GGUF is converted when it is pulled, and says where it came from."""

import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cases import rows
from checkpoint_models import FIXTURES, INDEX, read_model, write_checkpoint
from command_line import COMMAND, Finished, assert_error
from hub_server import Fault, Request
from hub_user import HubUser, cleaned
from person import OpenTerminal

REPOSITORY = "owner/Tiny-C2F"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
GGUF = "others/Tiny-GGUF"
CATALOG = f"""
[models.tiny]
title = "Tiny"
weights = "{REPOSITORY}"
file = "Tiny-C2F-{{quant}}.gguf"
format = "chatml"
notes = "No GGUF is published."
quantizations = {{Q4_K_M = 100_000, Q8_0 = 200_000}}
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the layout of Mistral-C2F-7B: three shards with an index."""
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "Tiny-C2F", read_model("mistral"), shards=3)


@pytest.fixture
def owner(hub_user: HubUser, folder: Path) -> HubUser:
    files = {path.name: path for path in folder.iterdir()}
    hub_user.hub.repository(REPOSITORY, files | {"README.md": b"# C2F\n", "original/other.pth": b"0"})
    return hub_user


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def conversions(user: HubUser) -> list[Path]:
    return sorted((user.command.home / "data/cerebrum/models/converted").rglob("*.*"))


def test_weights_are_downloaded_converted_and_asked_in_one_command(owner: HubUser) -> None:
    reference = f"{REPOSITORY}:Q4_K_M"
    done = owner.run("ask", "-y", "-n", "4", "-m", reference, "Why?")
    assert (done.code, bool(done.out)) == (0, True), done.err
    [row] = owner.listed()
    assert (row["reference"], row["quantization"], row["source"]) == (reference, "Q4_K_M", "converted")
    digests = ", ".join(f"{owner.digest(shard, REPOSITORY)} {shard}" for shard in SHARDS)
    shown = owner.run("show", reference, "--json").object
    origin = shown["converted_from"]
    configuration = [line.partition(" ")[2] for line in origin.pop("configuration").split(", ")]
    assert configuration == ["config.json", INDEX, "tokenizer.json", "tokenizer_config.json"]
    assert origin == {"source": REPOSITORY, "commit": owner.commit(REPOSITORY), "sha256": digests}
    assert (
        f"source {REPOSITORY}, commit {owner.commit(REPOSITORY)}, sha256 {digests}" in owner.run("show", reference).out
    )
    assert f"converted from {REPOSITORY}" in owner.run("list").out
    for offline in (REPOSITORY, reference.lower(), f"{REPOSITORY}@{owner.commit(REPOSITORY)}"):
        assert owner.ask("-m", offline, HF_HUB_OFFLINE="1") == done.out
    stored = {path.name for path in (owner.folder(REPOSITORY) / "snapshots").rglob("*.*")}
    assert stored == {"config.json", INDEX, "tokenizer.json", "tokenizer_config.json", *SHARDS}


def test_weights_with_a_sentencepiece_vocabulary_are_asked_in_one_command(hub_user: HubUser, tmp_path: Path) -> None:
    """Mistral-C2F-7B has one; 640 rows are more than there are tokens."""
    model = read_model("mistral")
    larger = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (640, 64))
    model = replace(model, config={**model.config, "vocab_size": 640}, shapes={**model.shapes, **larger})
    folder = write_checkpoint(tmp_path / "C2F", model, shards=3)
    (folder / "tokenizer.json").unlink()
    files = {path.name: path for path in (*folder.iterdir(), *(FIXTURES / "tokenizers/sentencepiece-llama").iterdir())}
    hub_user.hub.repository(REPOSITORY, files)
    done = hub_user.run("ask", "-y", "--raw", "-n", "4", "-m", f"{REPOSITORY}:Q4_K_M", "Why?")
    assert (done.code, bool(done.out)) == (0, True), done.err
    shown = hub_user.run("show", REPOSITORY, "--json").object
    assert (shown["metadata"]["tokenizer.ggml.model"], shown["vocabulary_size"]) == ("llama", 640)


def test_weights_are_converted_again_only_if_they_change(owner: HubUser, folder: Path, tmp_path: Path) -> None:
    owner.pull(REPOSITORY, "--type", "q8_0")
    [path] = conversions(owner)
    before = path.stat().st_ino
    owner.hub.repositories[REPOSITORY].commit({"README.md": b"# New\n"})
    owner.hub.log.clear()
    assert cleaned(owner.pull(REPOSITORY)) == f"installed {REPOSITORY}:Q8_0: {path}\n"
    assert owner.run("list", "--outdated", "--json").object == []
    assert (path.stat().st_ino, owner.downloads()) == (before, [])
    other = write_checkpoint(tmp_path / "other", read_model("mistral"), dtype="F16", shards=3)
    owner.hub.repositories[REPOSITORY].commit({shard: other / shard for shard in SHARDS})
    [outdated] = owner.run("list", "--outdated", "--json").object
    assert outdated["reference"] == f"{REPOSITORY}:Q8_0"
    owner.pull(outdated["reference"])
    assert [conversions(owner), path.stat().st_ino != before] == [[path], True]
    assert owner.run("list", "--outdated", "--json").object == []
    report = owner.run("rm", "-y", REPOSITORY).err
    assert report.startswith(f"deleted {REPOSITORY}:Q8_0, freed ")
    assert f"; not deleted: the safetensors of {REPOSITORY}" in report
    assert not path.parent.exists()


def test_weights_of_the_catalog_have_its_name_and_format(owner: HubUser) -> None:
    (owner.command.config / "models.toml").write_text(CATALOG)
    assert owner.run("pull", "--dry-run", "--offline", "--json", "tiny").object["chosen"] == "Q8_0"
    owner.pull("tiny:Q4_K_M")
    [row] = owner.listed()
    assert (row["reference"], row["format"]) == ("tiny:Q4_K_M", "chatml")
    assert owner.ask("-m", "tiny") == owner.ask("-m", REPOSITORY, HF_HUB_OFFLINE="1")
    owner.hub.log.clear()
    owner.pull("tiny:Q4_K_M")
    assert owner.downloads() == []


def test_weights_in_a_folder_are_converted(owner: HubUser, folder: Path) -> None:
    plan = owner.run("pull", "--dry-run", "--json", folder).object
    assert (plan["name"], plan["repo_id"]) == ("Tiny-C2F", None)
    assert plan["weights"] == pytest.approx(size_of(folder), rel=0.02)
    dry = owner.command.run("pull", "--dry-run", f"./{folder.name}", directory=folder.parent)
    assert dry.err.startswith(f"cerebrum pull ./{folder.name} would convert ")
    done = owner.pull(folder, "--type", "Q4_K_M")
    problem = "23 tensors cannot be quantized as Q4_K_M prescribes: the row length is not divisible by the block size"
    assert f"{problem}: other types are used: Q5_0 instead of Q4_K (20), Q8_0 instead of Q6_K (3)\n" in cleaned(done)
    owner.pull(folder, "--type", "Q4_K_M")
    assert owner.run("pull", "--dry-run", "Tiny-C2F").err.endswith(" would use the installed model\n")
    [row] = owner.listed()
    assert (row["reference"], row["converted_from"]["source"]) == ("Tiny-C2F:Q4_K_M", "Tiny-C2F")
    assert owner.ask("-m", "Tiny-C2F") == owner.ask("-m", "Tiny-C2F:q4_k_m")


def test_weights_of_another_folder_need_another_name(owner: HubUser, folder: Path, tmp_path: Path) -> None:
    owner.pull(folder, "--type", "Q8_0")
    changed = shutil.copytree(folder, tmp_path / "changed" / folder.name)  # with the same shards
    (changed / "chat_template.jinja").write_text("{{ messages[0].content }}")
    owner.pull(changed, "--type", "Q8_0", "--name", "changed")
    metadata = owner.run("show", "changed", "--json").object["metadata"]
    assert metadata["tokenizer.chat_template"] == "{{ messages[0].content }}"
    other = write_checkpoint(tmp_path / "other" / folder.name, read_model("qwen2"))
    for name, owned in (((), "Tiny-C2F:Q8_0"), (("--name", "changed"), "changed")):
        done = owner.run("pull", other, "--type", "Q8_0", *name)
        assert_error(done, 2, "was converted from other weights", f"cerebrum rm {owned}")
    owner.run("rm", "-y", "changed")
    owner.pull(other, "--type", "Q8_0", "--name", "changed")


def test_weights_with_a_name_are_one_model(owner: HubUser, folder: Path) -> None:
    for kind in ("Q8_0", "Q8_0"):
        owner.pull(folder, "--type", kind, "--name", "mine")
    assert [(row["reference"], row["quantization"]) for row in owner.listed()] == [("mine", "Q8_0")]
    assert_error(owner.run("pull", folder, "--type", "Q4_K_M", "--name", "mine"), 2, "the name mine belongs to another")


def test_weights_in_a_cache_of_the_hub_have_the_name_of_their_repository(hub_user: HubUser, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--Tiny-C2F" / "snapshots" / ("0" * 40)
    folder = write_checkpoint(snapshot, read_model("mistral"))
    assert hub_user.run("pull", "--dry-run", "--json", folder).object["name"] == "Tiny-C2F"


def test_weights_of_a_pull_request_are_converted(owner: HubUser) -> None:
    repository = owner.hub.repositories[REPOSITORY]
    repository.branches["refs/pr/1"] = repository.branches["main"]
    owner.pull(f"{REPOSITORY}@refs/pr/1", "--type", "Q8_0")
    [row] = owner.listed()
    assert row["converted_from"]["commit"] == owner.commit(REPOSITORY)


@pytest.mark.parametrize(("command", "code", "problem", "hint"), rows("refused_conversions"))
def test_weights_that_are_not_meant_are_refused(
    owner: HubUser, folder: Path, chatml_model: Path, command: str, code: int, problem: str, hint: str
) -> None:
    """MODEL stands for a GGUF file, in a folder of HOME, and FOLDER for a checkpoint."""
    model = owner.command.home / "models" / "tiny.gguf"
    model.parent.mkdir()
    shutil.copy(chatml_model, model)

    def expanded(text: str) -> str:
        return text.replace("MODEL", str(model)).replace("FOLDER", str(folder)).replace("HOME", str(owner.command.home))

    assert_error(owner.run(*expanded(command).split()), code, expanded(problem), expanded(hint))


def test_weights_are_required_by_their_option(owner: HubUser, chatml_model: Path) -> None:
    owner.hub.repositories[REPOSITORY].commit({"tiny-Q8_0.gguf": chatml_model})
    assert owner.run("pull", "--dry-run", "--json", REPOSITORY).object["weights"] is None
    owner.pull(REPOSITORY, "--from-weights")
    [row] = owner.listed()
    assert row["source"] == "converted"


def refused(user: HubUser, *arguments: str | Path) -> Finished:
    done = user.run("pull", *arguments)
    assert (user.downloads(), conversions(user), user.cache.exists()) == ([], [], False)
    return done


def test_weights_need_a_decision_without_a_terminal(owner: HubUser, chatml_model: Path) -> None:
    owner.hub.repository(GGUF, {"tiny-Q8_0.gguf": chatml_model}, quantized_from=REPOSITORY, downloads=1234)
    others = f"cerebrum pull {GGUF} (1,234 downloads)"
    done = refused(owner, REPOSITORY)
    assert_error(
        done, 1, f"not confirmed: the download of {REPOSITORY} (", " of safetensors)", others, "or add -y or --type"
    )
    assert done.err.splitlines()[0] == f"note: {REPOSITORY} has no GGUF files: {others}"
    owner.hub.arm(Fault(part="api", path="api/models?", times=None, cut_after=0))
    assert "none were found elsewhere" in refused(owner, REPOSITORY).err
    dry = refused(owner, REPOSITORY, "--dry-run", "--type", "Q4_K_M")
    assert dry.err.splitlines()[-1].endswith(f"of safetensors to {REPOSITORY}:Q4_K_M")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_weights_are_asked_about_on_a_terminal(owner: HubUser, open_terminal: OpenTerminal) -> None:
    window = open_terminal(COMMAND, "pull", f"{REPOSITORY}:Q4_K_M", size=(100, 24), **owner.environment({}))
    window.wait_for_output("and convert it to Q4_K_M (")
    assert any("has no GGUF files" in line for line in window.screen.lines)
    window.type("n\r")
    assert (window.end(), conversions(owner)) == (1, [])


REFUSED = rows("refused_weights")


@pytest.mark.parametrize(("changes", "code", "problem"), REFUSED.values(), ids=REFUSED)
def test_weights_that_cannot_be_converted_are_refused_before_the_download(
    hub_user: HubUser, folder: Path, tmp_path: Path, changes: Mapping[str, Any], code: int, problem: str
) -> None:
    """A file has another text, is a copy of another, has other values, or is missing; * stands for all files."""
    files = {} if "*" in changes else {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, change in changes.items():
        match change:
            case None:
                files.pop(name, None)
            case dict():
                files[name] = json.dumps({**json.loads(files[name]), **change}).encode()
            case str():
                files[name] = files.get(change, change.encode())
    hub_user.hub.repository(REPOSITORY, files)
    hub_user.hub.repository(GGUF, {"tiny-Q8_0.gguf": b"GGUF"}, quantized_from=REPOSITORY)
    done = refused(hub_user, REPOSITORY, "-y")
    assert_error(done, code, problem)
    assert str(tmp_path) not in done.err
    assert code == 3 or f"others have converted it: cerebrum pull {GGUF}" in done.err
    local = tmp_path / "local"
    local.mkdir()
    for name, data in files.items():
        (local / name).write_bytes(data)
    assert_error(refused(hub_user, local), 2 if "lacks" in problem else code)


def test_weights_need_room_for_the_download_and_the_result(owner: HubUser, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = owner.run("pull", "--dry-run", "--json", f"{REPOSITORY}:Q8_0").object
    [result] = [row["size"] for row in plan["quantizations"] if row["quantization"] == "Q8_0"]
    free = plan["weights"] + result + 64_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, free=free - 1))
    assert_error(refused(owner, REPOSITORY, "--type", "Q8_0"), 1, "not enough disk space")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, free=free + 20_000))
    owner.pull(REPOSITORY, "--type", "Q8_0")


def is_hung(digest: str, request: Request) -> bool:
    return digest in request.path and request.sent == 50_000


@pytest.mark.slow
def test_weights_survive_kills_of_their_download(owner: HubUser) -> None:
    arguments = (REPOSITORY, "--type", "Q4_K_M")
    for shard in SHARDS[1:]:
        digest = owner.digest(shard, REPOSITORY)
        armed = owner.hub.arm(Fault(part="cdn", path=digest, let_through=1, hang_after=50_000))  # after the header
        owner.hub.log.clear()
        process = owner.start("pull", *arguments)
        owner.hub.log.wait_for(partial(is_hung, digest))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        armed.release()
        assert (owner.listed(), conversions(owner)) == ([], [])
    owner.pull(*arguments)
    assert [row["reference"] for row in owner.listed()] == [f"{REPOSITORY}:Q4_K_M"]
