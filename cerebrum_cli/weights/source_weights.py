"""The safetensors of a model, in a folder or a repository, and the refusal of those that cannot be converted."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError, ModelNotFound, PullError
from cerebrum_cli.core.files import translate_os_errors, work_directory
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import name_from_stem
from cerebrum_cli.library.pull import Puller, RemoteFiles
from cerebrum_cli.weights.checkpoints.checkpoint import CONFIG, read_checkpoint, read_configuration
from cerebrum_cli.weights.checkpoints.safetensors import file_names, is_shard, shards_among
from cerebrum_cli.weights.table import Table

# Names of the files of a checkpoint besides its shards.
SMALL_FILES = re.compile(
    r"(?:generation_)?config\.json|(?:tokenizer|chat_template)[^/]*|model\.safetensors\.index\.json"
    r"|(?:special_tokens_map|added_tokens|vocab)\.json|merges\.txt"
)
_IN_CACHE = re.compile(r"/models--[^/]+?--(?P<name>[^/]+)/snapshots/[^/]+$")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


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
    names = file_names(folder)
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
            require_weights(Path(repo_id), names)
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


def require_weights(path: Path, names: Collection[str]) -> None:
    """Raise ModelFileError or ModelNotFound unless files of these names include weights to convert."""
    if CONFIG in names and any(map(is_shard, names)):
        return
    if "adapter_config.json" in names:
        hint = "convert it with llama.cpp's convert_lora_to_gguf.py for --lora, or merge it into its model with PEFT"
        raise ModelFileError(path, "a LoRA adapter, not a model", hint)
    for name in names:
        if name.endswith(_PICKLES):
            hint = "save it as safetensors with transformers' save_pretrained"
            raise ModelFileError(path, f"has weights only in {name}, a format that can run programs", hint)
    hint = "name a repository or folder with a language model, or one of its .gguf files"
    raise ModelNotFound(f"{path} has no config.json with safetensors to convert", hint)
