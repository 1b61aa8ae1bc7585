"""Hooks that carry alerts out of here: a command that reads JSON, a web address that JSON is posted to."""

import json
import math
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import IO, Literal, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from sam_laplace_assets.redaction import redact
from sam_laplace_assets.settings import AlertSettings

COMMAND_SECONDS = 30.0
WEBHOOK_SECONDS = 10.0
TAIL_BYTES = 4096
AGENT = "sam-laplace-assets"  # some hosts turn Python's own name away

HOOKS = ("command", "webhook")
Fact = str | int | float | bool | None


class AlertNotDelivered(RuntimeError):
    """A hook did not take an alert; says which and why, and no secret of its address."""


@dataclass(frozen=True)
class Alert:
    """Something that a person should hear of.

    Attributes:
        event: what kind of thing it is.
        text: one or two plain sentences.
        facts: the same for programs.
    """

    event: Literal["run_failed", "champion_changed"]
    text: str
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """One JSON object, UTF-8, whatever stands in the text: an alert that cannot be written would block the next."""
        said = asdict(self) | {"facts": {name: _plain(fact) for name, fact in self.facts.items()}}
        return json.dumps(said, ensure_ascii=False).encode(errors="replace")


def _plain(fact: Fact) -> Fact:
    """The fact itself, or its name where JSON has no such number."""
    return str(fact) if isinstance(fact, float) and not math.isfinite(fact) else fact


class Hook(Protocol):
    """Something that takes alerts."""

    def send(self, alert: Alert) -> None:
        """Deliver an alert. Raises `AlertNotDelivered`."""


def hooks_of(alerts: AlertSettings) -> dict[str, Hook]:
    """The hooks that the settings name, by their key."""
    hooks: dict[str, Hook] = {}
    if alerts.command is not None:
        hooks["command"] = Command(alerts.command)
    if alerts.webhook is not None:
        hooks["webhook"] = Webhook(alerts.webhook)
    return hooks


@dataclass(frozen=True)
class Command:
    """A program that gets each alert as JSON on its standard input, without a shell, and must exit with 0."""

    line: str = field(repr=False)

    def send(self, alert: Alert) -> None:
        """Run it. Raises `AlertNotDelivered` with its exit status and the last line of its standard error."""
        words = shlex.split(self.line)
        if problem := _run(words, alert.to_json()):
            raise AlertNotDelivered(f"alerts.command ({Path(words[0]).name}) {problem}.")


def _run(words: list[str], message: bytes) -> str:
    """What went wrong; empty if nothing did."""
    with tempfile.TemporaryFile() as errors:  # a pipe would wait for whatever the program leaves running
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
        except OSError as error:
            return f"could not be started: {error.strerror}"
        ended = _wait(process, message)
        return ended and f"{ended}{_last_line(errors)}"


def _wait(process: "subprocess.Popen[bytes]", message: bytes) -> str:
    """How it ended; empty for well. One that takes too long is killed, with what it started."""
    with process:
        try:
            process.communicate(message, timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"was not done within {COMMAND_SECONDS:g} s and was killed"
    return _status(process.returncode) if process.returncode else ""


def _status(code: int) -> str:
    return f"ended with exit status {code}" if code > 0 else f"was killed by signal {-code}"


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - TAIL_BYTES))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f": {redact(lines[-1].strip().rstrip('.'))}" if lines else ""


@dataclass(frozen=True)
class Webhook:
    """A web address that each alert is posted to as JSON; it must answer with a status of 200 to 299.

    No redirect is followed: by the rules of the web the alert would not go along, and the new place would answer well.
    """

    address: str = field(repr=False)

    def send(self, alert: Alert) -> None:
        """Post it. Raises `AlertNotDelivered`, which names scheme and host alone: the rest of the address is a secret.

        What was caught is not chained to it, since that may say the whole address.
        """
        if problem := self._post(alert.to_json()):
            raise AlertNotDelivered(f"alerts.webhook ({_place(self.address)}) {problem}.")

    def _post(self, message: bytes) -> str:
        """What went wrong; empty if nothing did."""
        answered: Future[None] = Future()
        threading.Thread(target=_settle, args=(answered, self.address, message), daemon=True).start()
        try:
            answered.result(WEBHOOK_SECONDS)  # a socket's own limit knows no slow name server and no slow drip
        except (OSError, ValueError) as error:
            return _explain(error)
        return ""


def _settle(answered: "Future[None]", address: str, message: bytes) -> None:
    try:
        post(address, message)
        answered.set_result(None)
    except Exception as error:
        answered.set_exception(error if isinstance(error, OSError) else ValueError(type(error).__name__))


def post(address: str, message: bytes) -> None:
    """Post JSON. Raises `HTTPError` unless the answer is 2xx, `OSError` if there is none."""
    headers = {"Content-Type": "application/json", "User-Agent": AGENT}
    request = urllib.request.Request(address, data=message, headers=headers, method="POST")
    with _opener().open(request, timeout=WEBHOOK_SECONDS):
        pass


def _opener() -> urllib.request.OpenerDirector:
    """Opens http: and https: through the environment's proxies, and nothing else; follows no redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.UnknownHandler, urllib.request.HTTPHandler,
                    urllib.request.HTTPSHandler, urllib.request.HTTPDefaultErrorHandler,
                    urllib.request.HTTPErrorProcessor):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _explain(error: OSError | ValueError) -> str:
    """What happened, in words that do not hold the address."""
    if isinstance(error, HTTPError):
        error.close()
        return _answer(error)
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        return f"did not answer within {WEBHOOK_SECONDS:g} s"
    if isinstance(reason, ValueError):
        return f"cannot be posted to ({reason}): check the address"
    return f"could not be reached: {getattr(reason, 'strerror', None) or reason}"


def _answer(error: HTTPError) -> str:
    """Status, and where else it points; neither the server's words nor the whole place, which may hold the address."""
    phrase = f" {HTTPStatus(error.code).phrase}" if error.code in set(HTTPStatus) else ""
    location = error.headers.get("Location")
    moved = f", which points to {_place(location, base=error.url)}; a redirect is not followed" if location else ""
    return f"answered with HTTP {error.code}{phrase}{moved}"


def _place(address: str, *, base: str = "") -> str:
    """Scheme, host and port."""
    try:
        parts = urlsplit(urljoin(base, address))
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"
