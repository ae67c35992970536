"""Hostile and ordinary programs in the sandbox, with its filter of system calls evaluated for both machines.

The filter denies `ptrace` whatever Yama, a module of the kernel, allows; and there is no other process to trace.
"""

import json
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from shlex import quote

import psutil
import pytest
from command_line import PYTHON
from waiting import NewChildren, user_seconds, wait_for_end, wait_until

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval import bubblewrap as bubblewrap_module
from cerebrum_cli.eval.bubblewrap import Bubblewrap, CodeResult, find_bubblewrap
from cerebrum_cli.eval.call_filter import ALLOWED_CALLS, MACHINES, call_filter

# Numbers on x86_64 and aarch64, or on both.
DENIED_CALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440,),
    "pidfd_open": (434,),
    "pidfd_getfd": (438,),
    "pidfd_send_signal": (424,),
    "kcmp": (312, 272),
    "kill": (62, 129),
    "rt_sigqueueinfo": (129, 138),
    "prctl": (157, 167),
    "clone": (56, 220),
    "clone3": (435,),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setuid": (105, 146),
    "setgroups": (116, 159),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "seccomp": (317, 277),
    "landlock_create_ruleset": (444,),
    "io_uring_setup": (425,),
    "io_uring_enter": (426,),
    "io_uring_register": (427,),
    "io_setup": (206, 0),
    "memfd_create": (319, 279),
    "memfd_secret": (447,),
    "mlock": (149, 228),
    "mlockall": (151, 230),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "semget": (64, 190),
    "shmget": (29, 194),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463,),
    "socket": (41, 198),
    "bind": (49, 200),
    "connect": (42, 203),
    "setsockopt": (54, 208),
    "sendmsg": (46, 211),
    "vmsplice": (278, 75),
    "mknodat": (259, 33),
    "fchownat": (260, 54),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "timer_create": (222, 107),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428,),
    "move_mount": (429,),
    "fsopen": (430,),
    "mount_setattr": (442,),
    "unshare": (272, 97),
    "setns": (308, 268),
    "personality": (135, 92),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "bogus": (100_000,),
}
# Of x86_64 only.
DENIED_CALLS_OF_X86 = {"fork": 57, "vfork": 58, "modify_ldt": 154, "x32 fork": 0x40000039, "x32 ptrace": 0x40000209}
COMMANDS = {"F_SETPIPE_SZ": 1031, "F_SETOWN": 8, "F_SETLEASE": 1024, "F_NOTIFY": 1026}  # of fcntl


def denied_calls(machine: str) -> dict[str, int]:
    column = list(MACHINES).index(machine)
    calls = {name: (numbers * 2)[column] for name, numbers in DENIED_CALLS.items()}
    if machine == "x86_64":
        calls |= DENIED_CALLS_OF_X86
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
    rows = [row.split() for row in ALLOWED_CALLS.strip().splitlines()]
    allowed = {int(row[column]): int(row[-1] if row[3:] else "0", 0) for row in rows if row[column] != "-"}
    assert all(is_allowed(program, architecture, call, argument) for call, argument in allowed.items())
    denied = [call for call in range(600) if not is_allowed(program, architecture, call, 77)]
    assert set(range(600)) - set(denied) == {int(row[column]) for row in rows if row[column] != "-" and not row[3:]}
    calls = denied_calls(machine)
    assert [name for name, call in calls.items() if is_allowed(program, architecture, call)] == []
    others = {0x40000003, 0x40000028, *MACHINES.values()} - {architecture}  # i386 and ARM, too
    assert not any(is_allowed(program, other, call) for other in others for call in allowed)
    fcntl = next(int(row[column]) for row in rows if row[0] == "fcntl")
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


