"""The safetensors of a model, in a folder or a repository, and the refusal of those that cannot be converted."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from shlex import quote

from cerebrum_cli.core.errors import ModelFileError, ModelNotFound, PullError
from cerebrum_cli.core.files import as_reference, reading_model, translate_os_errors, work_directory
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import name_from_stem
from cerebrum_cli.library.pull import Puller, RemoteFiles
from cerebrum_cli.weights.checkpoints.checkpoint import CONFIG, read_checkpoint, read_configuration
from cerebrum_cli.weights.checkpoints.configuration import USE_GGUF
from cerebrum_cli.weights.checkpoints.safetensors import is_shard, shards_among
from cerebrum_cli.weights.table import Table

# Names of the files of a checkpoint besides its shards.
SMALL_FILES = re.compile(
    r"(?:generation_)?config\.json|(?:tokenizer|chat_template)[^/]*|model\.safetensors\.index\.json"
    r"|(?:special_tokens_map|added_tokens|vocab)\.json|merges\.txt"
)
_IN_CACHE = re.compile(r"/models--[^/]+?--(?P<name>[^/]+)/snapshots/[^/]+$")
# Models below a folder: in folders of it, or in the snapshots of a cache of the Hub.
_BELOW = [
    f"{folder}/{name}"
    for folder in ("*", "snapshots/*", "models--*/snapshots/*")
    for name in (CONFIG, "*.safetensors", "*.gguf")
]
_MOST_BELOW, _MOST_NAMED = 100, 3
_PICKLE = re.compile(r"[^/]+\.(?:bin|pt|pth|ckpt)")


@frozen
class Weights:
    """Weights that can be converted: their name, and the folder where they are, or will be.

    `shards` and `others`, such as the configuration and the tokenizer, are names of files. The `table` is that of a
    GGUF file with the weights unquantized. `digest_of` a local shard may take long. Those of a repository have its
    `remote` files.
    """

    name: str
    folder: Path
    shards: Sequence[str]
    others: Sequence[str]
    table: Table
    digest_of: Callable[[str], str]
    remote: RemoteFiles | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.others, *self.shards)

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.size for tensor in self.table.tensors.values())

    @property
    def sha256(self) -> str:
        """Digests and names of the shards."""
        return self._digests(self.shards)

    @property
    def configuration(self) -> str:
        """Digests and names of the other files: SHA-256, or the Hub's."""
        return self._digests(self.others)

    def _digests(self, names: Sequence[str]) -> str:
        return ", ".join(f"{self.digest_of(name)} {name}" for name in names)


def local_weights(puller: Puller, folder: Path) -> Weights:
    """Read the weights in a folder. Raises ModelFileError or ModelNotFound."""
    names = names_in(folder)
    require_weights(folder, names)
    whole = folder.resolve()
    in_cache = _IN_CACHE.search(whole.as_posix())
    name = name_from_stem(in_cache["name"] if in_cache else whole.name)
    table = read_checkpoint(folder, name)
    others = sorted(filter(SMALL_FILES.fullmatch, names))
    shards = shards_among(folder, names)
    return Weights(name, folder, shards, others, table, lambda file: puller.digest(whole / file).sha256)


def repository_weights(puller: Puller, remote: RemoteFiles) -> Weights:
    """The weights in a repository, of which only headers and small files are read.

    The error for those that cannot be converted names GGUF repositories of the model.
    """
    listing, repo_id = remote.listing, remote.listing.repo_id
    names = list(listing.files)
    others = list(filter(SMALL_FILES.fullmatch, names))
    directory = puller.library.registry.directory
    with translate_os_errors(PullError, directory), work_directory(directory, "weights") as folder:
        try:
            require_weights(Path(repo_id), names, is_remote=True)
            for name in others:
                remote.write_header(name, folder)
            read_configuration(folder)
            shards = shards_among(folder, names)
            for name in shards:
                remote.write_header(name, folder)
            table = read_checkpoint(folder, repo_id)
        except ModelFileError as error:
            error.message = error.message.replace(str(folder), repo_id)
            if converted := remote.other_conversions:
                error.hint += f"; others have converted it: {converted}"
            raise
    return Weights(repo_id, remote.folder, shards, others, table, lambda name: listing.file(name).digest, remote)


