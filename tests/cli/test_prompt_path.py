"""What `cerebrum ask` runs of the package: its functions, its deepest chain, and the way to llama_decode and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import call_profile
import pytest

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
MAX_FUNCTIONS = 560  # of the first question in a home, which writes a record of use; 550 of later ones
MAX_DEPTH = 20
MAX_STATIONS = 40

Profile = dict[str, list[str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The profile of one question to the bundled model."""
    command = [sys.executable, call_profile.__file__, "ask", "-m", "nano", "12+30=", "--no-log", "-n", "8"]
    environment = {**os.environ, "HOME": str(tmp_path_factory.mktemp("home"))}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    profile: Profile = json.loads(done.stderr.splitlines()[-1])
    return profile


def test_question_runs_few_functions(profile: Profile) -> None:
    assert len(profile["functions"]) <= MAX_FUNCTIONS
    assert len(profile["deepest"]) <= MAX_DEPTH


def test_prompt_and_reply_pass_few_functions(profile: Profile) -> None:
    assert profile["passed"] == sorted(call_profile.MILESTONES)
    assert profile["stations"][0] == "__main__.py main"
    assert len(profile["stations"]) <= MAX_STATIONS


def test_architecture_page_lists_the_stations(profile: Profile) -> None:
    page = ARCHITECTURE.read_text(encoding="utf-8")
    assert [station for station in profile["stations"] if f"`{station.split()[1]}`" not in page] == []
