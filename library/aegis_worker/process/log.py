"""Logs on standard output: text for people, or JSON for log collectors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from aegis_worker.settings import Settings
from aegis_worker.text import visible


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def setup(settings: Settings, fields: Callable[[], Mapping[str, object]] = dict) -> None:
    """Log everything from ``LOG_LEVEL`` up in ``LOG_FORMAT``.

    :param fields: called for each line; returns the fields that each line contains
    """

    def add_fields(record: logging.LogRecord) -> bool:
        extra = fields()
        record.__dict__.update(extra)
        record.fields = "".join(f" {name}={visible(str(value), keep='')}" for name, value in extra.items())
        return True

    formatter: logging.Formatter
    if settings.LOG_FORMAT == "json":
        formatter = JsonFormatter(
            "%(levelname)s %(name)s %(message)s",
            timestamp=True,
            rename_fields={"levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, "fields"],
        )
    else:
        formatter = _Visible("%(asctime)s %(levelname)-7s %(message)s%(fields)s", "%H:%M:%S")
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(add_fields)
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.LOG_LEVEL, handlers=[handler], force=True)
    # By default this client logs a line for each request. The log of a worker is about jobs.
    logging.getLogger("httpx").setLevel(logging.WARNING)
