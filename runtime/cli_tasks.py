"""How commands run: their code is imported when it is needed, and our own errors are told in one line."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any, cast

import click

from runtime.errors import EXIT_CONFIG, EXIT_FATAL, Unavailable, VlastreamError

#: What to do where a server is away and the error does not say it.
_AWAY = "\n`vlastream config show` has the address that was tried; an embedded stack is used from its folder alone"

#: The extra that a package's dependencies come with.
_EXTRAS = {
    "ingest_api": "api",
    "stream_agents": "agents",
    "gpu_consumers": "gpu",
    "sinks": "sinks",
    "benchmarks": "bench",
}


def load(target: str) -> Callable[..., Any]:
    """The function named `module:function`. A missing package becomes a sentence that names the extra."""
    module, _, function = target.partition(":")
    try:
        return cast(Callable[..., Any], getattr(importlib.import_module(module), function))
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] == package and package not in ("examples", "benchmarks"):
            raise  # a module of ours that is missing is a fault of ours, not a package to install
        raise click.ClickException(
            f"{error.name} is not installed: install vlastream[{_EXTRAS.get(package, 'local')}], "
            "or run `make setup` in the repository"
        ) from error


def _settings(role: str) -> Any:
    from runtime.error_reports import configure_error_reports
    from runtime.logs import configure_logging
    from runtime.settings import load_settings

    try:
        settings = load_settings()
    except VlastreamError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_CONFIG)
    configure_logging(
        level=settings.effective_log_level, log_format=settings.log_format, role=role, instance=settings.role_instance
    )
    try:
        configure_error_reports(settings, role)
    except VlastreamError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_CONFIG)
    return settings


def run_role(role: str, target: str) -> None:
    try:
        sys.exit(load(target)(_settings(role)))
    except VlastreamError as error:
        # Before it had anything to close; the supervisor starts it again.
        logging.getLogger(__name__).critical("%s", error, extra={"action": "fail"})
        sys.exit(EXIT_FATAL)


def run_task(target: str, *args: Any, **kwargs: Any) -> Any:
    """Run a one-shot task with settings; our own errors are told in one line."""
    settings = _settings("cli")
    try:
        return load(target)(settings, *args, **kwargs)
    except Unavailable as error:
        hint = _AWAY if "answer" in str(error) else ""
        raise click.ClickException(f"{error}{hint}") from error
    except VlastreamError as error:
        raise click.ClickException(str(error)) from error


class InOrder(click.Group):
    """Lists commands in the order in which they are declared, which is that of the flow."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)
