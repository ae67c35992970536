"""Every row of models.toml finds its files on a Hub that lists them, and is planned for machines of three sizes."""

from __future__ import annotations

import pytest
from command_line import assert_error
from hub_user import HubUser

from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.memory import HEADROOM
from cerebrum_cli.engine.memory_plan import DEFAULT_CONTEXT
from cerebrum_cli.models.catalogue import ModelSpec, Repository, load_catalogue
from cerebrum_cli.models.fit import SYSTEM_RESERVE
from cerebrum_cli.models.library import CATALOGUE

GIB = 2**30
SOURCES = [(spec, source) for spec in load_catalogue([CATALOGUE]) for source in spec.sources]
PARTS_OF_OTHERS = {"mmproj-F16.gguf": 600_000_000, "mtp-x-Q8_0.gguf": 300_000_000, "x-BF16-mmproj.gguf": 700_000_000}


@pytest.mark.parametrize(("spec", "source"), SOURCES, ids=[source.repo_id for _, source in SOURCES])
def test_catalogue_row_resolves_and_is_planned(
    spec: ModelSpec, source: Repository, hub_user: HubUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {source.file.replace("{quant}", name): size for name, size in source.quantizations}
    hub_user.hub.repository(source.repo_id, files | PARTS_OF_OTHERS)
    reference = spec.name if source == spec.sources[0] else source.repo_id
    for gigabytes in (8, 16, 24):
        monkeypatch.setattr("cerebrum_cli.engine.machine.total_memory", lambda total=gigabytes * GIB: total)
        require_plan(hub_user, reference, spec, source, gigabytes * GIB - SYSTEM_RESERVE)


def require_plan(hub_user: HubUser, reference: str, spec: ModelSpec, source: Repository, available: int) -> None:
    plan = hub_user.run("pull", "--dry-run", "--json", reference).object
    assert (plan["name"], plan["repo_id"], plan["context"]) == (spec.name, source.repo_id, DEFAULT_CONTEXT)
    found = {each["quantization"]: each for each in plan["quantizations"]}
    assert {name: each["size"] for name, each in found.items()} == dict(source.quantizations)
    for each in found.values():
        needed = each["size"] + DEFAULT_CONTEXT * (spec.kv_bytes_per_token or 0) + HEADROOM
        assert needed < each["needed"] < needed + 5_000_000  # the mask
        verdict = "fits" if each["needed"] <= 7 / 8 * available else "tight"
        assert each["verdict"] == (verdict if each["needed"] <= available else "too big")
    chosen = found[plan["chosen"]]
    if chosen["verdict"] == "too big":
        needs = f"needs {format_size(chosen['needed'])} of memory at 8192 tokens of context"
        done = hub_user.run("pull", reference)
        assert_error(done, 1, f"{spec.name}:{plan['chosen']} {needs}; {format_size(available)} is available", "-y")
        assert not hub_user.hub.log.requests("cdn")
