"""Payloads that contain values and no code.

arq sends pickles, and to load a pickle is to run code that its writer chose. So anybody who can write to Redis can run
code in every worker. A ``Serializer`` replaces pickle::

    serializer = Serializer()
    redis = await create_pool(…, job_serializer=serializer.dumps, job_deserializer=serializer.loads)

This file needs only msgspec, so that another code base can copy it.

A payload can contain None, bool, int of any size, float, str, bytes, list, tuple, dict, set, frozenset, datetime, date,
time, timedelta, UUID, Decimal, exceptions, and registered dataclasses and enums. Each value keeps its type. Only a time
zone changes: it becomes its offset. Other types, also subclasses of these, are refused when they are sent: a value that
changes its type without notice is worse than an error.
"""

from __future__ import annotations

import builtins
import hmac
import json
import pickle
import sys
import traceback
from abc import ABC, abstractmethod
from asyncio import CancelledError
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from types import ModuleType
from typing import Any, Literal, TypeVar
from uuid import UUID

from msgspec import msgpack

T = TypeVar("T", bound=type)
Format = Literal["msgpack", "json", "pickle"]

MAX_TRACEBACK = 16_384  #: characters of a traceback that are sent with an exception; its end is kept
SIGNED = b"S"  #: the first byte of a signed payload; the signature follows, then the payload
DIGEST_BYTES = 32
PURPOSE = b"arq payload"  #: so that a signature made with the same key for another purpose is not valid here


class PayloadError(ValueError):
    """A value cannot be in a payload, or a payload is refused. The text says why."""


class RemoteError(Exception):
    """Replaces an exception if its class is not known here, or cannot be called with its arguments.

    :param kind: the full name of the class
    :param text: the text of the exception
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)

    def __str__(self) -> str:
        return ": ".join(self.args)

    def __repr__(self) -> str:
        kind, text = self.args
        return f"{kind}({text!r})"


# -- classes ---------------------------------------------------------------------------------------------------------

_registered: dict[str, type] = {}


def register(cls: T) -> T:
    """Class decorator: allow a dataclass or an enum in payloads.

    A dataclass is sent as its ``__init__`` fields, a member of an enum as its name. Producers and workers each register
    a class with the same qualified name. It may be in different modules.

    Register only a class that is safe with any values. To make an object is to run the code of its class, such as
    ``__post_init__`` and ``__del__``, with the values in the payload. Some classes would delete files or open
    connections then. So classes that are not registered are refused.

    Raises ``TypeError`` if the class is neither a dataclass nor an enum, ``ValueError`` if another module has
    registered the name.
    """
    if not (is_dataclass(cls) or issubclass(cls, Enum)):
        raise TypeError(f"{cls.__qualname__} is neither a dataclass nor an enum")
    known = _registered.setdefault(cls.__qualname__, cls)
    if known.__module__ != cls.__module__:
        raise ValueError(f"a class {cls.__qualname__} is registered already: that of {known.__module__}")
    _registered[cls.__qualname__] = cls
    return cls


def _encode_registered(value: Any) -> list[Any]:
    cls = type(value)
    name = cls.__qualname__
    if _registered.get(name) is not cls:
        how = ": register it" if is_dataclass(value) or isinstance(value, Enum) else ""
        raise PayloadError(f"a {cls.__module__}.{name} cannot be in a payload{how}")
    if not isinstance(value, Enum):
        return [name, {field.name: getattr(value, field.name) for field in fields(value) if field.init}]
    if cls.__members__.get(value.name) is not value:
        raise PayloadError(f"{value!r} cannot be in a payload: it combines several members")
    return [name, value.name]


def _decode_registered(parts: list[Any]) -> Any:
    name, content = parts
    cls: Any = _registered.get(name)
    if cls is None:
        raise PayloadError(f"no class {name} is registered here")
    return cls.__members__[content] if issubclass(cls, Enum) else cls(**content)


# -- exceptions ------------------------------------------------------------------------------------------------------

_BUILTIN_ERRORS = {
    value for value in vars(builtins).values() if isinstance(value, type) and issubclass(value, BaseException)
}


def _builtin_base(cls: type[BaseException]) -> type[BaseException]:
    return next(base for base in cls.__mro__ if base in _BUILTIN_ERRORS)


def _encode_error(error: BaseException, plain: Callable[[Any], Any]) -> list[Any]:
    cls = type(error)
    trace = "".join(traceback.format_exception(error)) if error.__traceback__ or error.__cause__ else ""
    return [cls.__module__, cls.__qualname__, _arguments(error, plain), _text(error), trace[-MAX_TRACEBACK:]]


def _arguments(error: BaseException, plain: Callable[[Any], Any]) -> Any:
    """Return the arguments for the exception's class, or None if no arguments give an exception with the same text."""
    cls = type(error)
    # Not `args`: that of an OSError lacks the file name.
    for args in (_builtin_base(cls).__reduce__(error)[1], (_text(error),)):
        try:
            made = _made_error(cls, args)
            if repr(made) and str(made) == str(error):
                return plain(list(args))
        except Exception:  # noqa: S112 - the code of any class; the text is sent in any case
            continue
    return None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<str() of a {type(error).__qualname__} failed>"


