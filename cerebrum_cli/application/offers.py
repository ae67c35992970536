"""What a reference can bring here: the quantisations there are, as this machine sees them. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cerebrum_cli.application.fitting import Candidate, Capacity, judged, wanted_context
from cerebrum_cli.application.library import Library
from cerebrum_cli.application.model import Model
from cerebrum_cli.catalogue.cursor import HeaderEndsEarly
from cerebrum_cli.catalogue.download import Patience, Watcher
from cerebrum_cli.catalogue.header import Header, parse_header
from cerebrum_cli.catalogue.hub import HubError, HubFile, Listing, is_offline, list_repository, opened
from cerebrum_cli.catalogue.reference import AtPath, InRepository, Named
from cerebrum_cli.catalogue.spec import ModelSpec
from cerebrum_cli.catalogue.variants import Variant, same_quantization, variants
from cerebrum_cli.ground.errors import ModelNotFound, UsageError
from cerebrum_cli.ground.text import size_text

T = TypeVar("T")

HEADER_BYTES = tuple(1 << shift for shift in (20, 22, 24, 26))  # tried in turn: vocabularies take up to 20 MB


@dataclass(frozen=True, slots=True)
class Stock:
    """Where a model can be had, and in which sizes: a listing of the Hub, or what the catalogue says without one."""

    name: str
    sizes: tuple[tuple[str, int], ...]
    kv_bytes_per_token: int
    trained_context: int | None
    spec: ModelSpec | None = None
    listing: Listing | None = None
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be had, judged by the memory of this machine at this context, and the one that is meant."""

    stock: Stock
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    context: int
    capacity: Capacity

    @property
    def reference(self) -> str:
        """What to call the one that is meant."""
        return str(Named(self.stock.name, self.chosen.quantization))

    @property
    def warning(self) -> str | None:
        """What to know before a choice that will not fit is downloaded."""
        if self.chosen.verdict != "too big":
            return None
        return (
            f"{self.reference} needs {size_text(self.chosen.needed)} of memory at a context of {self.context} tokens,"
            f" and {size_text(self.capacity.room)} can be had here"
        )

    @property
    def variant(self) -> Variant:
        """The files of the one that is meant. UsageError where several models of a repository share its name."""
        found = [each for each in self.stock.variants if each.quantization == self.chosen.quantization]
        if len(found) != 1 and self.stock.listing:
            repo_id = self.stock.listing.repo_id
            listed = " or ".join(str(InRepository(repo_id, file=each.files[0])) for each in found)
            raise UsageError(f"{repo_id} holds several models called {self.chosen.quantization}", f"name one: {listed}")
        return found[0]


