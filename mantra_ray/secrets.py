"""What must reach neither a file nor a screen: secrets in command lines, addresses, messages and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from urllib.parse import quote

WORDS = {"token", "secret", "password", "passwd", "pwd", "key", "apikey", "credential", "credentials", "auth"}
HIDDEN = "***"
# Name and password of an address; keys of object stores may hold slashes, and a path has one slash of two.
USERINFO = re.compile(r"(:/{1,2})([^/@\s'\"]+|[^\s'\"]*:[^\s'\"]*)@")
SIGNED = re.compile(r"(?i)([?&][^=&\s]*(?:token|signature|sig|key|secret|credential|password)[^=&\s]*=)([^&\s'\"]+)")
TOKENS = re.compile(
    r"\b(?:(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abp]-)[A-Za-z0-9_-]{12,}|(?:AKIA|ASIA)[A-Z0-9]{12,})"
)
BEARER = re.compile(r"(?i)(\bbearer\s+)[^\s'\"]{8,}")
GIVEN = re.compile(r"(?i)(\b\w*(?:token|secret|password|passwd|api_?key|access_key)['\"]?=)[^\s,;)'\"]+")
VARIABLE = re.compile(r"(?i)(?:token|secret|password|passwd|passphrase|key|credentials?)$")
SHORTEST = 8  # characters of a variable's value that is a secret; `1` or `none` would be hidden everywhere
PIECE = 4  # the same of a password in an address
_remembered: set[str] = set()


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line whose secrets are replaced by ***: values of options and variables named so, and known tokens."""
    shown, hide = [], False
    for argument in arguments:
        name, given, _ = argument.partition("=")
        secret = not WORDS.isdisjoint(re.split(r"[-_.]+", name.lower()))
        if hide and not argument.startswith("--"):
            argument = HIDDEN
        elif secret and given:
            argument = f"{name}={HIDDEN}"
        hide = secret and not given and argument.startswith("-")
        shown.append(scrubbed(argument))
    return shown


def scrubbed(text: str) -> str:
    """A text, an error's say, with *** for secret environment variables, users of addresses, known tokens."""
    for value in sorted(of_environment() | _remembered, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = SIGNED.sub(rf"\1{HIDDEN}", USERINFO.sub(rf"\1{HIDDEN}@", text))
    return TOKENS.sub(HIDDEN, GIVEN.sub(rf"\1{HIDDEN}", BEARER.sub(rf"\1{HIDDEN}", text)))


def remember(address: str) -> None:
    """Hide the secrets of an address from now on wherever they stand: libraries tell of it in pieces."""
    for user in (match[2] for match in USERINFO.finditer(address)):
        name, _, password = user.partition(":")
        pieces = [user, password or name, *re.split("[/@:]", password)]
        _remembered.update(piece for piece in pieces if len(piece) >= (PIECE if password else SHORTEST))
    _remembered.update(match[2] for match in SIGNED.finditer(address) if len(match[2]) >= PIECE)


def of_environment() -> set[str]:
    """Values of environment variables whose names end like that of a secret, as they are and as addresses have them.

    Not those that are paths of files.
    """
    found = {value for name, value in os.environ.items() if VARIABLE.search(name) and len(value) >= SHORTEST}
    found = {value for value in found if not os.path.exists(value)}
    return found | {quote(value, safe="") for value in found}
