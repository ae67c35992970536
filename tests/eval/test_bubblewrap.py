"""Hostile and ordinary programs in the sandbox, with its filter of system calls evaluated for both machines.

The filter denies `ptrace` whatever Yama, a module of the kernel, allows; and there is no other process to trace.
"""

import json
import os
import platform
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from shlex import quote

import cases
import psutil
import pytest
from command_line import PYTHON
from waiting import NewChildren, user_seconds, wait_for_end, wait_until

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval import bubblewrap as bubblewrap_module
from cerebrum_cli.eval.bubblewrap import Bubblewrap, CodeResult, find_bubblewrap
from cerebrum_cli.eval.call_filter import ALLOWED_CALLS, MACHINES, call_filter

COMMANDS = {"F_SETPIPE_SZ": 1031, "F_SETOWN": 8, "F_SETLEASE": 1024, "F_NOTIFY": 1026}  # of fcntl


def denied_calls(machine: str) -> dict[str, int]:
    """Those that both machines have, some by one number, and those of x86_64 only."""
    column = list(MACHINES).index(machine)
    calls = {name: (numbers * 2)[column] for name, numbers in cases.rows("denied_calls").items()}
    if machine == "x86_64":
        calls |= {"fork": 57, "vfork": 58, "modify_ldt": 154, "x32 fork": 0x40000039, "x32 ptrace": 0x40000209}
    return calls


def is_allowed(program: bytes, architecture: int, call: int, argument: int = 0) -> bool:
    """What the kernel does with a call whose arguments are all the same: it runs the program."""
    data = struct.pack("<II7Q", call, architecture, 0, *[argument] * 6)
    instructions = list(struct.iter_unpack("HBBI", program))
    at = value = 0
    while True:
        code, if_equal, if_not, operand = instructions[at]
        if code == 0x06:  # return
            assert operand in (0x7FFF0000, 0x00050001)
            return bool(operand == 0x7FFF0000)
        if code == 0x20:  # load
            [value] = struct.unpack_from("<I", data, operand)
            at += 1
        else:
            assert code == 0x15  # jump
            at += 1 + (if_equal if value == operand else if_not)


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_allows_only_its_calls_of_its_machine(machine: str) -> None:
    program, architecture = call_filter(machine), MACHINES[machine]
    column = 1 + list(MACHINES).index(machine)
    table = [row.split() for row in ALLOWED_CALLS.strip().splitlines()]
    allowed = {int(row[column]): int(row[-1] if row[3:] else "0", 0) for row in table if row[column] != "-"}
    assert all(is_allowed(program, architecture, call, argument) for call, argument in allowed.items())
    denied = [call for call in range(600) if not is_allowed(program, architecture, call, 77)]
    assert set(range(600)) - set(denied) == {int(row[column]) for row in table if row[column] != "-" and not row[3:]}
    calls = denied_calls(machine)
    assert [name for name, call in calls.items() if is_allowed(program, architecture, call)] == []
    others = {0x40000003, 0x40000028, *MACHINES.values()} - {architecture}  # i386 and ARM, too
    assert not any(is_allowed(program, other, call) for other in others for call in allowed)
    fcntl = next(int(row[column]) for row in table if row[0] == "fcntl")
    assert not any(is_allowed(program, architecture, fcntl, command) for command in COMMANDS.values())


DENIED = """
import ctypes, errno, json
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
results = {}
for name, call in json.loads(CALLS).items():
    arguments = (ctypes.c_long(0),) * 6
    result = libc.syscall(ctypes.c_long(call), *arguments)
    results[name] = result == -1 and ctypes.get_errno() == errno.EPERM
print([name for name, is_denied in results.items() if not is_denied])
"""


@pytest.mark.slow
def test_kernel_denies_calls(bubblewrap: Bubblewrap) -> None:
    calls = json.dumps(denied_calls(platform.machine()))
    assert bubblewrap.run(f"CALLS = {calls!r}\n{DENIED}", "") == CodeResult("passed", "[]\n")


REFUSE = """
import asyncio, fcntl, json, mmap, multiprocessing.shared_memory, os, signal, socket, subprocess, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for expression in json.loads(EXPRESSIONS):
    try:
        eval(expression)
    except OSError:
        continue
    print(expression)
"""


@pytest.mark.slow
def test_python_refuses_calls(bubblewrap: Bubblewrap) -> None:
    """Each of the expressions must raise an OSError."""
    expressions = json.dumps(cases.rows("refused_calls"))
    assert bubblewrap.run(f"EXPRESSIONS = {expressions!r}\n{REFUSE}", "") == CodeResult("passed", "")


@pytest.mark.slow
def test_programs_have_a_null_device_of_their_own(bubblewrap: Bubblewrap) -> None:
    """Root is the owner of the real one, and could change its times and permissions."""
    program = 'import os\nopen(os.devnull, "w").write("text")\nos.utime(os.devnull, (0, 0))'
    assert bubblewrap.run(program, "") == ("passed", "")
    assert os.stat(os.devnull).st_mtime != 0


