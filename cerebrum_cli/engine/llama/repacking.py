"""Repacked weights for the rest of a reply whose prompt is evaluated with the weights of the file.

llama.cpp repacks weights on one thread, for longer than all else in the load, so a reply would begin later.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

from cerebrum_cli.engine.llama.bindings import llama, suppress_log
from cerebrum_cli.engine.step import StopFlag

POLL_S = 0.01


class Repacking:
    """Loads a model again, with repacked weights, on a thread of its own; llama.cpp's log is discarded meanwhile."""

    def __init__(self, path: Path, params: Any) -> None:
        self._stop = StopFlag()
        self._model: Any = None
        self._log = ExitStack()
        self._log.enter_context(suppress_log())
        self._thread = Thread(target=self._load, args=(os.fsencode(path), params), daemon=True)
        self._thread.start()

    def _load(self, path: bytes, params: Any) -> None:
        params.use_extra_bufts = True
        params.progress_callback = llama.llama_progress_callback(lambda *_: not self._stop)
        self._model = llama.llama_model_load_from_file(path, params)

    def wait(self, stop: StopFlag) -> bool:
        """Wait for the model; False if the flag was set before."""
        while self._thread.is_alive():
            if stop:
                return False
            self._thread.join(POLL_S)
        return True

    def take(self) -> Any:
        """The loaded model, which the caller has to free; None if that failed, or was stopped."""
        self._thread.join()
        self._log.close()
        model, self._model = self._model, None
        return model

    def close(self) -> None:
        """Stop loading, and free the model unless it was taken."""
        self._stop.set()
        if model := self.take():
            llama.llama_model_free(model)
