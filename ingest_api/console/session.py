"""Who looks at the console: a key, once typed, becomes a short-lived token in a cookie that no script can read."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request, Response

from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing, origin_of
from ingest_api.problems import Problem, fault
from ingest_api.request_body import read_body
from ingest_api.tokens import LONGEST_S, Tokens
from schemas.codes import Code
from schemas.scopes import Scope

ROOT = "/console"
COOKIE = "vlastream_console"
#: Tokens of the console open no REST route, and those of REST no page.
AUDIENCE = "vlastream-console"
#: After this a person logs in again.
SESSION_S = LONGEST_S
CSRF_FIELD = "csrf"
_LARGEST_FORM_BYTES = 16 * 1024
_MOST_FIELDS = 32
_FORM_TYPE = "application/x-www-form-urlencoded"
_OWN_PAGE = re.compile(rf"{ROOT}(/[A-Za-z0-9._~:-]+)*/?(\?[A-Za-z0-9._~:/?&=%+-]*)?", re.ASCII)


class SessionEnded(Problem):
    """There is no session, or no longer: the login page is the answer. had_one: a cookie was sent."""

    def __init__(self, *, had_one: bool) -> None:
        super().__init__(Code.UNAUTHENTICATED, "log in with a key of this installation")
        self.had_one = had_one


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks. key: with the scopes of the session. csrf: what each form of theirs has to repeat."""

    key: KeyRecord
    csrf: str
    #: An operator's `customer` parameter: the one customer that they want to see.
    asked_customer: str | None = None

    @property
    def is_operator(self) -> bool:
        return Scope.ADMIN in self.key.scopes

    @property
    def customer_id(self) -> str | None:
        """Whose data this person sees: their own customer's; an operator's choice, None: everybody's."""
        return self.asked_customer if self.is_operator else self.key.customer_id

    def may(self, scope: Scope) -> bool:
        return scope in self.key.scopes

    def require(self, scope: Scope) -> None:
        """Raises Problem 403."""
        if not self.may(scope):
            raise Problem(Code.FORBIDDEN, f"this takes a key with the scope {scope}; yours lacks it")


def console_tokens(secret: str) -> Tokens | None:
    """What makes and reads the tokens in cookies. They may carry every scope of their key; None without a secret."""
    return Tokens(secret, audience=AUDIENCE, scopes=tuple(Scope)) if secret else None


class Doorkeeper:
    """Opens and knows sessions. secret: of the installation's tokens; https_only: cookies go by TLS alone."""

    def __init__(self, keys: KeyRing, secret: str, *, https_only: bool) -> None:
        self._keys = keys
        self._secret = secret.encode()
        self._tokens = console_tokens(secret)
        self._https_only = https_only

    async def log_in(self, request: Request, key_text: str, response: Response) -> KeyRecord:
        """Set the cookie of a new session. Raises Problem as a REST route does for the same key."""
        if self._tokens is None:
            raise Problem(Code.UNAVAILABLE, "the console gives no sessions: its operator sets JWT_SECRET_KEY")
        text = re.sub(r"^bearer\s+", "", key_text.strip(), flags=re.IGNORECASE)
        if not text.startswith("vla_"):
            raise Problem(Code.UNAUTHENTICATED, "this is no key: a key begins with vla_")
        key = await self._keys.authenticate(f"Bearer {text}", None, origin=origin_of(request))
        scopes = tuple(scope for scope in Scope if scope in key.scopes)
        token, _ = self._tokens.issue(key.key_id, key.customer_id, scopes, SESSION_S)
        response.set_cookie(
            COOKIE,
            token,
            max_age=SESSION_S,
            path=ROOT,
            secure=self._https_only or request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return key

    @staticmethod
    def log_out(response: Response) -> None:
        response.delete_cookie(COOKIE, path=ROOT, httponly=True, samesite="strict")

    async def viewer(self, request: Request) -> Viewer:
        """Who makes this request. Raises SessionEnded, or Problem 503 while keys cannot be looked up."""
        token = request.cookies.get(COOKIE, "")
        claims = self._tokens.read(token) if self._tokens is not None and token else None
        if claims is None:
            raise SessionEnded(had_one=bool(token))
        try:
            key = await self._keys.of_claims(claims, None, origin=origin_of(request))
        except Problem as problem:
            if problem.code in (Code.UNAUTHENTICATED, Code.FORBIDDEN):
                raise SessionEnded(had_one=True) from problem
            raise
        asked = request.query_params.get("customer", "").strip()[:128].replace("\x00", "")
        return Viewer(key, self._csrf_of(token), asked or None)

    def _csrf_of(self, token: str) -> str:
        return hmac.new(self._secret, b"console form\0" + token.encode(), hashlib.sha256).hexdigest()


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form as a browser sends it. Raises Problem 400 for anything else, 413 for too much."""
    sent_as = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    raw = await read_body(request, _LARGEST_FORM_BYTES)
    try:
        if sent_as != _FORM_TYPE:
            raise ValueError
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), max_num_fields=_MOST_FIELDS,
            errors="strict",
        )  # fmt: skip
    except ValueError as error:
        raise Problem(Code.MALFORMED, f"a form is meant: {_FORM_TYPE}, at most {_MOST_FIELDS} fields") from error
    fields = dict(pairs)
    if len(fields) != len(pairs) or any("\x00" in text for pair in pairs for text in pair):
        raise Problem(Code.MALFORMED, "a field of this form came twice, or holds the character NUL")
    return fields


def check_same_origin(request: Request) -> None:
    """Raises Problem 403 for a form that a page of somebody else sends, or that does not say whose it is."""
    fetch_site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    told = fetch_site is not None or origin is not None
    from_here = fetch_site in (None, "same-origin") and (
        origin is None or _host_of(origin) == request.headers.get("host")
    )
    if not (told and from_here):
        raise Problem(Code.FORBIDDEN, "this form did not come from a page of this console: open the page, try again")


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def check_form(request: Request, viewer: Viewer, form: Mapping[str, str]) -> None:
    """Raises Problem 403 for a form that was not given to this very session."""
    check_same_origin(request)
    if not hmac.compare_digest(form.get(CSRF_FIELD, "").encode(), viewer.csrf.encode()):
        detail = "this form belongs to another session: open the page again, then send it"
        raise Problem(Code.FORBIDDEN, detail, violations=[fault(CSRF_FIELD, "foreign", detail)])


def own_page(path: str) -> str:
    """A path to go on to after the login: one of the console's own pages, else its first."""
    return path if _OWN_PAGE.fullmatch(path) and ".." not in path else ROOT
