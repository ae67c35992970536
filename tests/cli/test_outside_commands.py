"""Commands of packages that are installed beside this one: a tiny one, broken ones, and ones with taken names."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import ROOT, CommandLine, assert_error

GROUP = "cerebrum.commands"
HELLO = ROOT / "tests" / "data" / "cerebrum_hello"
QUESTION, ANSWER = "What is 2 plus 3?", "2 plus 3 makes 5. The answer is 5."
MODULE = "from cerebrum_cli.cli import Command\nCOMMANDS = (Command{},)\n"


class Site:
    """A folder on the path of Python, into which packages are installed."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        patch.syspath_prepend(folder)

    def install(self, package: str, source: str | None = None) -> None:
        """A package of one module that defines COMMANDS, or one whose module is elsewhere on the path."""
        self.patch.delitem(sys.modules, package, raising=False)
        if source is not None:
            (self.folder / f"{package}.py").write_text(source)
        self.register(package, {package: f"{package}:COMMANDS"})

    def register(self, name: str, entry_points: dict[str, str]) -> None:
        described = self.folder / f"{name}-1.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}\n" for key, value in entry_points.items()]
        (described / "entry_points.txt").write_text("".join([f"[{GROUP}]\n", *lines]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Packages, among them the one that docs/functions.md shows."""
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder, monkeypatch)
    monkeypatch.syspath_prepend(HELLO)
    project = tomllib.loads((HELLO / "pyproject.toml").read_text())["project"]
    site.register(project["name"], project["entry-points"][GROUP])
    return site


def listed(help: str) -> list[str]:
    return re.findall(r"^  (\S+)", help.partition("Commands:\n")[2].partition("\n\n")[0], re.M)


def completions(new_user: CommandLine, line: str) -> list[str]:
    words = line.split(" ")
    env = {"_CEREBRUM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return new_user.run(env=env).out.split()


def test_command_from_outside_is_what_the_page_shows() -> None:
    page = (ROOT / "docs" / "functions.md").read_text()
    for file in ("pyproject.toml", "cerebrum_hello/__init__.py"):
        assert f"\n{(HELLO / file).read_text()}```\n" in page


@pytest.mark.slow
def test_command_from_outside_runs_with_its_options(site: Site, new_user: CommandLine) -> None:
    done = new_user.run("hello", QUESTION, "-m", "nano")
    assert (done.code, done.out, done.err) == (0, f"Hello! {ANSWER}\n", "")
    short = new_user.run("hello", QUESTION, "-m", "nano", "--max-tokens", "4")
    assert short.code == 0 and len("Hello! ") < len(short.out) < len(done.out)
    assert_error(new_user.run("hello", QUESTION, "-m", "absent"), 3, "absent")
    assert_error(new_user.run("hello", "--max-tokens", "few"), 2, "valid integer")
    assert new_user.run("ask", "--no-log", "-m", "nano", QUESTION).code == 0


def test_command_from_outside_is_in_help_and_completion(site: Site, new_user: CommandLine) -> None:
    done = new_user.run("--help")
    assert (done.code, done.err, listed(done.out)[-1]) == (0, "", "hello")
    assert "Greet, and answer a question" in done.out
    assert "--max-tokens" in new_user.run("hello", "--help").out
    assert completions(new_user, "cerebrum he") == ["hello"]
    assert "--max-tokens" in completions(new_user, "cerebrum hello --m")


MALFORMED = ("1", "None", "((1, 2),)", "(Command(1, 'a', 'b', 'c'),)", "(Command('a', 'b', 'c', None),)", "iter(())")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("raise RuntimeError('too old')", "RuntimeError: too old"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("import absent_module", "ModuleNotFoundError: No module named 'absent_module'"),
        *((f"COMMANDS = {value}", "TypeError: broken:COMMANDS is not a tuple of commands") for value in MALFORMED),
        ("class Odd(BaseException): __str__ = None\nraise Odd", "Odd"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        (None, "ModuleNotFoundError: No module named 'broken'"),
    ],
)
def test_package_that_fails_to_load_is_one_warning(
    source: str | None, problem: str, site: Site, new_user: CommandLine
) -> None:
    whole = new_user.run("--help").out
    site.install("broken", source and f"from cerebrum_cli.cli import Command\n{source}\n")
    warning = f"note: the commands of broken are left out: {problem}\n      update or uninstall it\n"
    done = new_user.run("--help")
    assert (done.code, done.out, done.err) == (0, whole, warning)
    assert new_user.run("hello", "--help").err == warning
    assert completions(new_user, "cerebrum he") == ["hello"]
    for words in (("ask", "--help"), ("list", "-q"), ("merge", "--help")):
        assert new_user.run(*words).err == "", words
    unknown = new_user.run("nothere")
    assert unknown.err.startswith(warning)
    assert_error(unknown, 2, "no such command 'nothere'")


@pytest.mark.parametrize("file", ["METADATA", "entry_points.txt"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.write_bytes(b"\xff[cerebrum.commands]\nx")])
def test_damaged_package_harms_no_other(
    file: str, make: Callable[[Path], object], site: Site, new_user: CommandLine
) -> None:
    whole = new_user.run("--help").out
    site.register("damaged", {})
    path = site.folder / "damaged-1.0.dist-info" / file
    path.unlink()
    make(path)
    done = new_user.run("--help")
    assert (done.code, done.out, done.err) == (0, whole, "")


@pytest.mark.parametrize("name", ["ask", "merge", "hello"])
def test_command_with_a_taken_name_is_one_warning(name: str, site: Site, new_user: CommandLine) -> None:
    whole = new_user.run("--help").out
    module = f"twin_of_{name}"
    site.install(module, MODULE.format((name, module, "nothing", "Another one")))
    done = new_user.run("--help")
    assert (done.code, done.out) == (0, whole)
    expected = f"note: {module}: there is another command {name}\n      rename the command, or uninstall the package\n"
    assert done.err == expected


@pytest.mark.slow
def test_commands_in_the_current_directory_are_none(
    tmp_path: Path, new_user: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Site(tmp_path, monkeypatch).install("here", MODULE.format(("here", "here", "main", "Greet")))
    command = [sys.executable, "-m", "cerebrum_cli", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=new_user.environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "here" not in listed(done.stdout)


def test_command_whose_module_is_broken_is_an_error(site: Site, new_user: CommandLine) -> None:
    site.install("lazy", MODULE.format(("slow", "lazy_command", "slow", "Fail late")))
    (site.folder / "lazy_command.py").write_text("raise RuntimeError('too late')")
    done = new_user.run("--help")
    assert (done.code, done.err) == (0, "") and "slow" in listed(done.out)
    assert_error(new_user.run("slow"), 1, "the command slow cannot be used: RuntimeError: too late", "uninstall")
    assert completions(new_user, "cerebrum s") == ["show", "search", "sessions", "slow"]
