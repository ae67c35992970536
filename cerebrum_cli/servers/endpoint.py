"""Servers as a user names them: their addresses, how they are used, and what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import ConfigError, GrammarError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonObject

KEY_VARIABLE = "CEREBRUM_API_KEY"
URL_EXAMPLE = "write it like http://localhost:8080"
EXACT = "llama-server or vLLM"


@frozen
class Endpoint:
    name: str  # what messages call it
    url: str  # ends before `/v1`; its query is sent with each request
    served_model: str | None = None  # the model's id there
    named_model: str | None = None  # what a server of messages is asked for; others have its vocabulary
    ca_file: str | None = None  # PEM of the certificates to trust instead of the system's
    client_cert: str | None = None  # PEM of a certificate with its key
    key_variable: str = KEY_VARIABLE  # environment variable of the API key, which is read where it is used

    @classmethod
    def at(cls, url: str) -> Self:
        """The server at a URL. Raises UsageError."""
        url = base_url(url)
        return cls(url.partition("?")[0], url)  # a query may hold a secret

    @classmethod
    def of_table(cls, name: str, table: JsonObject) -> Self:
        """The server that a table of config.toml describes. Raises UsageError, ConfigError."""
        values: dict[str, Any] = {**table, "name": name, "url": base_url(table["url"])}
        if variable := values.pop("key_env", ""):
            if environment(variable) is None:
                raise ConfigError(f"endpoint {name}: {variable} is not set", f"run export {variable}=KEY")
            values["key_variable"] = variable
        return cls(**values)

    @property
    def is_loopback(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    @property
    def key(self) -> str | None:
        return environment(self.key_variable)

    def validate(self) -> None:
        """Raise UsageError if the API key must not be sent."""
        if self.key is None:
            return
        if not (self.url.startswith("https:") or self.is_loopback):
            problem = f"{self.name}: the API key would be sent unencrypted"
            raise UsageError(problem, "use an https URL, or a tunnel: ssh -L 8080:localhost:8080 HOST")
        if not (self.key.isascii() and self.key.isprintable()):
            raise UsageError(f"{self.name}: the API key is not printable ASCII", "check its variable for line breaks")


def base_url(text: str) -> str:
    """The base URL of a server, without a trailing slash or `/v1`. Raises UsageError."""
    try:
        parts = urlsplit(text.strip())
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        shown = "the URL of an endpoint" if "@" in text else text  # a password is never shown
        raise UsageError(f"{shown}: {error}", URL_EXAMPLE) from error
    if parts.username or parts.password:
        problem = "the URL of an endpoint contains a user name or password"
        raise UsageError(problem, f"remove them, and set {KEY_VARIABLE} to an API key")
    if parts.scheme not in ("http", "https") or not has_host or parts.fragment:
        raise UsageError(f"{text!r} is not the URL of a server", URL_EXAMPLE)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return parts._replace(path=path).geturl()


@frozen
class Servers:
    """Servers of a model, with `window` requests each at a time; with `earlier` records, only such servers."""

    MAX_WINDOW: ClassVar[int] = 4096

    endpoints: Sequence[Endpoint]
    window: int | None = None
    earlier: Sequence[Mapping[str, str]] = ()

    def check_grammar(self, grammar: Grammar, as_messages: bool) -> None:
        """Raise GrammarError for a schema or grammar that servers cannot apply."""
        if grammar.is_schema:
            from cerebrum_cli.grammars.validation import check_grammar

            check_grammar(grammar, is_local=False)
        elif as_messages:
            raise GrammarError("chat completions do not support grammars", f"use a schema, or {EXACT}")
        elif grammar.kind != "gbnf":
            raise GrammarError(f"servers take GBNF, not {grammar.kind}", "convert it to GBNF, or use a local model")


@frozen
class ServerInfo:
    """A model on a server."""

    kind: ClassVar[str]  # such as llama-server
    takes_messages: ClassVar[bool] = False  # instead of token ids

    build: str
    model: str  # its id there
    weights: str  # where they are from
    context_size: int
    slots: int  # concurrent sequences; of a server that states none, as many as to give it

    @property
    def recorded(self) -> dict[str, str]:
        return {"kind": self.kind, "build": self.build, "model": self.weights}
