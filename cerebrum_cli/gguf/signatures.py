"""What a file that is no GGUF looks like, from its first bytes: a table of signatures."""

from __future__ import annotations

# A signature's place, its bytes (lower case: letters are compared without case), what the file is, what to do.
_SIGNATURES = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the model itself", "fetch the file with: git lfs pull"),
    (0, b"<!doctype html", "an HTML page, not a model", "the address led to a web page: download the file itself"),
    (0, b"<html", "an HTML page, not a model", "the address led to a web page: download the file itself"),
    (0, b"<?xml", "an XML answer of a server, not a model", "download the file again"),
    (8, b'{"', "a safetensors file", "llama.cpp reads GGUF: convert it, or pull a GGUF of this model"),
    (0, b"pk\x03\x04", "a zip archive or PyTorch checkpoint", "unpack it, or pull a GGUF of this model"),
    (0, b"\x80\x02", "a PyTorch checkpoint", "llama.cpp reads GGUF: convert it, or pull a GGUF of this model"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"lmgg", "a GGML file of before August 2023", "llama.cpp no longer reads GGML: pull a GGUF of this model"),
    (0, b"fmgg", "a GGML file of before August 2023", "llama.cpp no longer reads GGML: pull a GGUF of this model"),
    (0, b"tjgg", "a GGML file of before August 2023", "llama.cpp no longer reads GGML: pull a GGUF of this model"),
    (0, b"algg", "a GGML adapter of before August 2023", "llama.cpp no longer reads GGML: pull a GGUF of this model"),
    (0, bytes(16), "nothing but zeros where the header belongs", "the download never finished: pull it again"),
)
SIGNATURE_BYTES = 256


def identify(first: bytes) -> tuple[str, str]:
    """Return what a file with these first bytes seems to be, and what to do about it ("" for the usual advice)."""
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for offset, magic, kind, hint in _SIGNATURES:
        if first[offset:].lower().startswith(magic) or (offset == 0 and start.startswith(magic)):
            return f"not a GGUF file: it looks like {kind}", hint
    if first.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in first):
        text = " ".join(first.decode("ascii").split())[:40]
        return f'not a GGUF file: it is a text that begins "{text}"', ""
    return f"not a GGUF file: it begins with the bytes {first[:4].hex(' ')}", ""
