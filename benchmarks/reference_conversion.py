"""Convert checkpoints with llama.cpp's own converter, without their vocabularies.

Usage: python benchmarks/reference_conversion.py SOURCE OUTTYPE FOLDER OUT [FOLDER OUT...]

Runs in an environment with torch and transformers, without this project. SOURCE is the source of llama.cpp, OUTTYPE is
F32, F16 or BF16. The checkpoint in each FOLDER is written to the OUT after it.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


def main(source: str, outtype: str, *paths: str) -> None:
    """Convert each folder."""
    sys.path[:0] = [source, f"{source}/gguf-py"]
    package: Any = import_module("conversion")
    gguf: Any = import_module("gguf")
    logging.disable(logging.WARNING)
    for folder, out in zip(paths[::2], paths[1::2], strict=True):
        [architecture] = json.loads(Path(folder, "config.json").read_text())["architectures"]
        model_class = package.get_model_class(architecture)
        model_class.set_vocab = set_no_vocabulary
        model_class(Path(folder), gguf.LlamaFileType[FILE_TYPES[outtype]], Path(out)).write()


def set_no_vocabulary(model: Any) -> None:
    """Mark the file as one without a vocabulary."""
    model.gguf_writer.add_tokenizer_model("no_vocab")


if __name__ == "__main__":
    main(*sys.argv[1:])