def require_weights(path: Path, names: Collection[str], is_remote: bool = False) -> None:
    """Raise ModelFileError or ModelNotFound unless files of these names include weights to convert.

    Names may be paths; those in subfolders only serve for hints. A repository `is_remote`, and `path` is its name.
    """
    if CONFIG in names and any(map(is_shard, names)):
        _require_tokenizer(path, names)
        return
    if "adapter_config.json" in names:
        hint = "convert it with llama.cpp's convert_lora_to_gguf.py for --lora, or merge it into its model with PEFT"
        raise ModelFileError(path, "a LoRA adapter, not a model", hint)
    if "params.json" in names and any(name.endswith(".safetensors") for name in names):
        hint = f"use the same model in Hugging Face's layout, with config.json and model.safetensors, or {USE_GGUF}"
        raise ModelFileError(path, "has weights in Mistral's own layout, with params.json", hint)
    for name in filter(_PICKLE.fullmatch, names):
        hint = "save it as safetensors with transformers' save_pretrained"
        raise ModelFileError(path, f"has weights only in {name}, a format that can run programs", hint)
    models = [name for name in sorted(names) if name.lower().endswith(".gguf") and "mmproj" not in name.lower()]
    if models:
        raise ModelNotFound(f"{path} has GGUF files, but no safetensors", _pull_one(path, models))
    inner = _folders_of_models(names)
    if inner and is_remote:
        copy = path.name
        hint = f"hf download {path} --include '{inner[0]}/*' --local-dir {copy}; cerebrum pull ./{copy}/{inner[0]}"
        raise ModelNotFound(f"{path} has its weights in a subfolder, {inner[0]}", hint)
    if inner:
        raise ModelNotFound(f"{path} has its weights in subfolders", _pull_one(path, inner))
    if not is_remote and (CONFIG in names or any(map(is_shard, names))):
        here, missing = (CONFIG, "safetensors") if CONFIG in names else ("safetensors", CONFIG)
        found = [name for name in sorted(names) if name.endswith(missing)]
        hint = f"copy {found[0]} beside it" if found else "copy all files of the model into one folder"
        raise ModelNotFound(f"{path} has {here}, but no {missing}", hint)
    hint = "name a repository or folder with a language model, or one of its .gguf files"
    raise ModelNotFound(f"{path} has neither a GGUF model nor config.json with safetensors", hint)


def _folders_of_models(names: Collection[str]) -> list[str]:
    """The folders in a folder that have a configuration and weights."""
    files: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        files.setdefault(folder, []).append(file)
    return sorted(folder for folder, inner in files.items() if folder and CONFIG in inner and any(map(is_shard, inner)))


def _require_tokenizer(path: Path, names: Collection[str]) -> None:
    if "tekken.json" in names and not {"tokenizer.json", "tokenizer.model"}.intersection(names):
        raise ModelFileError(path, "has its tokenizer only in Mistral's own layout, tekken.json", USE_GGUF)


def _pull_one(path: Path, names: Sequence[str]) -> str:
    """The commands that pull what has these names in a folder."""
    return " or ".join(f"cerebrum pull {quote(as_reference(path / name))}" for name in names[:_MOST_NAMED])


def names_in(folder: Path) -> list[str]:
    """Names of the files in a folder; without weights, also of the models below it, as in a cache of the Hub."""
    with reading_model(folder):
        names = [path.name for path in folder.iterdir() if path.is_file()]
        if CONFIG not in names or not any(map(is_shard, names)):
            found = (path for pattern in _BELOW for path in folder.glob(pattern))
            names += [path.relative_to(folder).as_posix() for path in islice(found, _MOST_BELOW)]
    return names
