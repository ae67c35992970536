"""Every row of models.toml finds its files in a listing of the Hub, and is planned for machines of three sizes."""

from pathlib import Path

import pytest
from hub_user import RecordedProgress

from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.capacity import SYSTEM_RESERVE, Capacity
from cerebrum_cli.engine.memory import HEADROOM
from cerebrum_cli.engine.requests import DEFAULT_CONTEXT
from cerebrum_cli.library import planning
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.catalogue import Catalogue, ModelSpec, Repository
from cerebrum_cli.library.catalogue_file import load_catalogue
from cerebrum_cli.library.hub import HubFile, Listing
from cerebrum_cli.library.library import CATALOGUE, Library
from cerebrum_cli.library.pull import DownloadOptions, Puller
from cerebrum_cli.library.registry import Registry
from cerebrum_cli.weights.building import BUILDER

SPECS = load_catalogue([CATALOGUE])
SOURCES = [(spec, source) for spec in SPECS for source in spec.sources]
PARTS_OF_OTHERS = {"mmproj-F16.gguf": 600_000_000, "mtp-x-Q8_0.gguf": 300_000_000, "x-BF16-mmproj.gguf": 700_000_000}


@pytest.mark.parametrize("memory", [8 * 2**30, 16 * 2**30, 24 * 2**30])
@pytest.mark.parametrize(("spec", "source"), SOURCES, ids=[source.repo_id for _, source in SOURCES])
def test_catalogue_row_resolves_and_is_planned(
    spec: ModelSpec, source: Repository, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(repo_id: str, _: object, revision: str | None) -> Listing:
        sizes = source.quantizations.items()
        files = {source.file.replace("{quant}", name): size for name, size in sizes} | PARTS_OF_OTHERS
        assert (repo_id, revision) == (source.repo_id, source.revision if is_first else None)
        return Listing(
            repo_id, "main", "0" * 40, {name: HubFile(name, size, "00" * 32) for name, size in files.items()}
        )

    is_first, available = source == spec.sources[0], memory - SYSTEM_RESERVE
    library = Library((), Registry(tmp_path), lambda: Capacity(memory))
    library.cache, library.catalogue = Cache(tmp_path), Catalogue(SPECS)
    monkeypatch.setattr(planning, "list_repository", listed)
    puller = Puller(
        library=library,
        progress=RecordedProgress(),
        confirm=lambda *_: None,
        options=DownloadOptions(),
        builder=BUILDER,
    )
    plan = puller.plan(library.parse(spec.name if is_first else source.repo_id))
    assert (plan.spec, plan.available.context) == (spec, DEFAULT_CONTEXT)
    assert {fit.quantization: fit.size for fit in plan.available.candidates} == source.quantizations
    for fit in plan.available.candidates:
        needed = fit.size + DEFAULT_CONTEXT * (spec.kv_bytes_per_token or 0) + HEADROOM
        assert needed < fit.needed < needed + 5_000_000  # the mask
        fit_here = "fits" if fit.needed <= 7 / 8 * available else "tight"
        assert fit.fit == (fit_here if fit.needed <= available else "too big")
    if plan.chosen.fit == "too big":
        needs = f"needs {format_size(plan.chosen.needed)} of memory at 8192 tokens of context"
        said = f"{spec.name}:{plan.chosen.quantization} {needs}; {format_size(available)} is available"
        assert plan.available.warning == said
