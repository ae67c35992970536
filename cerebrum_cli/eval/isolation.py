"""What a program may use in the sandbox: bubblewrap's arguments, a filter of system calls, and limits; pure functions.

A program is one process with one thread, so a limit of the process is a limit of all it does.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

MEMORY, TEMPORARY_FILES, FILE_SIZE = 2**29, 2**24, 2**24  # bytes
OPEN_FILES = 64

GUEST = Path(__file__).with_name("guest.py")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")
PACKAGES = ("/nix/store", "/gnu/store")  # of NixOS and Guix, libraries included

# System calls that a program cannot make: of other processes and threads, namespaces, sockets, and memory that does not
# count as its own; with their numbers on each of MACHINES, which has the kernel's number of the architecture.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED_CALLS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
}
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of a filter
CALL_NUMBER, ARCHITECTURE = 0, 4  # offsets of what a filter can load
OTHER_CALLS = 0x40000000  # x86_64 has the same calls again from here on
ALLOW, DENY = 0x7FFF0000, 0x00050001  # the call fails with EPERM


def sandbox_command(bwrap: str, python: str, libraries: Iterable[str], filter_descriptor: int) -> list[str]:
    """Command that runs guest.py in the sandbox, where nothing but Python, libraries and a small /tmp exists."""
    isolation = "--unshare-user --unshare-all --cap-drop ALL --die-with-parent --clearenv"
    environment = "--setenv HOME /tmp --setenv PYTHONHASHSEED 0"
    devices = f"--size {TEMPORARY_FILES} --tmpfs /tmp --dev-bind /dev/null /dev/null"
    readable = [part for path in (*libraries, python) for part in ("--ro-bind-try", path, path)]
    rest = f"--remount-ro / --chdir /tmp --seccomp {filter_descriptor}"
    options = f"{isolation} {environment} {devices}".split() + readable + rest.split()
    return [bwrap, *options, python, "-P", "-s", "-S", "-c", GUEST.read_text(encoding="utf-8")]


def interpreter() -> str:
    """The interpreter of this process; of a virtual environment, the one that it was made from."""
    return str(Path(sys.executable).resolve())


def libraries() -> list[str]:
    """Where shared libraries are, and the standard library of the interpreter."""
    return list(dict.fromkeys([*LIBRARIES, *PACKAGES, f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib"]))


def call_filter(machine: str) -> bytes:
    """Program in the kernel's filter language (BPF) that denies the machine's DENIED_CALLS and foreign calls."""
    column = list(MACHINES).index(machine)
    calls = [numbers[column] for numbers in DENIED_CALLS.values() if numbers[column] is not None]
    deny = len(calls) + 5  # index of the last instruction; a jump's length is counted from the next instruction
    instructions = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 0, deny - 2, MACHINES[machine]),
        (LOAD, 0, 0, CALL_NUMBER),
        (JUMP_GREATER_EQUAL, deny - 4, 0, OTHER_CALLS),
        *((JUMP_EQUAL, deny - index - 1, 0, call) for index, call in enumerate(calls, start=4)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, DENY),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def resource_limits(timeout_s: float) -> dict[str, tuple[int, int]]:
    """Limits of the program's process, soft and hard, by their names in Python's `resource`."""
    cpu_s = math.ceil(timeout_s) + 1
    return {
        "RLIMIT_CPU": (cpu_s, cpu_s + 1),  # a signal, and another that cannot be caught
        "RLIMIT_AS": (MEMORY, MEMORY),
        "RLIMIT_FSIZE": (FILE_SIZE, FILE_SIZE),
        "RLIMIT_NOFILE": (OPEN_FILES, OPEN_FILES),
        "RLIMIT_CORE": (0, 0),
    }
