"""An environment's secrets, found and blacked out in any text, however they are written there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

BLACK = "[redacted]"
_KEY_LINE = 8  #: a line of a key that is shorter says nothing of it, and may stand anywhere
_HASH = re.compile(r"\b[0-9a-f]{64}\b")
_NAME = r"[\w.-]*(?:pass(?![a-z]|ing)|passw|secret|token|credential|apikey|dsn|(?<=[_.-])keys?(?![a-z]))[\w.-]*"
#: NAME=value up to the line's end or, in JSON, to the text's; "NAME": "value"
_NAMED = re.compile(rf'(?i)(\b{_NAME}=|"{_NAME}":\s*")((?:\\.|[^"\\\n])+)')
_USER_INFO = re.compile(r"(://)[^/\s@\"']+(@)")


def is_secret(variable: str) -> bool:
    """Whether a variable is named as those are that hold secrets."""
    return re.fullmatch(f"(?i){_NAME}", variable) is not None


def secrets_of(folder: Path, variables: Mapping[str, str]) -> set[str]:
    """Return what must not be known: what is in a folder of secrets, and in variables that are named like one.

    Certificates are for everybody. Of the ACL file, the hashes; of keys, each line, since lines may be torn apart.
    """
    found = {value for name, value in variables.items() if value and is_secret(name)}
    for file in folder.iterdir() if folder.is_dir() else ():
        if not file.is_file() or file.suffix == ".crt":
            continue
        text = file.read_text(errors="replace")
        if hashes := _HASH.findall(text):
            found.update(hashes)
        elif file.suffix == ".key":
            body = (line for line in text.splitlines() if not line.startswith("-----"))
            found.update(line for line in body if len(line) >= _KEY_LINE)
        else:
            found.update(filter(None, map(str.strip, text.splitlines())))
    return found


def forms(secret: str) -> set[str]:
    """Return the ways in which a secret may be written: plain, encoded, hashed, or within something encoded."""
    raw = secret.encode()
    escaped = json.dumps(secret)[1:-1]
    for mark in "&<>":  # as Docker writes them
        escaped = escaped.replace(mark, f"\\u{ord(mark):04x}")
    ways = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], escaped, raw.hex()}
    ways.add(hashlib.sha256(raw).hexdigest())
    for before in range(3):
        # What stands around it shifts its Base64 by so many bytes; of the ends, neighbours decide.
        whole = base64.b64encode(b"\0" * before + raw).decode()
        start, end = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        if len(middle := whole[start:end]) >= _KEY_LINE:
            ways |= {middle, middle.translate(str.maketrans("+/", "-_"))}
    return ways | {way.upper() for way in ways if re.fullmatch("[0-9a-f]+", way)}


class Redactor:
    """Blacks out secrets, and finds those that are there all the same."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # Longest first, so that no part of one is left where another is within it.
        known = sorted({form for secret in secrets for form in forms(secret)}, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, known)) or r"(?!)")

    def clean(self, text: str) -> str:
        """Return a text without the secrets, values of what is named like one, and what URLs say of users."""
        text = self._known.sub(BLACK, text)
        return _USER_INFO.sub(rf"\1{BLACK}\2", _NAMED.sub(rf"\1{BLACK}", text))

    def finds(self, text: str) -> bool:
        """Whether one of the secrets is in a text."""
        return self._known.search(text) is not None
