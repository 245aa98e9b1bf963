"""Payloads that carry values and no code.

arq pickles what it sends, and to load a pickle is to run what its writer chose: whoever can write to Redis would own
every worker. A ``Serializer`` takes pickle's place::

    serializer = Serializer()
    redis = await create_pool(…, job_serializer=serializer.dumps, job_deserializer=serializer.loads)

This file needs msgspec and nothing else, so that another code base can copy it.

It carries None, bool, int of any size, float, str, bytes, list, tuple, dict, set, frozenset, datetime, date, time,
timedelta, UUID, Decimal, exceptions, and the dataclasses and enums that were registered. Each comes back as what it
was, save that a time zone becomes its offset. What is none of these, a subclass of one included, is refused when it is
sent: a value that quietly comes back as another type is worse than an error.
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

MAX_TRACEBACK = 16_384  #: characters of it that go with an exception, its end
SIGNED = b"S"  #: the first byte of what is signed; the signature follows, then the payload
DIGEST_BYTES = 32
PURPOSE = b"arq payload"  #: no signature that was made with the same key for something else is good here


class PayloadError(ValueError):
    """A value cannot be carried, or a payload is refused; the text says why."""


class RemoteError(Exception):
    """Stands for an exception whose class is not known here, or cannot be made of its arguments.

    :param kind: the class's full name
    :param text: what the exception said
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
    """Class decorator: have payloads carry a dataclass, by its ``__init__`` fields, or an enum, by its members' names.

    Producers and workers each register a class of the same (qualified) name; it need not be in the same module.

    Only registered classes are made, since to make an object is to run its class's code with a stranger's values
    (``__post_init__``, and later ``__eq__``, ``__del__``, …), and among all the classes of a process are some that
    delete files or open connections so. Who registers a class says that it takes any values.

    Raises ``TypeError`` for other classes, ``ValueError`` where the name is taken.
    """
    if not (is_dataclass(cls) or issubclass(cls, Enum)):
        raise TypeError(f"{cls.__qualname__} is neither a dataclass nor an enum")
    known = _registered.setdefault(cls.__qualname__, cls)
    if known.__module__ != cls.__module__:
        raise ValueError(f"there is a registered class {cls.__qualname__} already, in {known.__module__}")
    _registered[cls.__qualname__] = cls
    return cls


def _take_apart(value: Any) -> list[Any]:
    cls = type(value)
    name = cls.__qualname__
    if _registered.get(name) is not cls:
        how = ": register it" if is_dataclass(value) or isinstance(value, Enum) else ""
        raise PayloadError(f"a {cls.__module__}.{name} cannot be carried{how}")
    if not isinstance(value, Enum):
        return [name, {field.name: getattr(value, field.name) for field in fields(value) if field.init}]
    if cls.__members__.get(value.name) is not value:  # a flag that several make up
        raise PayloadError(f"{value!r} cannot be carried: it is no single member")
    return [name, value.name]


def _put_together(parts: list[Any]) -> Any:
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


def _take_error_apart(error: BaseException, plain: Callable[[Any], Any]) -> list[Any]:
    cls = type(error)
    trace = "".join(traceback.format_exception(error)) if error.__traceback__ or error.__cause__ else ""
    return [cls.__module__, cls.__qualname__, _arguments(error, plain), _text(error), trace[-MAX_TRACEBACK:]]


def _arguments(error: BaseException, plain: Callable[[Any], Any]) -> Any:
    """Return what the other side makes the exception of, None where it would not say there what it says here."""
    cls = type(error)
    # Not `args`, which lacks an OSError's file name.
    for args in (_builtin_base(cls).__reduce__(error)[1], (_text(error),)):
        try:
            made = _made_error(cls, args)
            if repr(made) and str(made) == str(error):
                return plain(list(args))
        except Exception:  # noqa: S112 - any of a stranger's class; the text goes in any case
            continue
    return None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<str() of a {type(error).__qualname__} failed>"


