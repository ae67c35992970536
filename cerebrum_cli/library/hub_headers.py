"""Headers of model files on the Hub: their bytes up to the weights, which are not downloaded."""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.gguf.contents import HeaderTruncated
from cerebrum_cli.gguf.header import parse_tables
from cerebrum_cli.library.hub import HubFile, Listing, open_file
from cerebrum_cli.library.hub_requests import RetryPolicy

FIRST_BYTES, MAX_BYTES = 1 << 20, 1 << 26  # of a header: vocabularies take up to 20 MB


def header_bytes(listing: Listing, file: HubFile, progress: Progress) -> bytes:
    """Bytes of a file on the Hub up to its weights, if it has any. Raises ModelFileError, HubError."""
    return RetryPolicy(progress).run(_read_header, listing, file)


def _read_header(listing: Listing, file: HubFile) -> bytes:
    """Read the first bytes of the file, and more while the header does not end within these."""
    data = b""
    end = FIRST_BYTES
    while True:
        with open_file(listing, file.name, len(data), min(end, file.size)) as response:
            data = b"" if response.is_whole else data
            while len(data) < end and (chunk := next(response.chunks, b"")):  # without ranges, all of it is sent
                data += chunk
        try:
            return data[: _header_length(Path(listing.repo_id, file.name), data, file.size)]
        except HeaderTruncated:
            if len(data) >= file.size or end >= MAX_BYTES:
                raise
        end *= 4


def _header_length(path: Path, data: bytes, size: int) -> int:
    """Bytes up to the weights of a file that begins with `data`. Raises HeaderTruncated if these are too few."""
    if path.suffix.lower() == ".gguf":
        return parse_tables(path, data, size).length
    end = size
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
    if end > len(data):
        raise HeaderTruncated(path, f"its header is too large: {end:,} bytes", "use another model")
    return end
