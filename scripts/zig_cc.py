"""Zig's compiler with the `-march` of other compilers for ARM, which Zig spells otherwise: zig_cc.py ZIG cc|c++ ..."""

from __future__ import annotations

import os
import re
import sys


def translated(option: str) -> str:
    """The option in Zig's words: -march=armv8.2-a+dotprod+fp16 is -mcpu=generic+v8_2a+dotprod+fullfp16."""
    found = re.fullmatch(r"-march=armv(\d)(?:\.(\d))?-a(.*)", option)
    if not found:
        return option
    major, minor, features = found.groups()
    version = f"{major}_{minor}a" if minor else f"{major}a"
    return f"-mcpu=generic+v{version}{features.replace('+fp16', '+fullfp16')}"


if __name__ == "__main__":
    os.execv(sys.argv[1], [sys.argv[1], *map(translated, sys.argv[2:])])
