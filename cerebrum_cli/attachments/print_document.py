"""A program that prints the text of a document: `print_document.py PATH MEMORY OUTPUT`; the last two limit bytes."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

HTML_SUFFIXES = (".html", ".htm")


def main(path: Path, memory: int, output: int) -> None:
    for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, output)):
        with suppress(ValueError, OSError):  # macOS may not limit memory
            resource.setrlimit(kind, (limit, limit))
    if path.suffix.lower() == ".xlsx":
        import pandas

        pandas.set_option("display.float_format", "{:.15g}".format)  # the digits that Excel has
    else:
        sys.modules["pandas"] = None  # type: ignore[assignment]  # a third of markitdown's start
    disable_detection()
    from markitdown import MarkItDown, StreamInfo

    suffix = ".html" if is_page(path) else path.suffix
    document = MarkItDown().convert(
        path,
        stream_info=StreamInfo(extension=suffix, charset="utf-8" if suffix.lower() in HTML_SUFFIXES else None),
        escape_asterisks=False,
        escape_underscores=False,
    )
    sys.stdout.buffer.write(f"{document.markdown}\n".encode(errors="replace"))


def disable_detection() -> None:
    """Let markitdown rely on suffixes: magika, which it asks for the type, runs onnxruntime, and that has telemetry."""
    unknown = SimpleNamespace(identify_stream=lambda _: SimpleNamespace(status="unknown"))
    sys.modules["magika"] = SimpleNamespace(Magika=lambda: unknown)  # type: ignore[assignment]


def is_page(path: Path) -> bool:
    """Whether a file is HTML, whatever its name: the "PDF" of a download may be the page of an error or a login."""
    with path.open("rb") as file:
        beginning = file.read(1024)
    beginning = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return beginning.startswith(b"<") and (b"<!doctype html" in beginning or b"<html" in beginning)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
