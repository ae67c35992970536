"""Identify files that are not GGUF by their first bytes."""

from __future__ import annotations

# Offset, bytes (lower case: the comparison ignores case), type of file, hint.
_SIGNATURES = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the model itself", "fetch the file with: git lfs pull"),
    (0, b"<!doctype html", "an HTML page, not a model", "the URL leads to a web page: download the file itself"),
    (0, b"<html", "an HTML page, not a model", "the URL leads to a web page: download the file itself"),
    (0, b"<?xml", "an XML response of a server, not a model", "download the file again"),
    (8, b'{"', "a safetensors file", "llama.cpp reads GGUF: convert it, or pull a GGUF of this model"),
    (0, b"pk\x03\x04", "a zip archive or PyTorch checkpoint", "unpack it, or pull a GGUF of this model"),
    (0, b"\x80\x02", "a PyTorch checkpoint", "llama.cpp reads GGUF: convert it, or pull a GGUF of this model"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"lmgg", "a GGML file from before August 2023", "llama.cpp no longer reads GGML: pull a GGUF of this model"),
    (0, b"fmgg", "a GGML file from before August 2023", "llama.cpp no longer reads GGML: pull a GGUF of this model"),
    (0, b"tjgg", "a GGML file from before August 2023", "llama.cpp no longer reads GGML: pull a GGUF of this model"),
    (0, b"algg", "a GGML adapter from before August 2023", "llama.cpp no longer reads GGML: pull a GGUF of this model"),
    (0, bytes(16), "an incomplete download (zeros in place of a header)", "pull it again"),
)
SIGNATURE_BYTES = 256


def identify(first: bytes) -> tuple[str, str]:
    """What a file with these first bytes seems to be, and a hint; the hint may be empty."""
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for offset, magic, kind, hint in _SIGNATURES:
        if first[offset:].lower().startswith(magic) or (offset == 0 and start.startswith(magic)):
            return f"not a GGUF file: it looks like {kind}", hint
    if first.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in first):
        text = " ".join(first.decode("ascii").split())[:40]
        return f'not a GGUF file: a text that begins with "{text}"', ""
    return f"not a GGUF file: it begins with the bytes {first[:4].hex(' ')}", ""