def _put_error_together(parts: list[Any]) -> BaseException:
    """Make an exception, or a ``RemoteError`` where its class is not here.

    Its class has to be here already: an import would run a module of the writer's choice. Only what arq raises again
    is made: a SystemExit would end the producer.
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
    """Make an exception without running any code but the built-in exceptions' own: it has its ``args``, and of
    attributes what the built-in class that it comes of makes of them. Raises ``TypeError`` where they do not fit."""
    base: Any = _builtin_base(cls)
    error: BaseException = base.__new__(cls, *args)
    base.__init__(error, *args)
    return error


def _loaded_class(module_name: str, qualified_name: str) -> type | None:
    """Look a class up and run no code: what a module has may be anything, a proxy that loads when it is touched say."""
    module = sys.modules.get(module_name)
    if type(module) is not ModuleType:  # a lazy one
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
    if offset and abs(offset) < timedelta(seconds=1):  # CPython reads it as none
        raise PayloadError(f"{value!r} cannot be carried: its offset is less than a second")
    return value.isoformat()


#: For each type that a format may lack: what it is taken apart into, and how it is put together. The order is the wire
#: format's. Nothing here allocates more than in proportion to what it is given: `bytes(10**12)`, say, would.
_PARTS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    tuple: (list, tuple),
    dict: (lambda value: [[key, item] for key, item in value.items()], dict),
    set: (list, set),
    frozenset: (list, frozenset),
    int: (hex, lambda text: int(text, 16)),  # unlike decimals, in linear time
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
_MAKERS: dict[str, Callable[[Any], Any]] = {"error": _put_error_together, "registered": _put_together}
_MAKERS |= {_TAGS[cls]: make for cls, (_, make) in _PARTS.items()}
_INT64 = 1 << 63
_STR = frozenset({str})


class _Values(ABC):
    """A format that carries values: it knows some types, and the others are tagged."""

    known: frozenset[type] = frozenset()

    @abstractmethod
    def _tagged(self, tag: str, parts: Any) -> Any:
        """Return what stands for a value of no known type."""

    def _record(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a job or a result made of nothing but what the format knows.

        Arguments (``a``) are known to be a tuple, and of the rest only they and ``k`` and ``r`` are not arq's own.
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
        # A single key that begins with $ is how JSON has tags.
        if cls is dict and _STR.issuperset(map(type, value)) and not (len(value) == 1 and next(iter(value))[:1] == "$"):
            return {key: item if type(item) in known else plain(item) for key, item in value.items()}
        if (cls is int and -_INT64 <= value < _INT64) or (cls is float and isfinite(value)):
            return value
        if parts := _PARTS.get(cls):
            return self._tagged(_TAGS[cls], plain(parts[0](value)))
        if isinstance(value, BaseException) and _registered.get(cls.__qualname__) is not cls:
            return self._tagged("error", _take_error_apart(value, plain))
        return self._tagged("registered", plain(_take_apart(value)))

    @staticmethod
    def _made(tag: str, parts: Any) -> Any:
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
        return self._made(self._names.get(code, str(code)), self._decoder.decode(data))

    def encode(self, record: dict[str, Any]) -> bytes:
        try:
            return self._encoder.encode(self._record(record))
        except OverflowError:  # rare, so that by default not every int has to be looked at
            return self._encoder.encode(_WideMsgpack()._record(record))

    def decode(self, data: bytes) -> Any:
        return self._decoder.decode(data)


class _WideMsgpack(_Msgpack):
    """Tags ints beyond 64 bits."""

    known = _Msgpack.known - {int}


class _Json(_Values):
    """Python's own json, since it calls back for each object, which spares a walk through all that was decoded."""

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
                return self._made(key[1:], parts)
        return value

    def encode(self, record: dict[str, Any]) -> bytes:
        return self._encoder.encode(self._record(record)).encode()

    def decode(self, data: bytes) -> Any:
        return self._decoder.decode(data.decode())


class _Pickle:
    """arq's own format, for producers and workers that know no other."""

    @staticmethod
    def encode(record: dict[str, Any]) -> bytes:
        return pickle.dumps(record)

    @staticmethod
    def decode(data: bytes) -> Any:
        return pickle.loads(data)  # noqa: S301 - asked for by name


_FORMATS: dict[Format, Callable[[], _Msgpack | _Json | _Pickle]] = {
    "msgpack": _Msgpack,
    "json": _Json,
    "pickle": _Pickle,
}


_FIRST_BYTES = {0x80: "pickle", ord("{"): "json", **dict.fromkeys(range(0x81, 0x90), "msgpack")}


def _format_of(data: bytes) -> str:
    """Tell formats apart by the first byte: what arq sends is a map of five to fifteen entries."""
    return _FIRST_BYTES.get(data[0], "in no known format") if data else "empty"


class Serializer:
    """arq's ``job_serializer`` and ``job_deserializer``, as ``dumps`` and ``loads``.

    :param format: how values are written; whatever comes in another format is refused, not loaded
    :param signing_keys: the first signs what is sent, and each of them is good for what comes in, so that keys can be
        changed; where there is one, nothing unsigned is taken. A signature says who wrote a payload, not that
        it is new: what was signed once can be sent again by who can write to Redis
    :param max_bytes: of a job's payload; a result is stored with the payload it came of, and may have twice as many
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
        """Return a job or a result as bytes. Raises ``PayloadError`` where it holds what cannot be carried, or is
        too large; other errors of encoding pass as they are, as arq catches them all."""
        data = self._encode(record)
        if self._keys:
            data = SIGNED + _sign(self._keys[0], data) + data
        if len(data) > self._max_bytes:
            self._check_size(len(data), "r" in record)
        return data

    def loads(self, data: bytes) -> dict[str, Any]:
        """Return the job or the result. Raises ``PayloadError`` where it is refused, other errors where it is
        damaged; whatever it holds, no code of its writer's choice runs, unless the format is pickle."""
        size = len(data)
        if size > self._max_bytes:
            self._check_size(size, True)
        if self._keys or data[:1] == SIGNED:
            data = self._verified(data)
        if (found := _format_of(data)) != self.format:
            what = "a pickle" if found == "pickle" else found
            raise PayloadError(f"payload is {what}, WORKER_SERIALIZER is {self.format}")
        record: dict[str, Any] = self._decode(data)
        if size > self._max_bytes:
            self._check_size(size, "r" in record)
        record["a"] = tuple(record["a"])
        return record

    def _verified(self, data: bytes) -> bytes:
        """Return what is signed. Raises ``PayloadError`` where it is not, or by no key of ours."""
        if data[:1] != SIGNED:
            raise PayloadError("payload is not signed, though there is a WORKER_SIGNING_KEY")
        if not self._keys:
            raise PayloadError("payload is signed, but there is no WORKER_SIGNING_KEY to check it by")
        start = len(SIGNED) + DIGEST_BYTES
        digest, payload = data[len(SIGNED) : start], data[start:]
        if not any(hmac.compare_digest(digest, _sign(key, payload)) for key in self._keys):
            raise PayloadError("payload is signed with another key than WORKER_SIGNING_KEY, or was changed")
        return payload

    def _check_size(self, size: int, is_result: bool) -> None:
        limit = self._max_bytes * (2 if is_result else 1)
        if size > limit:
            what = f"result of {size:,} bytes, with the job's arguments," if is_result else f"payload of {size:,} bytes"
            twice = "twice " if is_result else ""
            raise PayloadError(f"{what} is larger than {limit:,}, {twice}WORKER_MAX_PAYLOAD_BYTES")


def _sign(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")
