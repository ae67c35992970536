"""Vocabulary files: headers of model files on the Hub, stored as sparse files of full size.

llama.cpp reads a vocabulary from such a file, since it checks that the tensors lie within the file and does not read
them. The files are in a cache of their own, in the layout of the Hugging Face cache: the name of a blob is the SHA-256
that the Hub lists for the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.files import atomic_write, fsync_directory, is_disk_full
from cerebrum_cli.core.text import format_size
from cerebrum_cli.models.cache import Cache
from cerebrum_cli.models.hub import HubFile, Listing


def store(cache: Cache, listing: Listing, files: Iterable[HubFile], read_header: Callable[[HubFile], bytes]) -> None:
    """Store the headers of a listing's files that are not stored yet. Raises PullError."""
    repo_id, commit = listing.repo_id, listing.commit
    for file in files:
        has_header = cache.contains(repo_id, commit, file.name, file.digest)
        header = b"" if has_header else read_header(file)
        try:
            cache.make_directories(repo_id, commit, file.name, file.digest)
            if not has_header:
                atomic_write(cache.blob(repo_id, file.digest), header, file.size)
            pointer = cache.link(repo_id, commit, file.name, file.digest)
            for directory in (cache.blob(repo_id, file.digest).parent, pointer.parent):
                fsync_directory(directory)
            cache.write_ref(repo_id, listing.revision, commit)
        except OSError as error:
            raise PullError(f"{cache.directory}: {error.strerror or error}", _hint(error, file.size)) from error


def _hint(error: OSError, size: int) -> str:
    if is_disk_full(error):
        return f"free some disk space; without support for sparse files, {format_size(size)} is needed"
    return "make it writable, then try again"
