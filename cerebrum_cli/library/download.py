"""Download files from the Hub into the Hugging Face cache: downloads are atomic, verified, parallel and resumable.

huggingface_hub 2.4 and hf_xet 1.8 cannot resume a download in a new process: the first deletes its partial file, the
second truncates it, and by default caches no chunks. Here, partial files are named after the digest in the Hub's
listing, and a file is moved into place if it has that digest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import exists, lock_file, require_space, translate_os_errors
from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.connections import Connections, git_hash, is_git_hash
from cerebrum_cli.library.hub import HubFile, Listing
from cerebrum_cli.library.partial_file import bytes_present
from cerebrum_cli.library.registry import RegistryEntry, hash_file

ELSEWHERE = "set HF_HUB_CACHE to a directory on another disk"  # hint for a full disk, or one without locks


@dataclass(slots=True)
class Download:
    listing: Listing
    cache: Cache
    progress: Progress
    digest_of: Callable[[Path], RegistryEntry] = hash_file

    def require_space(self, files: tuple[HubFile, ...]) -> None:
        if missing := self.missing_bytes(files):
            require_space(self.cache.directory, missing, PullError, ELSEWHERE)

    def missing_bytes(self, files: tuple[HubFile, ...]) -> int:
        return sum(file.size - self._bytes_present(file) for file in files)

    def _bytes_present(self, file: HubFile) -> int:
        return bytes_present(self.listing.place(self.cache, file), file.size)

    def fetch(self, files: tuple[HubFile, ...]) -> None:
        self.require_space(files)
        total = sum(file.size for file in files)
        with (
            translate_os_errors(PullError, Path(files[0].name), ", then try again to resume", ELSEWHERE),
            Connections(self.listing, self.progress, total) as connections,
        ):
            for file in files:
                self._begin(file, connections)
                while not connections.is_idle:
                    connections.advance()
            while connections.running:
                connections.advance()
            self.cache.write_ref(self.listing.repo_id, self.listing.revision, self.listing.commit)

    def _begin(self, file: HubFile, connections: Connections) -> None:
        """Begin to download a file unless the cache has it; wait while another process downloads it."""
        place = self.listing.place(self.cache, file)
        blob = place.stored
        has_partial = any(exists(path) for path in place.partial_files)
        is_linked = exists(place.pointer) and place.pointer.samefile(blob)
        if is_linked and not has_partial and self._is_valid(blob, file):
            connections.completed += file.size
            return
        place.make_directories()
        lock = lock_file(place.lock, lambda: connections.advance(self._bytes_present(file)))
        connections.locks.enter_context(lock)
        if exists(blob) and not self._is_valid(blob, file):
            self.progress.notice(NoticeEvent(f"{file.name} in the cache is damaged", "downloading it again"))
            blob.unlink()
        if not exists(blob):
            connections.begin(file, place, lock)
            return
        with lock:
            place.discard_partial()
            place.link()
            connections.completed += file.size

    def _is_valid(self, blob: Path, file: HubFile) -> bool:
        if blob.stat().st_size != file.size:
            return False
        if is_git_hash(file.digest):
            return git_hash(file.size, blob.read_bytes()).hexdigest() == file.digest
        return self.digest_of(blob).sha256 == file.digest
