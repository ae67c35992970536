"""State files with several processes in one directory, and with a full disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import start_python

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("room", [32, 100])  # too small for the body; for the record
def test_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path, room: int) -> None:
    process = start_python(
        "import resource, sys\n"
        "from state_files import *\n"
        "from cerebrum_cli.core.errors import EngineError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n    put(open_store(Path(sys.argv[1])), TOKENS)\n"
        "except EngineError as error:\n    sys.stdout.write(error.message)\n",
        tmp_path,
        room,
    )
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said, list(tmp_path.iterdir())) == (0, f"{tmp_path}: File too large", [])


def test_store_is_safe_for_concurrent_processes(tmp_path: Path) -> None:
    code = (
        "import random, sys\n"
        "from state_files import *\n"
        "draw = random.Random(int(sys.argv[2]))\n"
        "states = open_store(Path(sys.argv[1]), limit=40_000)\n"
        "for _ in range(300):\n"
        "    tokens = [draw.randrange(3) for _ in range(draw.randrange(1, 5))]\n"
        "    put(states, tokens, body=bytes(tokens) * 1000)\n"
        "    found, told = find(states, [draw.randrange(3) for _ in range(5)])\n"
        "    assert told == [], told\n"
    )
    processes = [start_python(code, tmp_path, seed) for seed in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    names = [path.name for path in tmp_path.iterdir()]
    assert names and all(name.endswith(".state") for name in names)