@dataclass(slots=True)
class Offers:
    """Finds what references can bring: asks the Hub, or the catalogue where we are offline."""

    library: Library
    watcher: Watcher
    offline: bool = False
    _headers: dict[tuple[str, str], Header] = field(default_factory=dict, init=False)

    @property
    def is_offline(self) -> bool:
        """Whether the Hub is not to be asked."""
        return self.offline or is_offline()

    def find(self, text: str, context: int | None = None) -> Offer:
        """Return what a reference offers. ModelNotFound where there is nothing, HubError where the Hub is silent."""
        reference = self.library.parse(text)
        if isinstance(reference, InRepository):
            stock = self._in_repository(reference)
        elif isinstance(reference, Named) and (spec := self.library.spec_called(reference.name)):
            stock = catalogued(spec) if self.is_offline or spec.package else self._of_spec(spec, reference)
        else:
            self.library.resolve(text)
            raise UsageError(f"{text} is here already, and there is nothing to choose", f"cerebrum show {text}")
        wanted = None if isinstance(reference, AtPath) else reference.quantization
        return judge(stock, wanted, context, self.library.models(), self.library.capacity())

    def header(self, listing: Listing, file: HubFile) -> Header:
        """Return what a file on the Hub says of itself, read from its first megabytes. ModelFileError if no model."""
        key = (listing.commit, file.name)
        if key not in self._headers:
            self._headers[key] = self.patiently(lambda: self._read_header(listing, file))
        return self._headers[key]

    def patiently(self, ask: Callable[[], T]) -> T:
        """Return an answer of the Hub, asking again where that may help."""
        patience = Patience(self.watcher)
        while True:
            try:
                return ask()
            except HubError as error:
                patience.wait(error)

    def _header_here(self, listing: Listing) -> Header | None:
        """Return the header of a quantisation of a repository that is here; all are of one shape."""
        here = (model for model in self.library.cached() if model.cached and model.cached.repo_id == listing.repo_id)
        return next((model.header for model in here), None)

    def _read_header(self, listing: Listing, file: HubFile) -> Header:
        path = Path(listing.repo_id, file.name)
        data = b""
        for end in HEADER_BYTES:
            with opened(listing, file.name, len(data), min(end, file.size)) as body:
                data = data[: body.start] + b"".join(_up_to(body.chunks, end - body.start))
            try:
                return parse_header(path, data, file.size)
            except HeaderEndsEarly:
                if len(data) >= file.size or end == HEADER_BYTES[-1]:
                    raise
        raise AssertionError("the last length raises or returns")

    def _of_spec(self, spec: ModelSpec, reference: Named) -> Stock:
        """Return the stock of the first repository of a row that is there and holds what is wanted."""
        if not spec.sources:
            raise ModelNotFound(f"{spec.name} cannot be downloaded", spec.notes)
        missing: list[ModelNotFound] = []
        for source in spec.sources:
            try:
                listing = self.patiently(lambda: list_repository(source.repo_id, source.revision))  # noqa: B023
                found = [each for each in _variants(listing) if source.matches(each.files[0].rpartition("/")[2])]
                stock = self._listed(spec.name, spec, listing, found)
                _matching(stock, reference.quantization)
                return stock
            except ModelNotFound as error:
                missing.append(error)
        raise missing[0]

    def _in_repository(self, reference: InRepository) -> Stock:
        repo_id = reference.repo_id
        self.library.require_sound(repo_id)
        if self.is_offline:
            raise HubError(f"{repo_id} cannot be looked at: we are offline", "cerebrum list shows what is here")
        listing = self.patiently(lambda: list_repository(repo_id, reference.revision))
        found = [each for each in _variants(listing) if reference.file is None or reference.file in each.files]
        if reference.file and not found:
            do = f"see what it holds: cerebrum pull --dry-run {repo_id}"
            raise ModelNotFound(f"{repo_id} holds no whole model {reference.file}", do)
        spec = next((spec for each in found if (spec := self.library.spec_in(repo_id, each.files[0]))), None)
        return self._listed(spec.name if spec else repo_id, spec, listing, found)

    def _listed(self, name: str, spec: ModelSpec | None, listing: Listing, found: list[Variant]) -> Stock:
        if not found:
            raise ModelNotFound(f"{listing.repo_id} holds no GGUF model", "see what it holds on its page on the Hub")
        sizes = [(each.quantization, sum(listing.file(file).size for file in each.files)) for each in found]
        if spec and spec.kv_bytes_per_token:
            kv_bytes, trained = spec.kv_bytes_per_token, spec.context_size
        else:
            header = self._header_here(listing) or self.header(listing, listing.file(found[0].files[0]))
            kv_bytes, trained = header.kv_bytes_per_token, header.context_length
        return Stock(name, tuple(sizes), kv_bytes, trained, spec, listing, tuple(found))


def catalogued(spec: ModelSpec) -> Stock:
    """Return what the catalogue knows of a model, without asking anybody."""
    sizes = spec.sources[0].quantizations if spec.sources else spec.quantizations
    return Stock(spec.name, sizes, spec.kv_bytes_per_token or 0, spec.context_size, spec)


def installed(models: Iterable[Model]) -> Stock:
    """Return the quantisations that are here of a model no catalogue knows."""
    here = list(models)
    header = here[0].header
    sizes = tuple((model.quantization or model.path.stem, model.size) for model in here)
    return Stock(here[0].name, sizes, header.kv_bytes_per_token, header.context_length)


def judge(stock: Stock, wanted: str | None, context: int | None, models: Iterable[Model], capacity: Capacity) -> Offer:
    """Return a stock as this machine sees it. ModelNotFound where what is wanted is not in it."""
    context = wanted_context(context, stock.trained_context)
    here = [model.quantization or "" for model in models if _is_of(stock, model)]
    candidates = judged(stock.sizes, here, stock.kv_bytes_per_token, context, capacity)
    names = _matching(stock, wanted)
    chosen = [each for each in candidates if each.quantization in names]
    return Offer(stock, candidates, next((each for each in chosen if each.recommended), chosen[0]), context, capacity)


def _matching(stock: Stock, wanted: str | None) -> list[str]:
    """Return the quantisations of a stock that are meant: all, or the one of that name."""
    names = [name for name, _ in stock.sizes]
    found = [name for name in names if wanted is None or same_quantization(wanted, name)]
    if not found:
        there = f"there are {', '.join(sorted(set(names)))}" if names else "none is known"
        raise ModelNotFound(f"{stock.name} has no quantisation {wanted}", there, tuple(names))
    return found


def _is_of(stock: Stock, model: Model) -> bool:
    if stock.listing:
        cached = model.cached
        return cached is not None and cached.repo_id.lower() == stock.listing.repo_id.lower()
    return model.spec == stock.spec if stock.spec else model.name == stock.name


def _variants(listing: Listing) -> tuple[Variant, ...]:
    return variants(file.name for file in listing.files)


def _up_to(chunks: Iterable[bytes], size: int) -> Iterable[bytes]:
    """Yield chunks until they hold that many bytes: a server that knows no ranges would send all."""
    for chunk in chunks:
        yield chunk
        size -= len(chunk)
        if size <= 0:
            return
