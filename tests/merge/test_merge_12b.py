"""The 12B, a catalog model that is merged from the 7B: its dry runs, and pulling it."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub_user import CATALOGUED, HubUser, named
from merges import LAYERS_12B, Home, assert_layers_copied
from mistral_shape import METADATA, model_tensors
from tiny_models import write_quantized

pytestmark = pytest.mark.slow

DRY_RUN = """\
layers  model  source layers
0-7     seven  0-7
8-15    seven  4-11
16-23   seven  8-15
24-31   seven  12-19
32-39   seven  16-23
40-47   seven  20-27
48-55   seven  24-31

parameters  12,476,420,096
tensors     507 (Q4_K 345, F32 113, Q6_K 49)
size        7.44 GB (7442684992 bytes), 100% copied unchanged
KV cache    229,376 bytes per token
memory      93 MB to merge, 9.89 GB to run with a context of 8192 tokens
disk        7.44 GB needed, 12.35 GB free
"""


def test_merge_12b_dry_run_shows_its_layers_and_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.merge.merge.thread_count", lambda: 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12_345_678_901))
    (tmp_path / "unused.gguf").touch()
    home = Home(tmp_path, tmp_path / "unused.gguf")
    write_sparse_7b(tmp_path / "seven.gguf")  # a copy would not be sparse
    monkeypatch.chdir(tmp_path)
    done = home.run("merge", "Cerebrum-1.0-12.25b", "--source", "cerebrum-7b=seven.gguf", "--dry-run")
    assert (done.code, done.err, done.out) == (0, "", DRY_RUN)


def write_sparse_7b(path: Path) -> None:
    """Write a file with the exact shape of the 7B and sparse weights that use no disk space."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, "llama")
    for key, value in METADATA.items():
        kind = GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    tensors = list(model_tensors())
    for each in tensors:
        floats = np.dtype(np.float32)
        writer.add_tensor_info(each.name, each.dimensions, floats, each.size, raw_dtype=each.encoding.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + sum(tensor.size for tensor in tensors))


SMALL_12B = "[models.cerebrum-12b]\nquantizations = {Q4_K_M = 19000000}\n"
TWELVE = "Cerebrum-1.0-12.25B-Q4_K_M.gguf"


@pytest.fixture(autouse=True)
def catalog_7b(hub_user: HubUser, tmp_path: Path) -> None:
    """Upload a tiny 7B in one quantization."""
    (hub_user.command.config / "models.toml").write_text(SMALL_12B)
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): write_quantized(tmp_path / "seven.gguf")})


def test_merge_12b_pull_downloads_the_7b_and_merges_it(hub_user: HubUser) -> None:
    done = hub_user.pull("cerebrum-12b:Q4_K_M", "-y")
    path = hub_user.command.home / "data/cerebrum/models/merged" / TWELVE
    stages = [*dict.fromkeys(line.split(":")[0] for line in done.err.splitlines())]
    assert (stages, done.err.splitlines()[-1]) == (
        ["download", "merge", "installed cerebrum-12b"],
        f"installed cerebrum-12b:Q4_K_M: {path}",
    )
    assert_layers_copied([path], [hub_user.path(named("Q4_K_M"))], LAYERS_12B)
    twelve, seven = hub_user.listed()
    assert (twelve["reference"], twelve["path"], twelve["default"]) == ("cerebrum-12b:Q4_K_M", str(path), True)
    assert (twelve["merged_from"], twelve["format"], twelve["error"]) == (["cerebrum-7b:Q4_K_M"], "cerebrum", None)
    assert (seven["reference"], seven["default"]) == ("cerebrum-7b:Q4_K_M", False)
    shown = hub_user.run("show", "cerebrum-12b", "--json").object
    assert (shown["layers"], shown["sha256"]) == (56, hashlib.sha256(path.read_bytes()).hexdigest())
    assert shown["metadata"]["general.name"] == "Cerebrum-1.0-12.25B"
    assert shown["metadata"]["general.base_model.0.repo_url"] == f"https://huggingface.co/{CATALOGUED}"
    assert hub_user.ask("-m", "cerebrum-12b") == hub_user.ask() == hub_user.ask("-m", path)

    hub_user.hub.log.clear()
    before = path.stat()
    assert hub_user.pull("cerebrum-12b:q4_k_m").err == f"installed cerebrum-12b:Q4_K_M: {path}\n"
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    removed = hub_user.run("rm", "-y", "cerebrum-12b:Q4_K_M")
    assert removed.err == ("deleted cerebrum-12b:Q4_K_M, freed 19 MB; the default model is now cerebrum-7b:Q4_K_M\n")
    assert (path.parent.exists(), path.exists()) == (True, False)
    assert [row["reference"] for row in hub_user.listed()] == ["cerebrum-7b:Q4_K_M"]
    assert not hub_user.hub.log.requests()


def test_merge_12b_pull_offline_uses_an_installed_7b(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b:Q4_K_M")
    hub_user.hub.log.clear()
    done = hub_user.run("pull", "cerebrum-12b:Q4_K_M", "--offline", "-y", "--name", "mine", "--json")
    assert (done.code, done.object["reference"], done.object["default"]) == (0, "mine", False)
    assert hub_user.run("pull", "--offline", "cerebrum-12b:Q4_K_M").err.startswith("installed mine: ")
    assert hub_user.ask("-m", "mine", "--offline") == hub_user.ask("-m", "cerebrum-12b", "--offline")
    assert not hub_user.hub.log.requests()
    assert hub_user.run("rm", "-y", "mine").err.startswith("deleted mine, ")


def test_merge_12b_pull_refuses_a_taken_name_before_downloading(hub_user: HubUser) -> None:
    done = hub_user.run("pull", "cerebrum-12b:Q4_K_M", "-y", "--name", "starter")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: the name starter belongs to another model")
    assert not hub_user.hub.log.requests()


def test_merge_12b_pull_dry_run_lists_its_quantizations(hub_user: HubUser) -> None:
    (hub_user.command.config / "models.toml").unlink()
    done = hub_user.run("pull", "--dry-run", "cerebrum-12b:q4_k_m")
    assert (done.code, done.err) == (0, "cerebrum pull cerebrum-12b:q4_k_m would download cerebrum-12b:Q4_K_M\n")
    assert done.out.startswith("\ncerebrum-12b at a context of 8192 tokens; this machine has ")
    table = [line.removeprefix("*").split() for line in done.out.splitlines()[3:]]
    assert [*table[0][:2], len(table[1:])] == ["quant", "size", 14]
    assert ["Q4_K_M", "7.44", "GB"] in [row[:3] for row in table]
    assert not hub_user.hub.log.requests()
    assert not (hub_user.command.home / "data").exists()