def _decode_error(parts: list[Any]) -> BaseException:
    """Make an exception, or a ``RemoteError`` if its class is not loaded here.

    Nothing is imported, because the import would run a module that the writer chose. Only an ``Exception`` or a
    ``CancelledError`` is made: arq raises the error again, and a SystemExit would end the producer.
    """
    module, name, args, text, trace = parts
    cls = _loaded_class(module, name)
    try:
        if cls is None or not issubclass(cls, (Exception, CancelledError)):
            raise TypeError
        error = _made_error(cls, args)
    except Exception:
        error = RemoteError(f"{module}.{name}", text)
    if trace:
        object.__setattr__(error, "__notes__", [f"In the worker:\n{trace}"])
    return error


def _made_error(cls: type[BaseException], args: Iterable[Any]) -> BaseException:
    """Make an exception, and run only the code of its built-in base class.

    Raises ``TypeError`` if the base class does not take these arguments.
    """
    base: Any = _builtin_base(cls)
    error: BaseException = base.__new__(cls, *args)
    base.__init__(error, *args)
    return error


def _loaded_class(module_name: str, qualified_name: str) -> type | None:
    """Return a class that is loaded, or None. No code runs: an attribute of a module may be a proxy that loads more."""
    module = sys.modules.get(module_name)
    if type(module) is not ModuleType:  # for example a lazy module
        return None
    names: Any = vars(module)
    found: Any = None
    for name in qualified_name.split("."):
        found = names.get(name)
        if not issubclass(type(found), type):  # isinstance would ask for found.__class__
            return None
        names = type.__getattribute__(found, "__dict__")
    return found  # type: ignore[no-any-return]


# -- formats ---------------------------------------------------------------------------------------------------------


def _iso(value: datetime | time) -> str:
    offset = value.utcoffset()
    if offset and abs(offset) < timedelta(seconds=1):  # CPython would read it as no offset
        raise PayloadError(f"{value!r} cannot be in a payload: its offset is less than a second")
    return value.isoformat()


#: For each type that a format may lack: how it is encoded, and how it is decoded. The order is part of the wire format.
#: Each decoder allocates memory in proportion to its input: `bytes(10**12)`, for example, would not.
_PARTS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    tuple: (list, tuple),
    dict: (lambda value: [[key, item] for key, item in value.items()], dict),
    set: (list, set),
    frozenset: (list, frozenset),
    int: (hex, lambda text: int(text, 16)),  # in linear time; decimals take longer
    float: (repr, float),
    bytes: (lambda value: b64encode(value).decode(), lambda text: b64decode(text, validate=True)),
    datetime: (_iso, datetime.fromisoformat),
    date: (date.isoformat, date.fromisoformat),
    time: (_iso, time.fromisoformat),
    timedelta: (lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*parts)),
    UUID: (str, UUID),
    Decimal: (str, Decimal),
}
_TAGS = {cls: cls.__name__.lower() for cls in _PARTS}
_MAKERS: dict[str, Callable[[Any], Any]] = {"error": _decode_error, "registered": _decode_registered}
_MAKERS |= {_TAGS[cls]: make for cls, (_, make) in _PARTS.items()}
_INT64 = 1 << 63
_STR = frozenset({str})


