"""The address of a server: its URL, the key it wants, and the model to ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from cerebrum_cli.core.errors import UsageError

KEY_VARIABLE = "CEREBRUM_API_KEY"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server: `name` is what messages call it, `url` ends before `/v1`, and `served_model` is the model's id there.

    With `allow_http_key`, the key may travel unencrypted to another machine.
    """

    name: str
    url: str
    key: str | None = field(default=None, repr=False)
    served_model: str | None = None
    allow_http_key: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, to which no proxy leads."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    @property
    def is_encrypted(self) -> bool:
        return self.url.startswith("https:")

    def validate(self) -> None:
        """Raise UsageError if the key would travel unencrypted to another machine, or cannot be a header."""
        if self.key is None:
            return
        if not (self.is_encrypted or self.is_loopback or self.allow_http_key):
            raise UsageError(
                f"{self.name}: the API key would be sent unencrypted",
                "use an https URL, or add --set allow_http_key=on",
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise UsageError(f"{self.name}: the API key is not printable ASCII", "check its variable for line breaks")


def parse_url(text: str) -> str:
    """The base URL of a server, without a trailing slash or `/v1`. Raises UsageError."""
    try:
        parts = urlsplit(text.strip())
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        shown = "the URL of an endpoint" if "@" in text else text  # a password is never shown
        raise UsageError(f"{shown}: {error}", _EXAMPLE) from error
    if parts.username or parts.password:
        raise UsageError(
            "the URL of an endpoint contains a user name or password",
            f"remove them, and set {KEY_VARIABLE} to an API key",
        )
    if parts.scheme not in ("http", "https") or not has_host or parts.query or parts.fragment:
        raise UsageError(f"{text!r} is not the URL of a server", _EXAMPLE)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return SplitResult(parts.scheme, parts.netloc, path, "", "").geturl()


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL, not as the name of an endpoint in config.toml."""
    return "://" in text


_EXAMPLE = "write it like http://localhost:8080"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
