"""Exceptions are decisions: what a stage does with the record that it is working on."""

from __future__ import annotations


class VlastreamError(Exception):
    """Root of the taxonomy. The message says what is wrong and what to do."""


class Retry(VlastreamError):
    """Try the same record again after `after_s` seconds, in place, as long as its deadline allows."""

    def __init__(self, message: str, after_s: float = 0.1) -> None:
        super().__init__(message)
        self.after_s = after_s


class Reject(VlastreamError):
    """The request ends here with a refusal that its robot gets to see."""

    def __init__(self, code: str, message: str, *, field: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.retry_after_s = retry_after_s


class Poison(VlastreamError):
    """The record can never be processed: it goes to the dead letter topic and the stage goes on."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Overloaded(VlastreamError):
    """No room now: 429 or 503 with Retry-After."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(VlastreamError):
    """A server that this needs cannot be reached: 503 with Retry-After."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


#: Exit status of a process that ended on Fatal (BSD sysexits EX_SOFTWARE).
EXIT_FATAL = 70
#: Exit status of a process whose settings cannot be used (BSD sysexits EX_CONFIG).
EXIT_CONFIG = 78
#: Exit status of a process whose device is sick (BSD sysexits EX_UNAVAILABLE): starting it again at once is of no use.
EXIT_DEVICE = 69


class Fatal(VlastreamError):
    """This process cannot go on. It exits, and its supervisor starts it again."""

    exit_status = EXIT_FATAL


class DeviceFault(Fatal):
    """The device must not serve any more. What was in work is read again by others."""

    exit_status = EXIT_DEVICE