class _Values(ABC):
    """A format of values: it knows some types, and the others get a tag."""

    known: frozenset[type] = frozenset()

    @abstractmethod
    def _tagged(self, tag: str, parts: Any) -> Any:
        """Return the encoded form of a value whose type the format does not know."""

    def _record(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a job or a result in types that the format knows.

        Only the arguments (``a`` and ``k``) and the result (``r``) can contain other types. ``a`` is a tuple.
        """
        plain = record.copy()
        plain["a"] = [self._plain(item) for item in record["a"]] if record["a"] else []
        if record["k"]:
            plain["k"] = self._plain(record["k"])
        if record.get("r") is not None:
            plain["r"] = self._plain(record["r"])
        return plain

    def _plain(self, value: Any) -> Any:
        cls, known, plain = type(value), self.known, self._plain
        if cls in known:
            return value
        if cls is list:
            return [item if type(item) in known else plain(item) for item in value]
        # In JSON a dict with a single key that begins with $ is a tag.
        if cls is dict and _STR.issuperset(map(type, value)) and not (len(value) == 1 and next(iter(value))[:1] == "$"):
            return {key: item if type(item) in known else plain(item) for key, item in value.items()}
        if (cls is int and -_INT64 <= value < _INT64) or (cls is float and isfinite(value)):
            return value
        if parts := _PARTS.get(cls):
            return self._tagged(_TAGS[cls], plain(parts[0](value)))
        if isinstance(value, BaseException) and _registered.get(cls.__qualname__) is not cls:
            return self._tagged("error", _encode_error(value, plain))
        return self._tagged("registered", plain(_encode_registered(value)))

    @staticmethod
    def _decoded(tag: str, parts: Any) -> Any:
        if make := _MAKERS.get(tag):
            return make(parts)
        raise PayloadError(f"unknown tag {tag!r}")


class _Msgpack(_Values):
    known = frozenset({type(None), bool, int, float, str, bytes})

    def __init__(self) -> None:
        self._names = dict(enumerate(_MAKERS))
        self._codes = {tag: code for code, tag in self._names.items()}
        self._encoder = msgpack.Encoder()
        self._decoder = msgpack.Decoder(ext_hook=self._hook)

    def _tagged(self, tag: str, parts: Any) -> Any:
        return msgpack.Ext(self._codes[tag], self._encoder.encode(parts))

    def _hook(self, code: int, data: memoryview) -> Any:
        return self._decoded(self._names.get(code, str(code)), self._decoder.decode(data))

    def encode(self, record: dict[str, Any]) -> bytes:
        try:
            return self._encoder.encode(self._record(record))
        except OverflowError:  # rare, so ints are not checked beforehand
            return self._encoder.encode(_WideMsgpack()._record(record))

    def decode(self, data: bytes) -> Any:
        return self._decoder.decode(data)


class _WideMsgpack(_Msgpack):
    """Gives a tag to ints of more than 64 bits."""

    known = _Msgpack.known - {int}


class _Json(_Values):
    """Uses Python's json, because its ``object_hook`` decodes tags without a second pass over the data."""

    known = frozenset({type(None), bool, str})

    def __init__(self) -> None:
        self._encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
        self._decoder = json.JSONDecoder(object_hook=self._hook)

    def _tagged(self, tag: str, parts: Any) -> Any:
        return {f"${tag}": parts}

    def _hook(self, value: dict[str, Any]) -> Any:
        if len(value) == 1:
            ((key, parts),) = value.items()
            if key[:1] == "$":
                return self._decoded(key[1:], parts)
        return value

    def encode(self, record: dict[str, Any]) -> bytes:
        return self._encoder.encode(self._record(record)).encode()

    def decode(self, data: bytes) -> Any:
        return self._decoder.decode(data.decode())


class _Pickle:
    """arq's own format, for producers and workers that know no other format."""

    @staticmethod
    def encode(record: dict[str, Any]) -> bytes:
        return pickle.dumps(record)

    @staticmethod
    def decode(data: bytes) -> Any:
        return pickle.loads(data)  # noqa: S301 - only if the settings ask for it


_FORMATS: dict[Format, Callable[[], _Msgpack | _Json | _Pickle]] = {
    "msgpack": _Msgpack,
    "json": _Json,
    "pickle": _Pickle,
}


_FIRST_BYTES = {0x80: "pickle", ord("{"): "json", **dict.fromkeys(range(0x81, 0x90), "msgpack")}


def _format_of(data: bytes) -> str:
    """Return the name of a payload's format, by its first byte. Jobs and results are maps of five to fifteen keys."""
    return _FIRST_BYTES.get(data[0], "in no known format") if data else "empty"


class Serializer:
    """arq's ``job_serializer`` and ``job_deserializer``, as ``dumps`` and ``loads``.

    :param format: the format; payloads in another format are refused
    :param signing_keys: the first key signs. Payloads signed with any of the keys are accepted, so that keys can be
        changed. If there is a key, payloads without a signature are refused. A signature does not show that a payload
        is new: anybody who can write to Redis can send a signed payload again
    :param max_bytes: the largest payload of a job; a result, which includes the job's arguments, may have twice as many
    """

    def __init__(
        self, format: Format = "msgpack", *, signing_keys: Iterable[str] = (), max_bytes: int = 1 << 20
    ) -> None:
        self.format = format
        codec = _FORMATS[format]()
        self._encode, self._decode = codec.encode, codec.decode
        self._keys = [hmac.digest(key.encode(), PURPOSE, "sha256") for key in signing_keys]
        self._max_bytes = max_bytes

    def dumps(self, record: dict[str, Any]) -> bytes:
        """Return a job or a result as bytes.

        Raises ``PayloadError`` if it contains a value that cannot be in a payload, or is too large. Other errors of the
        encoder are raised as they are: arq catches all of them.
        """
        data = self._encode(record)
        if self._keys:
            data = SIGNED + _sign(self._keys[0], data) + data
        if len(data) > self._max_bytes:
            self._check_size(len(data), "r" in record)
        return data

    def loads(self, data: bytes) -> dict[str, Any]:
        """Return the job or the result. It never runs code that the writer chose, unless the format is pickle.

        Raises ``PayloadError`` if it is refused, and other errors if it is damaged.
        """
        size = len(data)
        if size > self._max_bytes:
            self._check_size(size, True)
        if self._keys or data[:1] == SIGNED:
            data = self._verified(data)
        if (found := _format_of(data)) != self.format:
            what = "a pickle" if found == "pickle" else found
            raise PayloadError(f"payload is {what}, but WORKER_SERIALIZER is {self.format}")
        record: dict[str, Any] = self._decode(data)
        if size > self._max_bytes:
            self._check_size(size, "r" in record)
        record["a"] = tuple(record["a"])
        return record

    def _verified(self, data: bytes) -> bytes:
        """Return the payload without its signature. Raises ``PayloadError`` if that is missing or not valid."""
        if data[:1] != SIGNED:
            raise PayloadError("payload is not signed, but WORKER_SIGNING_KEY is set")
        if not self._keys:
            raise PayloadError("payload is signed, but WORKER_SIGNING_KEY is not set, so it cannot be checked")
        start = len(SIGNED) + DIGEST_BYTES
        digest, payload = data[len(SIGNED) : start], data[start:]
        if not any(hmac.compare_digest(digest, _sign(key, payload)) for key in self._keys):
            raise PayloadError("payload is signed with a key that is not in WORKER_SIGNING_KEY, or it was changed")
        return payload

    def _check_size(self, size: int, is_result: bool) -> None:
        limit = self._max_bytes * (2 if is_result else 1)
        if size > limit:
            what = f"result of {size:,} bytes, with the job's arguments," if is_result else f"payload of {size:,} bytes"
            twice = "twice " if is_result else ""
            raise PayloadError(f"{what} is larger than {limit:,} bytes, which is {twice}WORKER_MAX_PAYLOAD_BYTES")


def _sign(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")
