"""`make catalogue` reads sizes and revisions of models.toml from the Hub, and keeps everything else."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT
from hub_user import HubUser

from cerebrum_cli.library.catalogue_file import load_catalogue

TEXT = """\
# The catalog.

# Source of files: somewhere
[models."a-1.5"]  # the first
title = "A"
repo_id = "owner/A-GGUF"
revision = "{old}"  # pinned
file = "A-{{quant}}.gguf"

[models."a-1.5".quantizations]
Q4_K_M = 4_000_000_000{rounded}
Q4_KS = 3_000_000_000  # exact
Q2_K = 1_000_000_000{rounded}

# No repository.
[models.b]
notes = \"\"\"\\
Two \\
lines.\"\"\"

[[models.b.alternatives]]
repo_id = "owner/B-GGUF"
revision = "v2"
file = "b_q4_0-it.gguf"
quantizations = {{ Q4_0 = 5 }}
"""


def run(path: Path, hub_user: HubUser) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "catalogue.py"), str(path)]
    environment = hub_user.command.environment(hub_user.environment({}))
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_catalogue_script_updates_sizes_and_pinned_revisions_in_place(hub_user: HubUser, tmp_path: Path) -> None:
    split = {f"Q4_K_M/A-Q4_K_M-0000{part}-of-00002.gguf": 2_100_000_000 for part in (1, 2)}
    others = {"mtp-A-Q4_K_M.gguf": 7, "Other-Q4_K_M.gguf": 7, "mmproj-F16.gguf": 7}
    first = hub_user.hub.repository("owner/A-GGUF", {"A-Q4_K_S.gguf": 3_000_000_000, **split, **others})
    old, new = first.branches["main"].hash, first.commit({"README.md": b"new"})
    second = hub_user.hub.repository("owner/B-GGUF", {"b_q4_0-it.gguf": 6})
    second.commit({"b_q4_0-it.gguf": 1_234_567}, "v2")
    path = tmp_path / "models.toml"
    path.write_text(TEXT.format(old=old, rounded="  # rounded"))
    done = run(path, hub_user)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "owner/A-GGUF: no quantization Q2_K\n")
    text = TEXT.format(old=new, rounded="  # rounded")
    text = text.replace("4_000_000_000  # rounded", "4_200_000_000").replace("Q4_0 = 5 ", "Q4_0 = 1_234_567 ")
    assert path.read_text() == text
    assert [spec.name for spec in load_catalogue([path])] == ["a-1.5", "b"]