# Expressions, each of which must raise an OSError.
REFUSED = (
    "os.fork()",
    "os.posix_spawn(sys.executable, [sys.executable], {})",
    "subprocess.run(['/bin/sh'])",
    "os.kill(0, signal.SIGSTOP)",
    "os.kill(-1, 9)",
    "os.killpg(0, 9)",
    "os.setsid()",
    "os.setpgid(0, 0)",
    "os.setuid(1)",
    "os.nice(-1)",
    "os.setpriority(os.PRIO_PGRP, 0, 19)",
    "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "os.sched_setaffinity(0, [0])",
    "os.chroot('/tmp')",
    "os.memfd_create('x')",
    "os.setxattr('/tmp', 'user.a', b'x')",
    "os.mkfifo('/tmp/fifo')",
    "os.mknod('/tmp/device', 0o60666, os.makedev(8, 0))",
    "os.chown('/tmp', 1, 1)",
    "os.link('/usr/lib/os-release', '/tmp/o')",
    "os.open('/proc/1/mem', os.O_RDWR)",
    "os.open('/proc/self/mem', os.O_RDWR)",
    "os.open('/dev/tty', os.O_RDWR)",
    "os.open('/dev/shm/x', os.O_CREAT | os.O_RDWR)",
    "os.open(sys.executable, os.O_RDWR)",
    "os.open('/x', os.O_CREAT)",
    "os.listdir('/proc')",
    "os.listdir('/sys')",
    "os.listdir('/home')",
    "socket.socket()",
    "socket.socket(socket.AF_UNIX)",
    "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "socket.create_connection(('127.0.0.1', 80))",
    "socket.socketpair(socket.AF_TIPC)",
    "socket.socketpair()[0].sendmsg([b'x'])",
    "socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)",
    "fcntl.fcntl(os.pipe()[1], 1031, 2**20)",
    "fcntl.ioctl(0, 0x5412, b'x')",
    "mmap.mmap(-1, 2**29)",
    "multiprocessing.Process(target=print).start()",
    "multiprocessing.shared_memory.SharedMemory(create=True, size=1)",
    "multiprocessing.Lock()",
    "asyncio.run(asyncio.create_subprocess_shell('id'))",
    "os.posix_fallocate(os.open('/tmp/large', os.O_CREAT | os.O_RDWR), 0, 2**30)",
)
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
    expressions = json.dumps(REFUSED)
    assert bubblewrap.run(f"EXPRESSIONS = {expressions!r}\n{REFUSE}", "") == CodeResult("passed", "")


@pytest.mark.slow
def test_program_ignores_signals_to_itself(bubblewrap: Bubblewrap) -> None:
    code = "import os\nfor signal in 9, 15, 19, 24: os.kill(1, signal)\nprint(os.getpid())"
    assert bubblewrap.run(code, "") == CodeResult("passed", "1\n")


ORDINARY = """
import asyncio, contextlib, csv, glob, io, json, logging, mmap, os, pathlib, pickle, random, select, shutil, signal
import socket, sqlite3, subprocess, tempfile, time, uuid, zipfile
import numpy

with contextlib.closing(sqlite3.connect("/tmp/a.db")) as database, database:
    database.execute("create table t (x)")
    database.execute("insert into t values (?)", (1,))
    assert database.execute("select x from t").fetchall() == [(1,)]

with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory, "a", "b")
    path.parent.mkdir()
    path.write_text("x" * 5000)
    shutil.copytree(path.parent, path.parent.with_name("c"))
    shutil.make_archive(directory + "/all", "zip", path.parent)
    assert len(glob.glob(directory + "/**", recursive=True)) == 6, os.listdir(directory)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] = 65
    os.replace(path, path.with_name("d"))
    os.chmod(path.with_name("d"), 0o600)
    os.utime(path.with_name("d"))
    os.symlink("d", path)
    assert path.read_text()[0] == "A" and shutil.disk_usage(directory).total == 2**24

async def later(x):
    await asyncio.sleep(0.001)
    return x

async def run():
    return await asyncio.wait_for(asyncio.gather(later(1), later(2)), 1)

assert asyncio.run(run()) == [1, 2]
one, two = socket.socketpair()
one.sendall(b"x")
assert select.select([two], [], [], 0)[0] and two.recv(1) == b"x"
rang = []
signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001)
time.sleep(0.01)
signal.raise_signal(signal.SIGALRM)
assert rang == [1, 1]
logging.basicConfig(filename="/tmp/log")
logging.error("x")
numpy.save("/tmp/a.npy", numpy.random.default_rng(0).normal(size=(100, 100)))
numpy.linalg.svd(numpy.memmap("/tmp/a.npy", mode="r", offset=128, dtype=float, shape=(100, 100)))
assert pickle.loads(pickle.dumps(uuid.uuid4())) and random.SystemRandom().random() < 1 and os.cpu_count()
"""


