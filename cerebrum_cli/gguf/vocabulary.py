"""Digest of a model's vocabulary, to recognize whether token ids have the same meaning in another file."""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.gguf.header import Header
from cerebrum_cli.gguf.header_tables import VOCABULARY_KEYS

DIGEST_BYTES = 16


def vocabulary_digest(path: Path, header: Header) -> str | None:
    """Digest in hexadecimal of the vocabulary in a file with this header; None if the file cannot be read.

    It covers the bytes as they are in the file, a few megabytes: about a millisecond for 49,000 tokens.
    """
    import hashlib

    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            for key in VOCABULARY_KEYS:
                start, end = header.vocabulary.get(key, (0, 0))
                file.seek(start)
                digest.update(f"{key} {end - start}\n".encode())
                digest.update(file.read(end - start))
    except OSError:
        return None
    return digest.hexdigest()[: 2 * DIGEST_BYTES]
