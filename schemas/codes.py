"""Refusal codes and the HTTP status that each one carries on every transport."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Why a request ended without actions. The value stands in replies, rows, metrics and problem documents."""

    MALFORMED = "malformed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNKNOWN_MODEL = "unknown_model"
    TOO_LARGE = "too_large"
    SLOW_CLIENT = "slow_client"
    UNDECODABLE = "undecodable"
    INVALID_REQUEST = "invalid_request"
    INVALID_INSTRUCTION = "invalid_instruction"
    INVALID_IMAGE = "invalid_image"
    INVALID_STATE = "invalid_state"
    INVALID_ROBOT_TYPE = "invalid_robot_type"
    EMBODIMENT_MISMATCH = "embodiment_mismatch"
    DUPLICATE = "duplicate"
    REQUEST_ID_REUSED = "request_id_reused"
    STOPPED = "stopped"
    QUOTA = "quota_exceeded"
    OVERLOADED = "overloaded"
    NO_WORKER = "no_live_worker"
    UNAVAILABLE = "unavailable"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    POLICY_REFUSED = "policy_refused"
    POLICY_FAILED = "policy_failed"
    UNSAFE_ACTION = "unsafe_action"
    TIMEOUT = "timeout"
    INTERNAL = "internal"


#: HTTP status of each code.
STATUS: dict[Code, int] = {
    Code.MALFORMED: 400,
    Code.UNAUTHENTICATED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.METHOD_NOT_ALLOWED: 405,
    Code.UNKNOWN_MODEL: 404,
    Code.TOO_LARGE: 413,
    Code.SLOW_CLIENT: 408,
    Code.UNDECODABLE: 400,
    Code.INVALID_REQUEST: 422,
    Code.INVALID_INSTRUCTION: 422,
    Code.INVALID_IMAGE: 422,
    Code.INVALID_STATE: 422,
    Code.INVALID_ROBOT_TYPE: 422,
    Code.EMBODIMENT_MISMATCH: 422,
    Code.DUPLICATE: 422,
    Code.REQUEST_ID_REUSED: 422,
    Code.STOPPED: 423,
    Code.QUOTA: 429,
    Code.OVERLOADED: 503,
    Code.NO_WORKER: 503,
    Code.UNAVAILABLE: 503,
    Code.EXPIRED: 504,
    Code.SUPERSEDED: 409,
    Code.POLICY_REFUSED: 422,
    Code.POLICY_FAILED: 500,
    Code.UNSAFE_ACTION: 422,
    Code.TIMEOUT: 504,
    Code.INTERNAL: 500,
}


def status_of(code: str) -> int:
    """HTTP status of a code; 500 for one that this version does not know."""
    try:
        return STATUS[Code(code)]
    except ValueError:
        return 500