@pytest.mark.slow
def test_programs_have_a_null_device_of_their_own(bubblewrap: Bubblewrap) -> None:
    """Root is the owner of the real one, and could change its times and permissions."""
    program = 'import os\nopen(os.devnull, "w").write("text")\nos.utime(os.devnull, (0, 0))'
    assert bubblewrap.run(program, "") == ("passed", "")
    assert os.stat(os.devnull).st_mtime != 0


def test_ordinary_programs_can_use_files_timers_and_numpy(bubblewrap: Bubblewrap) -> None:
    assert bubblewrap.run(ORDINARY, "") == CodeResult("passed", "")


SCATTER = """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for number in range(1, 60000):
    ctypes.memset(libc.mmap(number << 30, 4096, 3, 0x32, -1, 0), 1, 1)
import time
time.sleep(9)
"""
NAME = "'/tmp/' + 'x' * 240 + str(number)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (f"for number in range(10**7): os.close(os.open({NAME}, os.O_CREAT))", "memory"),
        (f"for number in range(10**7): os.mkdir({NAME})", "memory"),
        (f"for number in range(10**7): os.symlink('x', {NAME})", "memory"),
        (f"open('/tmp/a', 'w')\nfor number in range(10**7): os.link('/tmp/a', {NAME})", "memory"),
        (SCATTER, "memory"),  # page tables
        (f"for number in range(10**7): os.symlink('x' * 4000, {NAME})", "failed"),
        ("import signal\nfor n in {*range(1, 65)} - {9, 19, 32, 33}: signal.signal(n, 1)\nwhile True: pass", "timeout"),
        ("os.closerange(0, 64)\nimport time\ntime.sleep(9)", "timeout"),
        ("while True: os.write(3, bytes(2**16))", "crashed"),
        ("import sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])", "crashed"),
    ],
)
def test_program_that_takes_what_no_limit_counts_is_ended(
    new_children: NewChildren, bubblewrap: Bubblewrap, code: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap_module, "MAX_KERNEL_MEMORY", 2**23)  # so that the test is faster
    start = time.monotonic()
    assert bubblewrap.run(f"import os\n{code}", "", 1 if reason == "timeout" else 8).reason == reason
    assert time.monotonic() - start < 6
    assert new_children() == []


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")


def scripted(path: Path, text: str) -> Bubblewrap:
    """A sandbox whose program starts with this shell script, and then runs Python without isolation."""
    path.write_text(f'#!/bin/sh\n{text}\nwhile [ "$1" != -P ]; do shift; done\nexec {PYTHON} "$@"\n')
    path.chmod(0o755)
    return Bubblewrap(str(path), call_filter("x86_64"))


@needs_linux
@pytest.mark.slow
def test_waiting_for_a_program_that_cannot_be_killed_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap_module, "END_S", 0.3)
    survivor = f"{PYTHON} -c 'import os, time; os.setsid(); time.sleep(3)' &"
    start = time.monotonic()
    with pytest.raises(UsageError, match="a program that was killed did not end"):
        scripted(tmp_path / "bwrap", f"{survivor}\nsleep 0.3").run("while True: pass", "", timeout_s=0.5)
    assert time.monotonic() - start < 3


