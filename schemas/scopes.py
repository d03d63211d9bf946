"""What a key may be allowed to do. Pure; every route names the one that it takes."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """The value stands in keys, tokens and the OpenAPI document."""

    #: Ask for actions and have actions judged.
    INFERENCE = "inference"
    #: See what became of one's own requests, and what was used.
    READ = "read"
    #: Stop and resume one's own robots.
    CONTROL = "control"
    #: Say what may be kept, and what is true of episodes and answers.
    DATA = "data"
    #: Make, change and revoke keys of one's own customer.
    KEYS = "keys"
    #: Everything of everybody: customers, their tiers and limits, the whole audit log.
    ADMIN = "admin"


#: What a customer's key may do where nothing else is said.
DEFAULT_SCOPES = (Scope.INFERENCE, Scope.READ, Scope.CONTROL, Scope.DATA, Scope.KEYS)
#: What a short-lived token may carry: whoever steals one must not be able to make a lasting key of it.
TOKEN_SCOPES = (Scope.INFERENCE, Scope.READ, Scope.CONTROL, Scope.DATA)
