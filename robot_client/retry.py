"""When an attempt that came to nothing is repeated, and how long each one may take. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from robot_client.errors import AttemptFailed, Refused

#: Refusals after which the same request may be sent again, unless they are its recorded outcome.
RETRIED_STATUSES = frozenset({429, 502, 503})


def refuse(refusal: Refused) -> AttemptFailed | Refused:
    """What a transport raises for a refusal: AttemptFailed where another attempt may go better."""
    if refusal.status in RETRIED_STATUSES and not refusal.recorded:
        return AttemptFailed(str(refusal), refusal=refusal, retry_after_s=refusal.retry_after_s or None)
    return refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """Every retry repeats the same request under the same id, so the service tells it from a new request.

    attempt_share: the part of the time that is left which one attempt may take, so that a lost answer leaves
    time for another; below `whole_below_s` seconds an attempt takes all that is left.
    first_pause_s doubles up to longest_pause_s between attempts for which the service named no time.
    """

    attempt_share: float = 0.7
    whole_below_s: float = 0.7
    first_pause_s: float = 0.02
    longest_pause_s: float = 0.5

    def attempt_s(self, left_s: float) -> float:
        """Seconds that an attempt may take when `left_s` are left, at least 0."""
        left_s = max(left_s, 0.0)
        return left_s if left_s < self.whole_below_s else left_s * self.attempt_share

    def pause_s(self, attempt: int, retry_after_s: float | None, left_s: float) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1); None: the deadline allows no other."""
        grown = self.first_pause_s * 2 ** min(attempt - 1, 16)
        pause = min(grown, self.longest_pause_s) if retry_after_s is None else max(retry_after_s, 0.0)
        return pause if pause < left_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """How long to wait before connecting again: doubled with each failure, and never twice the same for many robots."""

    first_s: float = 0.05
    longest_s: float = 2.0

    def pause_s(self, failures: int, *, lot: float) -> float:
        """Seconds after `failures` failures in a row. lot: drawn from 0..1, so that a fleet does not come at once."""
        if failures < 1:
            return 0.0
        return min(self.first_s * 2.0 ** min(failures - 1, 16), self.longest_s) * (0.5 + 0.5 * lot)
