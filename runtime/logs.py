"""Structured logs: one sentence a line, with `action`, `request_id`, `robot_id`, `trace_id` as fields of their own."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

_FIELDS = ("action", "request_id", "robot_id", "trace_id", "deployment", "topic", "partition", "offset", "reason")


def _plain(text: str) -> str:
    """Without what would start a line of its own or move the cursor: text that came from outside may hold it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields = " ".join(f"{name}={_plain(str(getattr(record, name)))}" for name in _FIELDS if hasattr(record, name))
        return f"{line} {fields}" if fields else line

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return _plain(super().formatMessage(record))


def configure_logging(*, level: str, log_format: Literal["json", "text"], role: str, instance: int = 0) -> None:
    """Send every logger of this process to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                static_fields={"role": role, "instance": instance},
            )
        )
    else:
        handler.setFormatter(_TextFormatter(f"%(asctime)s %(levelname)s {role}-{instance} %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # These log every request, every fetch or every plugin at INFO.
    quiet = ("aiokafka", "httpx", "httpcore", "uvicorn.access", "botocore", "faust", "mode", "alembic.runtime.plugins")
    for chatty in quiet:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
