"""/v1/customers/{customer_id}: what a customer allows to be kept, and the end of what was kept. Its own only."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import select

from ingest_api import openapi
from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing, origin_of
from ingest_api.problems import Problem, fault
from ingest_api.publishing import ACK_TIMEOUT_S
from ingest_api.query import Moment
from ingest_api.reading import Reader, Row, answer, read
from ingest_api.request_body import Body, parse_body, read_body
from runtime.consent import ConsentList, next_consent, publish_consent
from runtime.data_tables import consent_audit, erasures
from runtime.publisher import PublisherPort
from schemas.codes import Code
from schemas.messages import Consent
from schemas.scopes import Scope
from schemas.topics import Topic

#: Stands for the key's own customer in a path.
ME = "me"
_LARGEST_BODY_BYTES = 16 * 1024
_MOST_CHANGES = 500
_EXAMPLE = {"tier": "full", "expires_at": "2099-01-31T00:00:00Z"}
_AUDIT = ("action", "tier", "version", "expires_at", "anonymization_level", "who", "origin", "changed_at")
#: Of the topics that hold requests, or what was made of them: fields of a person may lie there until they end.
_WITH_CONTENT = ("InferenceRequest", "Completion", "Outcome", "Embedding", "Feedback", "EpisodeEvent")


class ConsentBody(Body):
    """What may be kept from now on. none: what operation needs; metadata: no pixels; full: training use as well."""

    tier: Literal["none", "metadata", "full"]
    expires_at: Moment | None = Field(default=None, description="from then on it counts as none; null: never")
    anonymization_level: Literal["none", "partial", "full"] | None = Field(
        default=None, description="more than is set for the installation; less is not possible"
    )


class ConsentRoutes:
    """topics: declared ones, for what the log still holds after an erasure."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        publisher: PublisherPort,
        reader: Reader,
        consents: ConsentList,
        topics: list[Topic],
        timeout_s: float = ACK_TIMEOUT_S,
    ) -> None:
        self._keys = keys
        self._publisher = publisher
        self._reader = reader
        self._consents = consents
        self._topics = [topic for topic in topics if topic.message in _WITH_CONTENT]
        self._timeout_s = timeout_s

    async def get(self, request: Request, customer_id: str) -> Response:
        key = await self._own(request, customer_id)
        return answer(self.now(key.customer_id))

    async def put(self, request: Request, customer_id: str) -> Response:
        """200 once the broker has it; it holds for requests from 5 seconds on."""
        key = await self._own(request, customer_id)
        body = parse_body(await read_body(request, _LARGEST_BODY_BYTES), ConsentBody)
        return answer(await self.allow(body, key, origin_of(request)))

    async def history(self, request: Request, customer_id: str) -> Response:
        key = await self._own(request, customer_id)
        return answer({"changes": await self.changes(key.customer_id)})

    async def erase(self, request: Request, customer_id: str) -> Response:
        """202 once the broker has it: from then on nothing older is written, and the role `etl` removes what is."""
        key = await self._own(request, customer_id)
        return answer(await self.end_all(key, origin_of(request)), status=202)

    async def erased(self, request: Request, customer_id: str) -> Response:
        key = await self._own(request, customer_id)
        return answer(await self.erasure(key.customer_id))

    def now(self, customer_id: str) -> Row:
        """What a customer allows at this moment."""
        return self._said(customer_id, self._consents.of(customer_id))

    async def allow(self, body: ConsentBody, key: KeyRecord, origin: str) -> Row:
        """What the customer of a key allows from now on, once the broker has it. Raises Problem."""
        consent = next_consent(
            self._consents.of(key.customer_id),
            key.customer_id,
            tier=body.tier,
            expires_at_ms=round(body.expires_at.timestamp() * 1000) if body.expires_at is not None else 0,
            anonymization=body.anonymization_level or "",
            who=f"key {key.key_id}",
            origin=origin,
            now_ms=_now_ms(),
        )
        if 0 < consent.expires_at_ms <= consent.at_ms or consent.expires_at_ms < 0:
            detail = "expires_at lies in the past: leave it out, or set tier none"
            raise Problem(Code.MALFORMED, detail, violations=[fault("expires_at", "past", detail)])
        await self._publish(consent)
        return self._said(key.customer_id, consent)

    async def changes(self, customer_id: str) -> list[Row]:
        """Every change, newest first."""
        audit = consent_audit.c
        query = (
            select(*(audit[name] for name in _AUDIT))
            .where(audit.customer_id == customer_id)
            .order_by(audit.log_offset.desc())
            .limit(_MOST_CHANGES)
        )
        return await read(self._reader, query)

    async def end_all(self, key: KeyRecord, origin: str) -> Row:
        """Erase what is kept of the key's customer up to now. Returns once the broker has it."""
        consent = next_consent(
            self._consents.of(key.customer_id),
            key.customer_id,
            erase=True,
            who=f"key {key.key_id}",
            origin=origin,
            now_ms=_now_ms(),
        )
        await self._publish(consent)
        return {**await self.erasure(key.customer_id), "asked_before": _moment(consent.erased_before_ms)}

    async def erasure(self, customer_id: str) -> Row:
        """How far the newest erasure is, and what the log still holds of everybody for how long."""
        rows = await read(self._reader, select(erasures).where(erasures.c.customer_id == customer_id))
        found: Row = rows[0] if rows else {"state": "none", "erased_before": None, "removed": None, "finished_at": None}
        return {
            "customer_id": customer_id,
            **{name: found[name] for name in ("state", "erased_before", "removed", "finished_at")},
            "kafka": [{"topic": t.name, "kept_for_s": t.retention_ms // 1000} for t in self._topics if t.retention_ms],
        }

    async def _own(self, request: Request, customer_id: str) -> KeyRecord:
        key = await self._keys.of(request)
        if customer_id not in (ME, key.customer_id):
            raise Problem(Code.NOT_FOUND, f"this key belongs to another customer: use its own id, or `{ME}`")
        return key

    async def _publish(self, consent: Consent) -> None:
        try:
            await asyncio.wait_for(publish_consent(self._publisher, consent), self._timeout_s)
        except TimeoutError as error:
            detail = "Kafka has not confirmed the record: send it again"
            raise Problem(Code.UNAVAILABLE, detail, retry_after_s=1.0) from error
        # The next word builds on this one, also where the log has not been heard yet.
        self._consents.published(consent)

    def _said(self, customer_id: str, consent: Consent | None) -> Row:
        """What holds now, by the newest record."""
        now_ms = _now_ms()
        probe = ConsentList("none", "none")
        if consent is not None:
            probe.update(customer_id.encode(), consent.SerializeToString(), 0)
        tier = probe.tier(customer_id, now_ms) if consent is not None else self._consents.tier(customer_id, now_ms)
        return {
            "customer_id": customer_id,
            "tier": tier,
            "version": consent.version if consent is not None else 0,
            "consented_at": _moment(consent.consented_at_ms) if consent is not None else None,
            "expires_at": _moment(consent.expires_at_ms) if consent is not None and consent.expires_at_ms else None,
            "anonymization_level": self._consents.level(customer_id),
            "can_store_embeddings": tier != "none",
            "can_store_images": tier == "full",
            "can_use_for_training": tier == "full",
        }


def build_router(routes: ConsentRoutes) -> APIRouter:
    router = APIRouter(tags=["your data"])
    base = "/v1/customers/{customer_id}"
    said = openapi.json_answer("Consent", "what holds")
    add: Any = router.add_api_route
    plain: dict[str, Any] = {"response_class": Response, "openapi_extra": openapi.secured(Scope.READ)}
    refusals = openapi.problems(400, 401, 403, 404, 503)
    add(f"{base}/consent", routes.get, methods=["GET"], summary="What may be kept", responses=said | refusals, **plain)
    add(
        f"{base}/consent",
        routes.put,
        methods=["PUT"],
        summary="Say what may be kept",
        response_class=Response,
        responses={**said, **refusals, **openapi.problems(413)},
        openapi_extra=openapi.json_body("ConsentBody", Scope.DATA, _EXAMPLE),
    )
    add(
        f"{base}/consent/history",
        routes.history,
        methods=["GET"],
        summary="Every change, newest first",
        responses=openapi.json_answer("ConsentHistory", "the changes") | refusals,
        **plain,
    )
    erasure = openapi.json_answer("Erasure", "how far it is")
    add(f"{base}/data", routes.erased, methods=["GET"], summary="An erasure", responses=erasure | refusals, **plain)
    add(
        f"{base}/data",
        routes.erase,
        methods=["DELETE"],
        summary="Erase what is kept of you up to now",
        status_code=202,
        responses={202: erasure[200], **refusals},
        response_class=Response,
        openapi_extra=openapi.secured(Scope.DATA),
    )
    return router


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()


def _now_ms() -> int:
    return round(time.time() * 1000)
