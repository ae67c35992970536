"""A program that prints the text of a document. It is run in a process of its own, with limits.

markitdown writes for readers of Markdown: it adds a backslash to each `_` and `*` unless it is told not to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import is_zipfile


def main(path: Path) -> None:
    text = workbook_text(path) if path.suffix.lower() == ".xlsx" and is_zipfile(path) else markdown(path)
    sys.stdout.buffer.write(f"{text}\n".encode(errors="replace"))


def markdown(path: Path) -> str:
    from markitdown import MarkItDown, StreamInfo

    charset = "utf-8" if path.suffix.lower() in (".html", ".htm") else None  # as the caller has written it
    document = MarkItDown().convert(
        path, stream_info=StreamInfo(charset=charset), escape_asterisks=False, escape_underscores=False
    )
    return str(document.markdown)


def workbook_text(path: Path) -> str:
    """The sheets of a workbook as tables. pandas, which markitdown uses for them, rounds numbers and drops "NA"."""
    from openpyxl import load_workbook

    sheets = []
    for sheet in load_workbook(path, data_only=True).worksheets:
        rows = [" | ".join(map(cell_text, row)) for row in sheet.values]
        lines = [f"| {row} |" for row in rows if row.strip(" |")]
        if lines:
            lines.insert(1, "|" + " --- |" * sheet.max_column)
        sheets.append("\n".join([f"## {sheet.title}", *lines]))
    return "\n\n".join(sheets)


def cell_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"  # the digits that Excel has
    return "" if value is None else " ".join(str(value).splitlines())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
