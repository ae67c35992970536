"""Where installed models come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.library.registry import RegistryEntry

if TYPE_CHECKING:
    from cerebrum_cli.library.cache import CachedModel


@frozen
class LocalFile:
    """A file that only its path refers to."""


@frozen
class Bundled:
    """Part of this program."""


@frozen
class Served:
    """Known by name only: a server has it, and the bundled model's vocabulary stands in for its own."""


@frozen
class Folder:
    """A folder with safetensors, which can be merged."""


@frozen
class Registered:
    """A registered file, which may be one in the Hugging Face cache."""

    entry: RegistryEntry
    cached: CachedModel | None = None


@frozen
class Pulled:
    """Files in the Hugging Face cache.

    If `is_shadowed`, another model has the same short name, which refers to that one.
    """

    cached: CachedModel
    is_shadowed: bool = False


Origin = LocalFile | Bundled | Served | Folder | Registered | Pulled
LOCAL_FILE = LocalFile()
