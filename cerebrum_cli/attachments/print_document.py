"""A program that prints the text of a document: `print_document.py PATH MEMORY OUTPUT`; the last two limit bytes."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path


def main(path: Path, memory: int, output: int) -> None:
    for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, output)):
        with suppress(ValueError, OSError):  # macOS may not limit memory
            resource.setrlimit(kind, (limit, limit))
    if path.suffix.lower() == ".xlsx":
        import pandas

        pandas.set_option("display.float_format", "{:.15g}".format)  # the digits that Excel has
    else:
        sys.modules["pandas"] = None  # type: ignore[assignment]  # a third of markitdown's start
    from markitdown import MarkItDown, StreamInfo

    is_html = path.suffix.lower() in (".html", ".htm")
    document = MarkItDown().convert(
        path,
        stream_info=StreamInfo(charset="utf-8" if is_html else None),
        escape_asterisks=False,
        escape_underscores=False,
    )
    sys.stdout.buffer.write(f"{document.markdown}\n".encode(errors="replace"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
