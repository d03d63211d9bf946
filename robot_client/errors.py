"""What a robot may get instead of actions. In each case it applies the hold rule (robot_client/hold.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason of a refusal: which field, a short code, and a sentence that says what to do."""

    field: str
    reason: str
    detail: str = ""


class RobotClientError(Exception):
    """Root of what `infer` raises for a request; `request_id` names it in rows and replies."""

    def __init__(self, message: str, *, request_id: str) -> None:
        super().__init__(message)
        self.request_id = request_id


class Refused(RobotClientError):
    """The service answered, and the answer is no.

    `code` and `status` are those of schemas/codes.py on every transport. `recorded` says that the refusal is
    the request's outcome: the same request id only gets it again, so what follows needs a fresh one.
    `retry_after_s` is 0 where waiting does not help.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int,
        request_id: str,
        violations: tuple[Violation, ...] = (),
        recorded: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.code = code
        self.status = status
        self.violations = violations
        self.recorded = recorded
        self.retry_after_s = retry_after_s


class Late(RobotClientError):
    """The deadline has passed: the observation is stale, and actions made from it must not be executed."""


class Unreachable(RobotClientError):
    """No attempt reached the service before the deadline."""


class AttemptFailed(Exception):
    """One attempt of a transport came to nothing, and the same request may be sent again.

    `refusal` is set where the service itself asked for another try, `retry_after_s` where it said when.
    `timed_out` tells an attempt without an answer from one that never reached the service.
    """

    def __init__(
        self,
        message: str,
        *,
        refusal: Refused | None = None,
        retry_after_s: float | None = None,
        timed_out: bool = False,
    ) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.retry_after_s = retry_after_s
        self.timed_out = timed_out
