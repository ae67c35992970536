"""Of the files in a repository, `pull` takes the model that is meant, or asks; of other files it says what they are."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cases import rows
from command_line import assert_error
from gguf_files import LLAMA, add_values, handmade, tensor, write_file, write_model
from hub_server import Content
from hub_user import HubUser, cleaned

REPO = "owner/gpt-oss-120b-GGUF"
URL = f"https://huggingface.co/{REPO}/resolve/main"
Files = Mapping[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of two layers, some of them larger, and files that accompany models, by what they are."""
    folder = tmp_path_factory.mktemp("files")

    def fill(values: Mapping[str, Any], size: int, tensor: str, writer: gguf.GGUFWriter) -> None:
        add_values(writer, values)
        if size:
            writer.add_tensor("blk.0.ffn_up.weight", np.zeros((size // 256, 64), dtype=np.float32))
        if tensor:
            writer.add_tensor(tensor, np.zeros((4, 64), dtype=np.float32))

    for name, (architecture, *added) in rows("files_beside_models").items():
        write_model(folder / f"{name}.gguf", partial(fill, *added), architecture)
    nextn = gguf.GGUFWriter(folder / "mtp.gguf", "glm4moe")
    nextn.add_block_count(3)
    nextn.add_tensor("blk.2.nextn.eh_proj.weight", np.zeros((4, 64), dtype=np.float32))
    write_file(nextn)
    imatrix = gguf.GGUFWriter(folder / "imatrix.gguf", "")
    imatrix.kv_data[0].clear()
    imatrix.add_type("imatrix")
    imatrix.add_tensor("blk.0.ffn_up.weight.in_sum2", np.zeros((1, 64), dtype=np.float32))
    write_file(imatrix)
    expert = tensor(b"blk.0.ffn_gate.0.weight", (3 << 18,), 0, 0)
    (folder / "mixtral.gguf").write_bytes(handmade(LLAMA, tensors=(expert,), data=bytes(3 << 20)))
    return {path.stem: path for path in folder.iterdir()}


LAYOUTS = rows("repository_layouts")  # files by what they are; what a reference's tag takes
TAKEN = [(layout, tag) for layout, (_, taken) in LAYOUTS.items() for tag in taken]


@pytest.mark.parametrize(("layout", "tag"), TAKEN)
def test_right_file_is_pulled(hub_user: HubUser, files: Files, layout: str, tag: str) -> None:
    names, taken = LAYOUTS[layout]
    hub_user.hub.repository(REPO, {name: files[kind] for name, kind in names.items()})
    planned = hub_user.run("pull", "--dry-run", "--json", f"{REPO}{tag}")
    assert planned.code == 0, planned.err
    assert cleaned(hub_user.pull(f"{REPO}{tag}")).endswith(f": {hub_user.path(taken[tag], REPO)}\n")
    [row] = hub_user.listed()
    assert (row["path"], row["default"], row["error"]) == (str(hub_user.path(taken[tag], REPO)), True, None)


REFUSED = rows("refused_repositories")


@pytest.mark.parametrize(("names", "references", "code", "error", "hint"), REFUSED.values(), ids=REFUSED)
def test_repository_without_a_file_that_is_meant_is_refused(
    hub_user: HubUser, files: Files, names: dict[str, str], references: list[str], code: int, error: str, hint: str
) -> None:
    """REPO stands for the repository, and URL for the address of its files."""
    hub_user.hub.repository(REPO, {name: files[kind] for name, kind in names.items()})
    for reference in references:
        done = hub_user.run("pull", *reference.replace("REPO", REPO).replace("URL", URL).split())
        said = f"error: {error}\n hint: {hint}\n".replace("REPO", REPO).replace("URL", URL)
        assert (done.code, done.err) == (code, said)


OTHERS = rows("refused_files")


@pytest.mark.parametrize("kind", OTHERS)
def test_file_that_is_no_whole_model_is_refused(hub_user: HubUser, files: Files, kind: str) -> None:
    names, problem, hint = OTHERS[kind]
    path = files[kind]
    hub_user.hub.repository(REPO, dict.fromkeys(names, path))
    references = (REPO, f"{REPO}:Q8_0", f"{URL}/{names[0]}")
    commands = [(f"{REPO}/{names[0]}", ["pull", reference]) for reference in references]
    commands += [(str(path), ["pull", str(path)]), (str(path), ["ask", "-m", str(path), "Why?"])]
    for place, command in commands:
        done = hub_user.run(*command)
        assert (done.code, done.err) == (2, f"error: {place}: {problem}\n hint: {hint}\n")
    assert not hub_user.downloads()
    assert all(request.sent <= 1 << 20 for request in hub_user.hub.log.requests("cdn"))
    assert f"{path}: {problem.partition(' (')[0]}" in hub_user.run("show", path).err


@pytest.mark.parametrize(
    ("known", "unknown", "kind"),
    [("llama", "qwen9", "model architecture"), ("gpt2", "newt", "tokenizer"), ("smollm", "newtok", "pre-tokenizer")],
)
def test_file_of_a_newer_model_is_refused_in_the_words_of_llama(
    hub_user: HubUser, chatml_model: Path, tmp_path: Path, known: str, unknown: str, kind: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(chatml_model.read_bytes().replace(known.encode(), unknown.encode()))
    done = hub_user.run("ask", "-m", path, "Why?")
    assert_error(done, 2, f"unknown {kind}", f": '{unknown}'", "update cerebrum")


def test_mirror_without_digests(hub_user: HubUser, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_user.hub.repository(REPO, {"x-Q8_0.gguf": files["model"]})
    monkeypatch.setattr(Content, "listed", {})
    done = hub_user.run("pull", REPO)
    problem = f"{hub_user.hub.url} lists the files of {REPO} without sizes and digests, so none can be verified"
    hint = "unset HF_ENDPOINT, or download a file yourself, then: cerebrum pull PATH"
    assert (done.code, done.err) == (1, f"error: {problem}\n hint: {hint}\n")
