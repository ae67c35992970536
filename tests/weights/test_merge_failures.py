"""Merges that fail or are interrupted at any moment: no partial files remain, and existing files are unchanged."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import full_disk
from merges import plan_merge, read_tensors, stack, write_merge

from cerebrum_cli.core.errors import Interrupted, MergeError, ModelFileError
from cerebrum_cli.core.files import write_all
from cerebrum_cli.terminal.progress import interruptible
from cerebrum_cli.weights import execute
from cerebrum_cli.weights.execute import Cancelled, MergeWriter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

EXISTING = b"an existing file"
WHOLE = stack(("a", 0, 6))


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Output path of a merge, an existing file; checks afterwards that its directory is unchanged."""
    path = tmp_path / "out.gguf"
    path.write_bytes(EXISTING)
    yield path
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {path.name: EXISTING}


AtSize = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def at_size(monkeypatch: pytest.MonkeyPatch) -> AtSize:
    """Run an action once, as soon as more than a number of bytes have been written."""

    def set_up(size: int, act: Callable[[], object]) -> None:
        actions, written = [act], [0]

        def write_and_act(descriptor: int, data: bytes) -> None:
            write_all(descriptor, data)
            written[0] += len(data)
            if actions and written[0] > size:
                actions.pop()()

        monkeypatch.setattr(execute, "write_all", write_and_act)

    return set_up


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_merge_reports_a_source_truncated_meanwhile(
    six_layers: Path, out: Path, at_size: AtSize, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = Path(shutil.copy(six_layers, tmp_path_factory.mktemp("source")))
    at_size(120_000, lambda: os.truncate(source, 100_000))
    with pytest.raises(ModelFileError, match="the file was truncated while being read"):
        write_merge(WHOLE, {"a": [source]}, out)


@pytest.mark.parametrize("error", [ZeroDivisionError, MergeError, OSError])
def test_merge_raises_an_error_of_its_writing_thread(
    six_layers: Path, out: Path, at_size: AtSize, error: type[BaseException]
) -> None:
    raised = error(5, "Input/output error")

    def fail() -> None:
        raise raised

    at_size(120_000, fail)
    with pytest.raises(MergeError if error is OSError else error) as caught:
        write_merge(WHOLE, {"a": [six_layers]}, out)
    assert raised in (caught.value, caught.value.__cause__)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_merge_on_a_full_disk_is_an_error(six_layers: Path, out: Path, share: float) -> None:
    size = plan_merge(WHOLE, {"a": [six_layers]}).size
    with full_disk(int(size * share)), pytest.raises(MergeError) as caught:
        write_merge(WHOLE, {"a": [six_layers]}, out)
    assert caught.value.message == f"{out}: File too large"
    assert caught.value.hint == "free some disk space, or write elsewhere"


def test_merge_second_interrupt_does_not_stop_the_cleanup(
    six_layers: Path, out: Path, at_size: AtSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, remaining = Path.unlink, [press_ctrl_c]
    names: set[str] = set()
    handled = threading.Event()

    def unlink_and_press(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        if remaining:
            remaining.pop()()

    def handle(*received: Any) -> None:
        handled.set()
        handler(*received)

    def list_and_press() -> None:
        names.update(path.name for path in out.parent.iterdir())
        press_ctrl_c()
        handled.wait()  # by the main thread, while the rest of the file is not written yet

    monkeypatch.setattr(Path, "unlink", unlink_and_press)
    at_size(120_000, list_and_press)
    with pytest.raises(Interrupted) as caught, interruptible("nothing was written"):
        handler: Any = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, handle)
        write_merge(WHOLE, {"a": [six_layers]}, out)
    assert (caught.value.exit_code, caught.value.hint) == (130, "nothing was written")
    assert (remaining, len(names)) == ([], 2)


def test_merge_into_the_file_of_a_running_merge_is_complete(six_layers: Path, tmp_path: Path, at_size: AtSize) -> None:
    out = tmp_path / "out.gguf"
    at_size(120_000, lambda: write_merge(stack(("a", 0, 1)), {"a": [six_layers]}, out))
    write_merge(WHOLE, {"a": [six_layers]}, out)
    assert (read_tensors([out]), list(tmp_path.iterdir())) == (read_tensors([six_layers]), [out])


def test_merge_cancelled_before_it_starts_opens_no_file(six_layers: Path, out: Path) -> None:
    writer = MergeWriter(plan_merge(WHOLE, {"a": [six_layers]}), out, 2, is_cancelled=True)
    writer.run()
    assert isinstance(writer.result, Cancelled)
    assert writer.done == 0
