"""Dagster's webserver, closed to the pages of other sites: it has no login, and takes what any page sends it.

A page that is open in a browser of this machine may send requests to whatever listens on it. Dagster runs a mutation
that stands in the address of a POST or a GET, and so any page could launch runs. Refused is what a browser says to come
from a page of another site, and what asks for this server under a name that it was not told: a foreign name may have
been led here (DNS rebinding). Programs other than browsers send no such headers and are not held up.
"""

import importlib
import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

NAMES_VARIABLE = "SAM_LAPLACE_UI_NAMES"
"""Names that the server is asked for under, beside localhost and plain addresses; separated by commas."""

READ_ONLY_VARIABLE = "DAGSTER_WEBSERVER_READ_ONLY"
"""Dagster's own, of its option --read-only."""

LOOPBACK_NAME = "localhost"
OTHER_SITES = {"cross-site", "same-site"}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def own_pages_only(app: App, *, names: frozenset[str]) -> App:
    """An application that answers its own pages, programs that are no browsers, and links that somebody follows."""

    async def guarded(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not (refusal := _refusal(scope, names)):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": refusal.encode()})
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})

    return guarded


def _refusal(scope: Message, names: frozenset[str]) -> str:
    """Why a request is refused; empty if it is not."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get("host", ""), headers.get("origin")
    if not _is_known(host, names):
        return f"This server is not known as {host}. If it is yours, start it with --allowed-host {host.split(':')[0]}."
    follows = scope.get("method") in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    foreign = headers.get("sec-fetch-site") in OTHER_SITES and not follows
    if foreign or (origin is not None and origin.partition("://")[2] != host):
        return "A page of another site may not ask this server for anything."
    return ""


def _is_known(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header names this server: no foreign name can stand for a plain address."""
    name = _netloc_name(host)
    return name in {LOOPBACK_NAME, *names} or is_address(name)


def is_address(name: str) -> bool:
    """Whether this is an IP address, not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _netloc_name(host: str) -> str:
    """The name in `<name>:<port>`; empty if it cannot be read."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def serve() -> None:
    """Run Dagster's webserver with its own options, guarded."""
    dagster: Any = importlib.import_module("dagster_webserver.cli")
    create = dagster.create_app_from_workspace_process_context
    names = frozenset(filter(None, os.environ.get(NAMES_VARIABLE, "").lower().split(",")))

    def create_guarded(*args: Any, **options: Any) -> App:
        return own_pages_only(create(*args, **options), names=names)

    dagster.create_app_from_workspace_process_context = create_guarded
    dagster.main()


if __name__ == "__main__":
    serve()
