"""Errors to Sentry, where SENTRY_DSN is set (extra `sentry`): what the logs hold at ERROR and above, no more."""

from __future__ import annotations

import logging

from runtime.errors import Fatal
from runtime.settings import Settings

_TIMEOUT_S = 2


def configure_error_reports(settings: Settings, role: str) -> None:
    """Report this process's errors from now on. Raises Fatal where that is asked for and not installed.

    No local variables, no request bodies, no headers leave this process: they hold keys and customers' data.
    """
    dsn = settings.sentry_dsn.get_secret_value()
    if not dsn:
        return
    try:
        import sentry_sdk
        from sentry_sdk.integrations.atexit import AtexitIntegration
        from sentry_sdk.integrations.excepthook import ExcepthookIntegration
        from sentry_sdk.integrations.logging import LoggingIntegration
        from sentry_sdk.integrations.threading import ThreadingIntegration
    except ModuleNotFoundError as error:
        raise Fatal(f"{error.name} is not installed: install vlastream[sentry], or unset SENTRY_DSN") from error
    sentry_sdk.init(
        dsn=dsn,
        environment=settings.environment,
        server_name=f"{role}-{settings.role_instance}",
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[
            LoggingIntegration(level=None, event_level=logging.ERROR),
            AtexitIntegration(callback=lambda pending, timeout: None),
            ExcepthookIntegration(),
            ThreadingIntegration(),
        ],
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        send_default_pii=False,
        max_breadcrumbs=0,
        shutdown_timeout=_TIMEOUT_S,
    )
    sentry_sdk.set_tag("role", role)
