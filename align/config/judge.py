"""A judge at an OpenAI-compatible endpoint: its settings in a recipe, and the hosts that a recipe may name.

A recipe may come from a stranger, and a judge receives texts and a key. So a recipe alone may only name this machine; every
other host must be allowed by the user, outside the recipe, in the environment variable ALIGN_JUDGE_HOSTS.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator

from align.config.base import ExecutionOnly, StrictModel
from align.config.reference import FieldPath, iterate_parts

HOSTS_VARIABLE = "ALIGN_JUDGE_HOSTS"
KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*API_KEY")
"""A recipe must not be able to have another secret of the environment sent out as a key."""
DEFAULT_CRITERIA = (
    "It does what the person asks for, in the language they write in. What it says is true, clear and kind. "
    "Length is no merit by itself."
)


class Judge(StrictModel):
    """A language model behind an OpenAI-compatible endpoint that compares completions two by two, in both orders."""

    base_url: str
    """Address of the endpoint up to /chat/completions, such as http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    """Name of the model at the endpoint."""
    api_key_env: ExecutionOnly[str | None] = None
    """Environment variable that holds the key; its name ends in API_KEY. Default: no key is sent."""
    criteria: str = Field(default=DEFAULT_CRITERIA, min_length=1)
    """What makes a completion better, in plain words."""
    opponents: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """What each completion is compared with: all others of its prompt (n(n-1)/2 comparisons), or its next k neighbours in a ring
    (about n·k). A comparison costs two requests."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the judge."""
    max_completion_tokens: int = Field(default=512, ge=1)
    """Longest reply of the judge; one that is cut has no verdict."""
    timeout_seconds: ExecutionOnly[float] = Field(default=120.0, gt=0)
    """Time for one reply."""
    retries: ExecutionOnly[int] = Field(default=6, ge=0)
    """How often a request is repeated if the endpoint is busy, fails or does not reply."""
    requests_per_minute: ExecutionOnly[float | None] = Field(default=None, gt=0)
    """Largest number of requests per minute. Default: no limit."""
    max_concurrency: ExecutionOnly[int] = Field(default=8, ge=1, le=256)
    """Requests sent at the same time."""
    max_requests: ExecutionOnly[int | None] = Field(default=None, ge=1)
    """Budget: most requests that one run of the stage sends, repeated ones included. Default: no limit."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        try:
            # urlsplit and `port` raise ValueError for malformed addresses.
            parts = urlsplit(value)
            is_plain = value.isascii() and value.isprintable() and " " not in value
            is_address = is_plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise ValueError("expected an address such as http://127.0.0.1:8000/v1")
        # base_url is shown in messages and stored in results, so it must hold no secret.
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("must end with its path, without user, password, query or fragment; a key goes to api_key_env")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_key(cls, value: str | None) -> str | None:
        if value is not None and not KEY_VARIABLE.fullmatch(value):
            raise ValueError("expected the name of an environment variable in capitals that ends in API_KEY, not a key itself")
        return value

    @property
    def host(self) -> str:
        """Host of the endpoint, in lower case."""
        return self._address.hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is on this machine."""
        return is_loopback(self.host)

    @property
    def _address(self) -> SplitResult:
        return urlsplit(self.base_url)

    def refusal(self, environment: Mapping[str, str]) -> tuple[str, str, str] | None:
        """Why this judge may not be used: field, problem, what to do. None if it may.

        Args:
            environment: the environment variables.
        """
        if not self.is_local:
            # Compared exactly: to allow a host is not to allow its subdomains.
            if self.host not in allowed_hosts(environment):
                return (
                    "base_url",
                    f"'{self.host}' is not this machine, and a recipe alone may not send texts there",
                    f"If you trust it with prompts and completions: export {HOSTS_VARIABLE}={self.host}",
                )
            # Over http, anyone on the way could read the texts and the key.
            if self._address.scheme != "https":
                return "base_url", f"'{self.host}' is not this machine, so https is needed", "Write https:// instead of http://."
        if self.api_key_env is not None and not environment.get(self.api_key_env, "").strip():
            problem = f"the environment variable {self.api_key_env} is not set"
            return "api_key_env", problem, "Set it to the key of the endpoint, or leave api_key_env out where no key is needed."
        return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, judged by its text alone; no name is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A lookup could give any address, and another one when the request is sent.
        return host == "localhost"


def allowed_hosts(environment: Mapping[str, str]) -> frozenset[str]:
    """Other hosts to which the user allows texts to be sent."""
    return frozenset(host.strip().lower() for host in environment.get(HOSTS_VARIABLE, "").split(",") if host.strip())


def iterate_judges(value: Any) -> Iterator[tuple[FieldPath, Judge]]:
    """Every judge inside a configuration value, with its path."""
    return ((path, part) for path, part in iterate_parts(value) if isinstance(part, Judge))


def judge_environment(config: Any, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that the judges of a configuration need: the allowed hosts and the keys."""
    # Only these are passed on: a stage needs no other secret of the environment.
    names = [HOSTS_VARIABLE, *(judge.api_key_env for _, judge in iterate_judges(config) if judge.api_key_env)]
    return {name: environment[name] for name in names if name in environment}
