"""Of the files in a repository, `pull` takes the model that is meant, or asks; of other files it says what they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cases import rows
from gguf_files import add_values, write_file, write_model
from hub_server import Content
from hub_user import HubUser, cleaned

REPO = "owner/gpt-oss-120b-GGUF"
FILE_URL = f"https://huggingface.co/{REPO}/resolve/main/"
DRAFT = "a draft head for speculative decoding, not a whole model"


def written(
    path: Path, architecture: str = "gpt-oss", size: int = 0, tensors: tuple[str, ...] = (), **values: Any
) -> Path:
    """Write a model of two layers; `size` makes the file larger."""

    def fill(writer: gguf.GGUFWriter) -> None:
        add_values(writer, {key.replace("__", "."): value for key, value in values.items()})
        if size:
            writer.add_tensor("blk.0.ffn_up.weight", np.zeros((size // 256, 64), dtype=np.float32))

        for name in tensors:
            writer.add_tensor(name, np.zeros((4, 64), dtype=np.float32))

    path.parent.mkdir(parents=True, exist_ok=True)
    return write_model(path, fill, architecture)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, and files that accompany models, by what they are."""
    folder = tmp_path_factory.mktemp("files")
    nextn = gguf.GGUFWriter(folder / "mtp.gguf", "glm4moe")
    nextn.add_block_count(3)
    nextn.add_tensor("blk.2.nextn.eh_proj.weight", np.zeros((4, 64), dtype=np.float32))
    write_file(nextn)
    imatrix = gguf.GGUFWriter(folder / "imatrix.gguf", "")
    imatrix.kv_data[0].clear()
    imatrix.add_type("imatrix")
    imatrix.add_tensor("blk.0.ffn_up.weight.in_sum2", np.zeros((1, 64), dtype=np.float32))
    write_file(imatrix)
    layers = {"glm4moe__block_count": 1, "glm4moe__nextn_predict_layers": 1}
    written(folder / "first.gguf", "glm4moe", tensors=("blk.0.nextn.eh_proj.weight",), **layers)
    return {
        "first": folder / "first.gguf",
        "model": written(folder / "model.gguf", size=100_000),
        "other": written(folder / "other.gguf", size=200_000),
        "eagle3": written(folder / "eagle3.gguf", "eagle3", size=50_000),
        "dflash": written(folder / "dflash.gguf", "dflash"),
        "mtp": folder / "mtp.gguf",
        "adapter": written(folder / "adapter.gguf", general__type="adapter", adapter__type="lora"),
        "imatrix": folder / "imatrix.gguf",
    }


LAYOUTS = rows("repository_layouts")  # files by what they are; what a reference's tag takes
TAKEN = [(layout, tag) for layout, (_, taken) in LAYOUTS.items() for tag in taken]


@pytest.mark.parametrize(("layout", "tag"), TAKEN)
def test_right_file_of_a_repository_is_pulled(
    hub_user: HubUser, files: Mapping[str, Path], layout: str, tag: str
) -> None:
    names, taken = LAYOUTS[layout]
    hub_user.hub.repository(REPO, {name: files[kind] for name, kind in names.items()})
    planned = hub_user.run("pull", "--dry-run", "--json", f"{REPO}{tag}")
    assert planned.code == 0, planned.err
    assert cleaned(hub_user.pull(f"{REPO}{tag}")).endswith(f": {hub_user.path(taken[tag], REPO)}\n")
    [row] = hub_user.listed()
    assert (row["path"], row["default"], row["error"]) == (str(hub_user.path(taken[tag], REPO)), True, None)


BUILDS = {"x-Q4_K_M.gguf": "model", "new/x-Q4_K_M.gguf": "other", "x-Q8_0.gguf": "other"}
CHOICES = [f"{FILE_URL}{name}" for name in ("new/x-Q4_K_M.gguf", "x-Q4_K_M.gguf")]