@pytest.mark.slow
@pytest.mark.parametrize(("code", "reason"), cases.rows("greedy_programs"))
def test_program_that_takes_what_no_limit_counts_is_ended(
    new_children: NewChildren, bubblewrap: Bubblewrap, code: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap_module, "MAX_KERNEL_MEMORY", 2**23)  # so that the test is faster
    start = time.monotonic()
    assert bubblewrap.run(f"import os\n{code}", "", 1 if reason == "timeout" else 8).reason == reason
    assert time.monotonic() - start < 6
    assert new_children() == []


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@needs_linux
@pytest.mark.slow
def test_waiting_for_a_program_that_cannot_be_killed_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap_module, "END_S", 0.3)
    survivor = f"{PYTHON} -c 'import os, time; os.setsid(); time.sleep(20)' &"
    python = f'while [ "$1" != -P ]; do shift; done\nexec {PYTHON} "$@"'  # without isolation
    write_program(tmp_path / "bwrap", f"{survivor}\nsleep 0.3\n{python}")
    start = time.monotonic()
    with pytest.raises(UsageError, match="a program that was killed did not end"):
        Bubblewrap(str(tmp_path / "bwrap"), b"").run("while True: pass", "", timeout_s=0.5)
    assert time.monotonic() - start < 10


@needs_linux
@pytest.mark.slow
def test_sandbox_is_refused_without_a_list_of_children(
    bubblewrap: Bubblewrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap_module, "CHILDREN", tmp_path / "children")
    assert "children is missing" in refusal().message


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("option", ["--as-pid-1", "--seccomp"])
def test_sandbox_is_refused_if_bubblewrap_ignores(
    option: str, bubblewrap: Bubblewrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        f"import os, sys; arguments = sys.argv[1:]; at = arguments.index({option!r})\n"
        f"del arguments[at : at + {2 if option == '--seccomp' else 1}]\n"
        f"os.execv({bubblewrap.path!r}, ['bwrap', *arguments])"
    )
    write_program(tmp_path / "bwrap", f'exec {PYTHON} -c {quote(code)} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert re.search("does not work here: AssertionError: it (is not|has|can)", refusal().message)


def refusal() -> UsageError:
    with pytest.raises(UsageError) as caught:
        find_bubblewrap()
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


@pytest.fixture
def bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a `bwrap` can be put that is the only one on PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path / "bin" / "bwrap"


def test_sandbox_is_refused_where_it_cannot_be(bwrap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal()
    assert "bwrap is not installed" in error.message and "apt install bubblewrap" in error.hint
    with pytest.raises(UsageError, match="No such file"):
        Bubblewrap(str(bwrap), call_filter("x86_64")).run("pass", "")
    write_program(bwrap, "exit 0")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "on Linux on x86_64 or aarch64" in refusal().message


DENIED_MAP = "bwrap: setting up uid map: Permission denied"


@needs_linux
@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 3", "it ended with exit code 3"),
        ("/bin/sleep 60 & exit 3", "it ended with exit code 3"),
        (f"echo {DENIED_MAP} >&2; exit 1", DENIED_MAP),
        (f'while [ "$1" != -P ]; do shift; done; exec {PYTHON} "$@"', "AssertionError: it has sockets"),
    ],
)
def test_bubblewrap_that_does_not_isolate_is_refused_at_once(bwrap: Path, script: str, problem: str) -> None:
    write_program(bwrap, script)
    start = time.monotonic()
    assert refusal().message == f"bubblewrap does not work here: {problem}"
    assert time.monotonic() - start < 10


@needs_linux
def test_restriction_of_apparmor_is_named_with_its_remedy(
    bwrap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(bwrap, f"echo {DENIED_MAP}; exit 1")
    monkeypatch.setattr(bubblewrap_module, "RESTRICTION", tmp_path / "restriction")
    for value, hint in (("1\n", "AppArmor forbids it"), ("0\n", "it needs version 0.7")):
        (tmp_path / "restriction").write_text(value)
        assert refusal().hint.startswith(hint)


@pytest.mark.slow
def test_sandbox_runs_a_program_and_its_test(bubblewrap: Bubblewrap) -> None:
    test = "def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)"
    assert bubblewrap.run("def double(x): return 2 * x", test) == CodeResult("passed")
    wrong = bubblewrap.run("def double(x): return x", test)
    assert wrong.reason == "failed" and wrong.detail.endswith("AssertionError\n")
    assert 'File "test.py", line 2, in check' in wrong.detail
    assert "SyntaxError" in bubblewrap.run("def double(:\n", test).detail
    assert "NameError: name 'double' is not defined" in bubblewrap.run("", test).detail


@pytest.mark.slow
@pytest.mark.parametrize("code", cases.rows("ordinary_programs"))
def test_sandbox_runs_ordinary_programs(bubblewrap: Bubblewrap, code: str) -> None:
    assert bubblewrap.run(code, "").reason == "passed"


@pytest.mark.slow
@pytest.mark.parametrize(("code", "reason", "detail"), cases.rows("limited_programs"))
def test_sandbox_limits_and_isolates(
    bubblewrap: Bubblewrap, code: str, reason: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    monkeypatch.setenv("SECRET", "x")
    code = code.replace("{secret!r}", repr(str(secret)))
    result = bubblewrap.run(code, "assert f() == 1", 20 if reason != "timeout" else 0.5)
    assert result.reason == reason and detail in result.detail, result


RUNNING = """
from cerebrum_cli.eval.bubblewrap import find_bubblewrap
find_bubblewrap().run("while True: pass", "", timeout_s=60)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_sandbox_leaves_no_process_after(signum: signal.Signals) -> None:
    command = [sys.executable, "-c", RUNNING]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as parent:
        program = psutil.Process(parent.pid)
        wait_until(lambda: any(user_seconds(each) > 0.1 for each in program.children(recursive=True)))
        running = program.children(recursive=True)
        os.killpg(parent.pid, signum)
        assert parent.wait(10) == -signum
        wait_for_end(running)
