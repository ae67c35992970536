"""States of preempted sequences, in files of a temporary directory: a sequence resumes without evaluating anything again.

Files and not memory, because sequences are preempted to make room for longer ones.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.files import remove, work_directory
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.scheduler import Admission, Scheduler
from cerebrum_cli.engine.sequence import Sequence


class SwapSpace:
    """Files of one engine, in a directory of its own in `parent`, or else in the system's, created when needed."""

    def __init__(self, backend: Backend, scheduler: Scheduler, parent: Path | None) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._parent = parent
        self._directory: Path | None = None
        self._names = count()
        self._resources = ExitStack()

    def save(self, sequence: Sequence) -> None:
        """Save the slot of a sequence that is about to be preempted; if that fails, it is evaluated again."""
        backend, slot = self._backend, sequence.slot
        if slot is None or sequence.is_prefilling or not backend.carries_states or backend.has_pending_copy(slot):
            return
        try:
            if self._directory is None:
                folder = work_directory(self._parent or Path(tempfile.gettempdir()), "cerebrum-swap")
                self._directory = self._resources.enter_context(folder)
            path = self._directory / f"{next(self._names)}.state"
            sequence.swapped = path
            backend.save_state(slot, path)
        except (OSError, EngineError):
            self.discard(sequence)

    def load(self, sequence: Sequence) -> bool:
        """Admit a sequence to a free slot with its saved state; False if it has to be evaluated again."""
        if sequence.swapped is None:
            return False
        free = (slot for slot in self._scheduler.slots_to_overwrite if not self._backend.has_pending_copy(slot.index))
        slot, length = next(free, None), sequence.length - 1
        if slot is None:
            return False
        slot.clear()
        is_loaded = self._backend.load_state(slot.index, sequence.swapped)
        self.discard(sequence)
        if not is_loaded or self._backend.length(slot.index) != length:
            self._backend.clear(slot.index)
            return False
        slot.extend(sequence.tokens[:length])
        self._scheduler.admit(Admission(sequence, slot, slot, length), length)
        return True

    def discard(self, sequence: Sequence) -> None:
        if sequence.swapped:
            remove(sequence.swapped)
            sequence.swapped = None

    def close(self) -> None:
        self._resources.close()