UNLABELED = {"model.gguf": "model", "other.gguf": "other"}
SEVERAL = [
    *((BUILDS, reference, "Q4_K_M models", CHOICES) for reference in (REPO, f"{REPO}:q4_k_m", f"--dry-run {REPO}")),
    (UNLABELED, REPO, "models without a quantization in their names", [f"{FILE_URL}{name}" for name in UNLABELED]),
]


@pytest.mark.parametrize(("builds", "reference", "kind", "choices"), SEVERAL)
def test_right_file_of_several_is_named_by_the_user(
    hub_user: HubUser,
    files: Mapping[str, Path],
    builds: Mapping[str, str],
    reference: str,
    kind: str,
    choices: list[str],
) -> None:
    hub_user.hub.repository(REPO, {name: files[of] for name, of in builds.items()})
    done = hub_user.run("pull", *reference.split())
    said = f"error: {REPO} has several {kind}\n hint: choose one: {' or '.join(choices)}\n"
    assert (done.code, done.err) == (2, said)


def test_right_file_of_companions_alone_is_told_by_a_header(hub_user: HubUser, files: Mapping[str, Path]) -> None:
    for name, kind, words in (
        ("mtp-x-Q8_0.gguf", "mtp", DRAFT),
        ("imatrix.gguf", "imatrix", "an importance matrix, not a model"),
    ):
        hub_user.hub.repository(REPO, {name: files[kind]})
        for reference in (REPO, f"{REPO}:Q8_0", f"{REPO}:f16", f"{FILE_URL}{name}"):
            done = hub_user.run("pull", reference)
            assert done.code == 2 and done.err.startswith(f"error: {REPO}/{name}: {words} (")


@pytest.mark.parametrize("file", ["Q8_0.gguf", "x-Q8_0.gguf", "sub/x-Q80.gguf"])
def test_right_file_is_suggested_for_another_spelling(hub_user: HubUser, files: Mapping[str, Path], file: str) -> None:
    hub_user.hub.repository(REPO, {"sub/x-Q8_0.gguf": files["model"]})
    done = hub_user.run("pull", f"{FILE_URL}{file}")
    assert done.code == 3
    assert done.err == (
        f"error: {REPO} has no complete model {file}\n"
        f" hint: did you mean sub/x-Q8_0.gguf? list its models: cerebrum pull --dry-run {REPO}\n"
    )


KINDS = [
    *((draft, f"{DRAFT} (architecture glm4moe)", "use the model that it was made for") for draft in ("mtp", "first")),
    ("eagle3", f"{DRAFT} (architecture eagle3)", "use the model that it was made for"),
    (
        "adapter",
        "a LoRA adapter, not a model (architecture gpt-oss)",
        "apply it to its base model: -m MODEL --lora FILE",
    ),
    ("imatrix", "an importance matrix, not a model (architecture none)", "use the model that was quantized with it"),
]


@pytest.mark.parametrize("reference", [REPO, f"--dry-run {REPO}"])
def test_right_file_that_is_no_model_is_named_with_the_others(
    hub_user: HubUser, files: Mapping[str, Path], tmp_path: Path, reference: str
) -> None:
    """Repositories have projectors, drafts and adapters whose names do not tell."""
    style = written(tmp_path / "style.gguf", size=400_000, general__type="adapter", adapter__type="lora")
    hub_user.hub.repository(REPO, {"x-style-Q8_0.gguf": style, "x-Q4_K_M.gguf": files["model"]})
    done = hub_user.run("pull", *reference.split())
    said = "a LoRA adapter, not a model (architecture gpt-oss)"
    assert (done.code, done.err) == (
        2,
        f"error: {REPO}/x-style-Q8_0.gguf: {said}\n"
        f" hint: apply it to its base model: -m MODEL --lora FILE; or choose another file: {REPO}:Q4_K_M\n",
    )
    hub_user.pull(f"{REPO}:Q4_K_M")


