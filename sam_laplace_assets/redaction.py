"""Taking secrets out of text that is shown, logged or stored: the one place that knows what a secret looks like."""

import os
import re
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 8
"""Characters from which on a value of the environment is looked for; a shorter one would be found everywhere."""

_USER = re.compile(r"""(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#'"@:]*:[^\s'"]*@|[^\s/?#'"]*@)""", re.I)
_NAMED = re.compile(
    r"""(?P<name>\b[\w-]*(?:token|password|passwd|secret|api_?key|signature|credential)s?['"]?\s*[=:]\s*['"]?)"""
    r"""[^\s&'",;)]*[^\s&'",;):.]""",
    re.I,
)
_HEADER = re.compile(r"(?P<name>\bAuthorization['\"]?\s*[=:]\s*['\"]?(?:\w+\s+)?|\bBearer\s+)[\w.~+/=-]{6,}", re.I)
_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@:]*:(?P<password>.+)@[^@]*", re.I)
_SECRET_VARIABLE = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|CREDENTIAL", re.I)


def redact(text: str) -> str:
    """The text without user and password of addresses, without values of tokens and passwords, named or known.

    Known are those of the environment: in variables whose name says so, and the passwords of addresses. A secret that
    is the path of an address, as that of a webhook, does not look like one: whoever holds such an address shows its
    host alone.
    """
    for value in _of_the_environment():
        text = text.replace(value, HIDDEN)
    text = _USER.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _HEADER.sub(rf"\g<name>{HIDDEN}", _NAMED.sub(rf"\g<name>{HIDDEN}", text))


def without_user(address: str) -> str:
    """An address without its user and password: what can be opened in a browser, which asks for them."""
    return _USER.sub(r"\g<scheme>", address)


def _of_the_environment() -> list[str]:
    """Values of secret variables and passwords of addresses, longest first, so that none hides a part of another."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    for address in filter(None, map(_PASSWORD.fullmatch, os.environ.values())):
        found |= {address["password"], unquote(address["password"])}
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)
