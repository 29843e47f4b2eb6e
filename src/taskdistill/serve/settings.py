"""Limits of the server: what one request may ask for, how much may wait, how long anything may
take.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from taskdistill.errors import BadInput

KEY_CHARACTERS = 16
"""Shortest API key accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Every limit of the server.

    Attributes:
        api_key: Key that clients send as `Authorization: Bearer KEY`; None for no key.
        public: Whether an address other than loopback may be served without a key.
        allowed_hosts: Host names, besides loopback's, under which a server without a key answers.
        all_body_bytes: Largest sum of the bodies being read at one moment.
        request_texts: Most texts of one request.
        request_tokens: Most tokens of one request, over all its texts.
        queue_seconds: Longest estimated wait that is accepted; keep it below `drain_seconds`.
        unmeasured_tokens: Most tokens waiting while the model's rate, from which waits are
            estimated, was not measured.
        max_wait_ms: How long a batch that is not full waits for company while a worker is idle.
        head_seconds: Time in which a connection must have sent the head of its next request.
        body_seconds: Time in which the body must have arrived.
        connections: Most connections open; the one idle longest gives way to a new one.
        failed_keys: Wrong keys from one address in a minute before it is refused for the rest of
            that minute.
        proxies: Addresses of proxies whose X-Forwarded-For says who asks; from others the header is
            not believed.
    """

    api_key: str | None = None
    public: bool = False
    allowed_hosts: tuple[str, ...] = ()
    body_bytes: int = 4 << 20
    all_body_bytes: int = 64 << 20
    request_texts: int = 2048
    request_tokens: int = 300_000
    queue_texts: int = 16_384
    queue_tokens: int = 600_000
    queue_seconds: float = 8.0
    unmeasured_tokens: int = 4096
    max_wait_ms: float = 0.0
    searches: int = 32
    head_seconds: float = 15.0
    body_seconds: float = 30.0
    drain_seconds: float = 10.0
    connections: int = 1000
    failed_keys: int = 20
    proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.api_key is not None and (
            len(self.api_key) < KEY_CHARACTERS or not self.api_key.isascii() or " " in self.api_key
        ):
            raise BadInput(
                f"the API key must be at least {KEY_CHARACTERS} ASCII characters without spaces;"
                " make one with: openssl rand -hex 32"
            )
        if self.request_texts > self.queue_texts or self.request_tokens > self.queue_tokens:
            raise BadInput(
                "a request may not be larger than the queue, or it could never be accepted; raise"
                " queue_texts and queue_tokens"
            )
        for proxy in self.proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise BadInput(
                    f"the proxy {proxy!r} is no address; give one such as 127.0.0.1 or 10.0.0.0/8"
                ) from None
        zero = [
            name
            for name in self.__slots__
            if isinstance(value := getattr(self, name), int | float) and value < (name not in FREE)
        ]
        if zero:
            raise BadInput(f"{zero[0]} is {getattr(self, zero[0])}; give a positive number")


FREE = ("public", "max_wait_ms", "queue_seconds")
"""Fields that may be zero or false."""


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine only.

    Returns True for `localhost` and loopback addresses.
    """
    host = host.lower().removesuffix(".")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, settings: ServerSettings) -> None:
    """Refuse to serve the network without a key unless that is asked for.

    Raises BadInput if others could reach the server and neither a key nor `public` is set.
    """
    if not is_loopback(host) and settings.api_key is None and not settings.public:
        raise BadInput(
            f"--host {host} lets every machine that reaches this one use the model and read the"
            " index; set an API key, or pass --public to serve without one"
        )
