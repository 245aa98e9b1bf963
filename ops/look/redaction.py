"""An environment's secrets, found and redacted in any text, however they are written there."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

REDACTED = "[redacted]"
_KEY_LINE = 8  #: a shorter line of a key tells nothing of the key, and may stand anywhere
_HASH = re.compile(r"\b[0-9a-f]{64}\b")
_NAME = r"[\w.-]*(?:pass(?![a-z]|ing)|passw|secret|token|credential|apikey|dsn|(?<=[_.-])keys?(?![a-z]))[\w.-]*"
#: NAME=value up to the line's end or, in JSON, to the text's; "NAME": "value"
_NAMED = re.compile(rf'(?i)(\b{_NAME}=|"{_NAME}":\s*")((?:\\.|[^"\\\n])+)')
_USER_INFO = re.compile(r"(://)[^/\s@\"']+(@)")


def is_secret(variable: str) -> bool:
    """Return whether a variable has a name such as those of secrets."""
    return re.fullmatch(f"(?i){_NAME}", variable) is not None


def secrets_of(folder: Path, variables: Mapping[str, str]) -> set[str]:
    """Return what nobody may know: what a folder of secrets has, and the values of variables named like a secret.

    Certificates are public. Of the ACL file these are the hashes, and of a key each line, as lines may be torn apart.
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
    """Return the forms of a secret: plain, encoded, hashed, and as a part of something encoded."""
    raw = secret.encode()
    escaped = json.dumps(secret)[1:-1]
    for mark in "&<>":  # as Docker writes them
        escaped = escaped.replace(mark, f"\\u{ord(mark):04x}")
    ways = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], escaped, raw.hex()}
    ways.add(hashlib.sha256(raw).hexdigest())
    for before in range(3):
        # What stands before it shifts its Base64 by so many bytes, and what stands around it changes the ends.
        whole = base64.b64encode(b"\0" * before + raw).decode()
        start, end = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        if len(middle := whole[start:end]) >= _KEY_LINE:
            ways |= {middle, middle.translate(str.maketrans("+/", "-_"))}
    return ways | {way.upper() for way in ways if re.fullmatch("[0-9a-f]+", way)}


class Redactor:
    """Redacts secrets in texts, and finds those that are still there."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest come first, so that nothing is left of a secret that has another one within it.
        known = sorted({form for secret in secrets for form in forms(secret)}, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, known)) or r"(?!)")

    def clean(self, text: str) -> str:
        """Return a text without secrets, without values that are named like one, and without users in URLs."""
        text = self._known.sub(REDACTED, text)
        return _USER_INFO.sub(rf"\1{REDACTED}\2", _NAMED.sub(rf"\1{REDACTED}", text))

    def finds(self, text: str) -> bool:
        """Return whether a secret is in a text."""
        return self._known.search(text) is not None
