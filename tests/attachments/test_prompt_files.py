"""Files of a prompt: named ones, and those that directories and patterns lead to."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from cases import rows

from cerebrum_cli.attachments.prompt_sources import read_files
from cerebrum_cli.core.conversation import Picture
from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.events import NoticeEvent

TREE = {
    "README.md": "# Title\n",
    "src/b.py": "b",
    "src/a.py": "a",
    "src/sub/c.py": "c",
    "src/sub/deep/d.txt": "d",
    "src/.hidden.py": "hidden",
    ".config/e.py": "e",
    ".git/config": "git",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_tree(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def names(*paths: str) -> list[str]:
    """Names of the files read; there may be no notice."""
    files, notices = read(*paths)
    assert notices == []
    return [name for name, _ in files]


def read(*paths: str) -> tuple[list[tuple[str, str | Picture]], list[NoticeEvent]]:
    notices: list[NoticeEvent] = []
    return read_files([Path(path) for path in paths], notices.append), notices


def test_prompt_files_of_a_directory_are_sorted_and_not_hidden(folder: Path) -> None:
    write_tree(folder, TREE)
    assert read("src") == (
        [("src/a.py", "a"), ("src/b.py", "b"), ("src/sub/c.py", "c"), ("src/sub/deep/d.txt", "d")],
        [],
    )
    assert names(".") == ["README.md", *names("src")]
    assert names(str(folder / "src")) == names("src")
    assert names("src/sub/..", "src/../src/sub") == [
        "src/sub/../a.py",
        "src/sub/../b.py",
        "src/sub/../sub/c.py",
        "src/sub/../sub/deep/d.txt",
    ]


@pytest.mark.parametrize(("pattern", "found"), rows("file_patterns"))
def test_prompt_files_of_a_pattern(folder: Path, pattern: str, found: list[str]) -> None:
    write_tree(folder, TREE)
    assert names(pattern) == found
    assert names(str(folder / pattern)) == found


def test_prompt_files_are_read_once_and_named_ones_last(folder: Path) -> None:
    write_tree(folder, {**TREE, "a[1].txt": "1", "a1.txt": "2"})
    assert names("src", "src/sub/*", "src/a.py") == ["src/b.py", "src/sub/c.py", "src/sub/deep/d.txt", "src/a.py"]
    assert read("a[1].txt") == ([("a[1].txt", "1")], [])  # a name that exists is no pattern


def test_prompt_files_do_not_follow_links(folder: Path) -> None:
    write_tree(folder, {"in/a": "a", "out/secret": "x"})
    (folder / "in/loop").symlink_to(folder / "in")
    (folder / "in/file").symlink_to(folder / "out/secret")
    (folder / "in/broken").symlink_to(folder / "nowhere")
    (folder / "named").symlink_to(folder / "in")
    os.mkfifo(folder / "in/pipe")
    assert names("in/**") == ["in/a"]
    assert read("named") == ([("named/a", "a")], [])
    assert read("in/file") == ([("in/file", "x")], [])


def test_prompt_files_in_a_very_deep_directory(folder: Path) -> None:
    path = folder
    for _ in range(400):
        path /= "d" * 5
    path.mkdir(parents=True)
    (path / "a").write_text("deep")
    assert [text for _, text in read("ddddd")[0]] == ["deep"]
    assert [text for _, text in read("**/ddddd/**/a")[0]] == ["deep"]


# Pictures.

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def test_picture_is_known_by_its_ending_and_has_at_most_20_mb(folder: Path) -> None:
    write_tree(folder, {"in/a.PNG": PNG, "in/b.txt": PNG, "in/c.txt": "c", "large.jpg": bytes(20_000_001)})
    picture = Picture("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==")
    assert read("in/a.PNG", "in/*.PNG") == ([("in/a.PNG", picture)], [])
    assert read("in")[0] == [("in/c.txt", "c")]
    with pytest.raises(UsageError, match=r"^in/b.txt is not UTF-8 text \(byte 0\)$"):
        read("in/b.txt")
    with pytest.raises(UsageError, match=r"^large.jpg is larger than 20 MB$"):
        read("large.jpg")


# What is ignored.


@pytest.mark.parametrize("tree", rows("ignored_files"))
def test_prompt_files_are_those_that_git_does_not_ignore(folder: Path, tree: Mapping[str, str]) -> None:
    write_tree(folder, {**tree, "end": ""})
    outside = names(".")
    git("init", "-q")
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    assert outside == names(".") == names("**") == sorted(name for name in listed if name and "gitignore" not in name)


def git(*arguments: str) -> str:
    options = ("-c", "core.excludesFile=/dev/null")
    return subprocess.run(["git", *options, *arguments], check=True, capture_output=True, text=True).stdout


def test_prompt_files_follow_the_rules_above_their_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(
        folder, {".gitignore": "a\n", "p/.git/HEAD": "", "p/.gitignore": "*.log\n/s/b\n", "p/s/a": "", "p/s/b": ""}
    )
    write_tree(folder, {"p/s/c.log": "", "q/.gitignore": "b\n", "q/s/a": "", "q/s/b": ""})
    assert names("p/s") == ["p/s/a"]  # up to the repository
    with pytest.raises(UsageError):
        names("q/s/*")  # up to the working directory
    monkeypatch.chdir(folder / "q")
    assert names("s") == ["s/a"]
    monkeypatch.chdir(folder / "q/s")
    assert names("..") == ["../s/a"]


def test_prompt_files_of_an_ignored_directory_are_read_if_it_is_named(folder: Path) -> None:
    write_tree(folder, {".gitignore": "build\n", "build/a": "", "build/.gitignore": "b\n", "build/b": "b", "c": ""})
    assert (names("."), names("build"), names("build/*")) == (["c"], ["build/a"], ["build/a"])
    assert names("build/b") == ["build/b"]


def test_prompt_files_skip_what_is_not_text_with_one_notice(folder: Path) -> None:
    write_tree(folder, {"in/a.txt": "\ufeffa", "in/b.bin": b"a\0b", "in/c.png": b"\x89PNG", "in/d.txt": b"caf\xe9"})
    write_tree(folder, {"in/e.txt": "e" * 1_000_000, "in/f.txt": "f" * 1_000_001, "in/g": bytes(1_000_001)})
    files, notices = read("in", "in/*.txt")
    assert [name for name, _ in files] == ["in/a.txt", "in/e.txt"]
    assert files[0][1] == "a"
    assert notices == [
        NoticeEvent("5 files skipped: in/b.bin (binary), in/c.png (binary), in/d.txt (binary), and 2 more")
    ]
    [skipped] = read("in/[abg]*")[1]
    assert skipped.message == "2 files skipped: in/b.bin (binary), in/g (over 1 MB: name it to include it)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_prompt_files_skip_what_cannot_be_read(folder: Path) -> None:
    write_tree(folder, {"in/a": "a", "in/b": "b", "in/c/d": "d"})
    (folder / "in/b").chmod(0)
    (folder / "in/c").chmod(0)
    try:
        assert read("in")[1][0].message == "2 files skipped: in/c (Permission denied), in/b (Permission denied)"
        with pytest.raises(UsageError, match="in/c: Permission denied"):
            read("in/c")
    finally:
        (folder / "in/c").chmod(0o700)


def test_prompt_files_have_a_limit_in_total(folder: Path) -> None:
    write_tree(folder, {f"in/{number:02}": b"a" * 1_000_000 for number in range(65)})
    with pytest.raises(PromptTooLong, match="the files in in exceed 64 MB in total"):
        read("in")


def test_prompt_file_names_are_well_formed(folder: Path) -> None:
    (folder / "in").mkdir()
    Path(os.fsdecode(b"in/caf\xe9")).write_text("a")
    assert names("in") == ["in/caf\ufffd"]
    assert names(os.fsdecode(b"in/caf\xe9")) == ["in/caf\ufffd"]


def test_prompt_files_that_are_empty_are_noticed(folder: Path) -> None:
    write_tree(folder, {"a.txt": " \n", "b.txt": "b"})
    assert read("a.txt", "b.txt") == ([("a.txt", " \n"), ("b.txt", "b")], [NoticeEvent("a.txt is empty")])