@needs_linux
@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 3", "it ended with exit code 3"),
        ("sleep 60 & exit 3", "it ended with exit code 3"),
        ("echo bwrap: broken; exit 1", "bwrap: broken"),
    ],
)
def test_bubblewrap_that_ends_at_once_is_an_error_at_once(script: str, problem: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match=f"^bubblewrap does not work here: {problem}$"):
        scripted(tmp_path / "bwrap", script).run("print(1)", "")
    assert time.monotonic() - start < 10


@needs_linux
def test_restriction_of_apparmor_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = scripted(tmp_path / "bwrap", "echo 'bwrap: setting up uid map: Permission denied'; exit 1")
    for value, hint in (("1\n", "AppArmor forbids it"), ("0\n", "it needs version 0.7")):
        (tmp_path / "restriction").write_text(value)
        monkeypatch.setattr(bubblewrap_module, "RESTRICTION", tmp_path / "restriction")
        with pytest.raises(UsageError) as refused:
            denied.run("print(1)", "")
        assert str(refused.value.hint).startswith(hint)


@needs_linux
@pytest.mark.slow
def test_sandbox_is_refused_without_a_list_of_children(
    bubblewrap: Bubblewrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap_module, "CHILDREN", tmp_path / "children")
    with pytest.raises(UsageError, match="children is missing"):
        find_bubblewrap()


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("option", ["--as-pid-1", "--seccomp"])
def test_sandbox_is_refused_if_bubblewrap_ignores(
    option: str, bubblewrap: Bubblewrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bubblewrap.path
    n_values = 1 if option == "--seccomp" else 0
    program = tmp_path / "bwrap.py"
    program.write_text(
        f"import os, sys\narguments = sys.argv[1:]\nat = arguments.index({option!r})\n"
        f"del arguments[at : at + 1 + {n_values}]\nos.execv({real!r}, ['bwrap', *arguments])\n"
    )
    path = tmp_path / "bwrap"
    path.write_text(f'#!/bin/sh\nexec {PYTHON} {quote(str(program))} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UsageError, match=r"does not work here: AssertionError: it (is not|has|can)"):
        find_bubblewrap()


# Where it is refused.


def refusal() -> UsageError:
    with pytest.raises(UsageError) as caught:
        find_bubblewrap()
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a `bwrap` can be put that is the only one on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path / "bin" / "bwrap"


def test_sandbox_is_refused_where_it_cannot_be(bwrap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal()
    assert "bwrap is not installed" in error.message and "apt install bubblewrap" in error.hint
    write_program(bwrap, "exit 0")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "on Linux on x86_64 or aarch64" in refusal().message


@pytest.mark.slow
def test_sandbox_is_refused_where_namespaces_are_forbidden(bwrap: Path) -> None:
    write_program(bwrap, "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1")
    error = refusal()
    assert error.message == "bubblewrap does not work here: bwrap: setting up uid map: Permission denied"
    assert "user namespaces" in error.hint


@pytest.mark.slow
def test_sandbox_is_refused_if_it_does_not_isolate(bwrap: Path) -> None:
    write_program(bwrap, f'while [ "$1" != -P ]; do shift; done; exec {PYTHON} "$@"')
    assert refusal().message.endswith("AssertionError: it has sockets")


# Programs and their tests.


@pytest.mark.slow
def test_sandbox_runs_a_program_and_its_test(bubblewrap: Bubblewrap) -> None:
    test = "def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)"
    assert bubblewrap.run("def double(x): return 2 * x", test) == CodeResult("passed")
    wrong = bubblewrap.run("def double(x): return x", test)
    assert wrong.reason == "failed" and wrong.detail.endswith("AssertionError\n")
    assert 'File "test.py", line 2, in check' in wrong.detail
    assert "SyntaxError" in bubblewrap.run("def double(:\n", test).detail
    assert "NameError: name 'double' is not defined" in bubblewrap.run("", test).detail


SANDBOX_VARIABLES = {"HOME", "PWD", "PYTHONHASHSEED", "LC_CTYPE", "PYTHONPATH", "OPENBLAS_NUM_THREADS"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "exit()",
        "import unittest\nclass Test(unittest.TestCase):\n    def test(self): pass\nunittest.main()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\n",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n",
        "import collections, datetime, decimal, hashlib, heapq, itertools, math, random, re, statistics, typing\n",
        "print('x' * 100_000_000)\n",
        "open('scratch', 'w').write('x')\nassert open('/tmp/scratch').read() == 'x'\n",
        "import numpy\nassert numpy.linalg.inv(numpy.eye(50)).sum() == 50\n",
        f"import os, sys\nassert os.environ.keys() <= {SANDBOX_VARIABLES}, os.environ\n",
        "assert hash('a') == hash('a') and 'ä'.encode() == open('f', 'w').write('ä') or True\n",
    ],
)
def test_sandbox_runs_ordinary_programs(bubblewrap: Bubblewrap, code: str) -> None:
    assert bubblewrap.run(code, "").reason == "passed"


WRITE_EVERYWHERE = "import os\nfor fd in range(3, 64):\n    try:\n        {}\n    except OSError: pass\nos._exit(0)"
MOUNT = """
import ctypes
ctypes.CDLL(None, use_errno=True).mount(None, b"/tmp", b"tmpfs", 0, None)
raise OSError(ctypes.get_errno(), "mount")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        # no program passes that ends early
        ("import sys\nsys.exit(0)", "failed", ""),
        ("import sys\nsys.exit(1)", "failed", "SystemExit: 1"),
        ("import os\nos._exit(0)", "crashed", ""),
        ("def f():\n    try:\n        raise SystemExit\n    except BaseException:\n        pass\n", "failed", ""),
        (WRITE_EVERYWHERE.format("os.write(fd, b'passed\\n')"), "crashed", ""),
        (WRITE_EVERYWHERE.format("while True: os.write(fd, bytes(10**6))"), "crashed", ""),
        ("import os\nos.closerange(0, 64)\ndef f(): return 1", "crashed", ""),
        ("import ctypes\nctypes.string_at(0)", "crashed", ""),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "failed", "NameError"),  # process 1 ignores it
        # limits
        ("import time\ntime.sleep(60)", "timeout", ""),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "timeout", ""),
        ("def f(): return f()\nf()", "failed", "RecursionError"),
        ("x = b'x' * 10**10", "memory", ""),
        ("import mmap\nx = [mmap.mmap(-1, 2**28) for _ in range(4)]", "failed", "Cannot allocate memory"),
        ("import os\nos.memfd_create('x')", "failed", "PermissionError"),
        ("open('x', 'wb').write(bytes(2**25))", "failed", "File too large"),
        ("for i in range(4): open(str(i), 'wb').write(bytes(2**23))", "failed", "No space left on device"),
        ("x = [open('/dev/null') for _ in range(100)]", "failed", "Too many open files"),
        # isolation
        ("import os\nos.fork()", "failed", "PermissionError"),
        ("import subprocess\nsubprocess.run(['/bin/sh'])", "failed", "PermissionError"),
        ("import threading\nthreading.Thread(target=print).start()", "failed", "can't start new thread"),
        ("open('/etc/passwd')", "failed", "FileNotFoundError"),
        ("import os\nos.listdir('/proc')", "failed", "FileNotFoundError"),
        ("import socket\nsocket.socket()", "failed", "PermissionError"),
        ("open('/written', 'w')", "failed", "Read-only file system"),
        ("open({secret!r})", "failed", "FileNotFoundError"),
        ("import os\nos.environ['SECRET']", "failed", "KeyError: 'SECRET'"),
        (MOUNT, "failed", "PermissionError"),
    ],
)
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


@pytest.mark.slow
def test_sandbox_that_fails_later_is_an_error(bubblewrap: Bubblewrap) -> None:
    for bwrap, problem in (("/bin/false", "it ended with exit code 1"), ("/missing/bwrap", ".*No such file")):
        with pytest.raises(UsageError, match=f"does not work here: {problem}"):
            Bubblewrap(bwrap, call_filter(platform.machine())).run("pass", "")
