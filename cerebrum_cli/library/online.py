"""What commands ask the Hub besides pulling models: searches, newer uploads of installed models, and datasets."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache

from cerebrum_cli.core.environment import is_hub_offline
from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, PullError
from cerebrum_cli.core.events import NoticeEvent, Progress
from cerebrum_cli.core.files import translate_os_errors
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.library.cache import Cache, CachedFile, cache_directory
from cerebrum_cli.library.download import Download, digest_like
from cerebrum_cli.library.hub import FoundRepository, Listing, find_repositories, list_repository
from cerebrum_cli.library.hub_requests import (
    HubError,
    RetryPolicy,
    check_reachable as check_reachable,
    token_location as token_location,
)
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library

MAX_FOUND = 10  # repositories of a search
MAX_OTHERS = 3  # GGUF repositories of a model


def search(text: str, progress: Progress, offline: bool) -> tuple[FoundRepository, ...]:
    """Search the Hub for GGUF repositories. Raises PullError."""
    if offline or is_hub_offline():
        raise PullError("cannot search the Hub: the network is disabled", "omit --offline, or unset HF_HUB_OFFLINE")
    return RetryPolicy(progress).run(find_repositories, MAX_FOUND, text=well_formed(text))


def other_conversions(repo_id: str) -> str:
    """Commands that pull a GGUF of the same model; empty if none are found."""
    try:
        found = find_repositories(MAX_OTHERS, f"base_model:quantized:{repo_id}")
    except CerebrumError:
        return ""
    commands = [f"cerebrum pull {other.repo_id} ({other.downloads:,} downloads)" for other in found]
    return " or ".join(commands)


def outdated(library: Library, progress: Progress) -> Iterator[InstalledModel]:
    """Installed models with newer uploads of their revisions that are not installed. Raises HubError."""

    @cache
    def list_once(repo_id: str, revision: str) -> Listing | None:
        try:
            return list_repository(repo_id, progress, revision)
        except ModelNotFound as error:  # gone, or private
            progress.notice(NoticeEvent(error.message, "its models are skipped"))
            return None

    for model in library.models():
        if model.is_converted and "commit" in model.converted_from:
            source, commit = model.converted_from["source"], model.converted_from["commit"]
            listing = list_once(source, library.cache.revision(source, commit))
            if listing and not _has_weights_of(model, listing):
                yield model
        elif model.cached and not model.is_shadowed:
            repo_id, commit = model.cached.repo_id, model.cached.commit
            revisions = {source.repo_id: source.revision for source in model.spec.sources} if model.spec else {}
            listing = list_once(repo_id, revisions.get(repo_id) or library.cache.revision(repo_id, commit))
            if listing and not listing.is_stored(library.cache, model.cached.names):
                yield model


def _has_weights_of(model: InstalledModel, listing: Listing) -> bool:
    """Whether a repository still has the files that a model was converted from."""
    files = f"{model.converted_from['sha256']}, {model.converted_from['configuration']}"
    return {*files.split(", ")} <= {f"{file.digest} {file.name}" for file in listing.files.values()}


def fetch_dataset(
    task: str, repo_id: str, pattern: str, count: int, progress: Progress, offline: bool
) -> list[CachedFile]:
    """The files of a task's dataset, `count` of them by the pattern of their names, which are downloaded once.

    Raises PullError if they cannot be downloaded.
    """
    datasets = Cache(cache_directory(), "dataset")
    with translate_os_errors(PullError, datasets.directory):
        if files := _cached_dataset(datasets, repo_id, pattern, count):
            return files
        listing = _list_dataset(task, repo_id, progress, offline)
        names = sorted(name for name in listing.files if fnmatchcase(name, pattern))
        if len(names) != count:
            found = f"{len(names)} files" if names else "no file"
            hint = "evaluate a JSON Lines file instead, or update cerebrum"
            raise PullError(f"the dataset {repo_id} has {found} {pattern}", hint)
        Download(listing, datasets, progress).fetch(tuple(map(listing.file, names)))
        return _cached_dataset(datasets, repo_id, pattern, count)


def _cached_dataset(datasets: Cache, repo_id: str, pattern: str, count: int) -> list[CachedFile]:
    """The files of a dataset in the cache; none if one is missing or damaged."""
    files = datasets.find_files(repo_id, pattern, count)
    is_damaged = any(file.digest and digest_like(file.digest, file.path) != file.digest for file in files)
    return [] if is_damaged else files


def _list_dataset(task: str, repo_id: str, progress: Progress, offline: bool) -> Listing:
    reason = "cerebrum is offline"
    if not (offline or is_hub_offline()):
        try:
            return list_repository(repo_id, progress, kind="dataset")
        except HubError as error:
            reason = error.message
    hint = f"run the command once online, or download it: hf download {repo_id} --repo-type dataset"
    raise PullError(f"the dataset {repo_id} of {task} is not downloaded, or damaged: {reason}", hint)