@pytest.mark.parametrize(("kind", "words", "hint"), KINDS)
def test_right_file_is_told_from_others_before_the_download(
    hub_user: HubUser, files: Mapping[str, Path], kind: str, words: str, hint: str
) -> None:
    hub_user.hub.repository(REPO, {"x-Q8_0.gguf": files[kind]})
    for reference in (REPO, f"{REPO}:Q8_0", f"{FILE_URL}x-Q8_0.gguf"):
        done = hub_user.run("pull", reference)
        assert (done.code, done.err) == (2, f"error: {REPO}/x-Q8_0.gguf: {words}\n hint: {hint}\n")
    assert not hub_user.downloads()
    for command in (("pull", files[kind]), ("ask", "-m", files[kind], "Why?")):
        done = hub_user.run(*command)
        assert (done.code, done.err) == (2, f"error: {files[kind]}: {words}\n hint: {hint}\n")
    shown = hub_user.run("show", files[kind])
    assert f"{files[kind]}: {words.partition(' (')[0]}" in shown.err and hint in shown.err


@pytest.mark.parametrize(
    ("known", "unknown", "problem"),
    [
        (b"llama", b"qwen9", "unknown model architecture: 'qwen9'"),
        (b"gpt2", b"newt", "unknown tokenizer: 'newt'"),
        (b"smollm", b"newtok", "unknown pre-tokenizer type: 'newtok'"),
    ],
)
def test_right_file_of_a_newer_model_is_refused_in_the_words_of_llama(
    hub_user: HubUser, chatml_model: Path, tmp_path: Path, known: bytes, unknown: bytes, problem: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(chatml_model.read_bytes().replace(known, unknown))
    done = hub_user.run("ask", "-m", path, "Why?")
    assert done.code == 2 and problem in done.err and "update cerebrum" in done.err, done.err


def test_right_file_of_an_incomplete_model_is_named(hub_user: HubUser, files: Mapping[str, Path]) -> None:
    hub_user.hub.repository(REPO, dict.fromkeys(("x-Q8_0-00001-of-00002.gguf", "x-second.gguf"), files["model"]))
    for reference in (f"{REPO}:Q8_0", f"{FILE_URL}x-Q8_0-00001-of-00002.gguf"):
        done = hub_user.run("pull", reference)
        said = f"error: {REPO} lacks x-Q8_0-00002-of-00002.gguf, a part of its model\n hint: see its page on the Hub\n"
        assert (done.code, done.err) == (3, said)


@pytest.mark.parametrize(("name", "number"), [("renamed-Q8_0.gguf", 0), ("swapped-Q8_0-00001-of-00003.gguf", 1)])
def test_right_file_of_a_renamed_part_is_named(hub_user: HubUser, tmp_path: Path, name: str, number: int) -> None:
    path = written(tmp_path / name, split__count=3, split__no=number)
    others = [name.replace("00001", part) for part in ("00002", "00003")]
    hub_user.hub.repository(REPO, dict.fromkeys((name, *others), path))
    for command in (("pull", REPO), ("pull", path), ("ask", "-m", path, "Why?")):
        done = hub_user.run(*command)
        assert done.code == 2 and "one of 3 parts of a model, under another name" in done.err
        assert done.err.endswith("\n hint: rename its parts to NAME-00001-of-00003.gguf, and so on\n")
    assert not hub_user.downloads()


def test_right_file_of_a_mirror_without_digests_has_a_hint(
    hub_user: HubUser, files: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_user.hub.repository(REPO, {"x-Q8_0.gguf": files["model"]})
    monkeypatch.setattr(Content, "listed", {})
    done = hub_user.run("pull", REPO)
    problem = f"{hub_user.hub.url} lists the files of {REPO} without sizes and digests, so none can be verified"
    assert (
        done.err
        == f"error: {problem}\n hint: unset HF_ENDPOINT, or download a file yourself, then: cerebrum pull PATH\n"
    )
    assert done.code == 1
