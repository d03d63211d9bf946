"""POST /v1/inference: a body becomes a request, its outcome becomes the answer."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import Request, Response

from ingest_api.admission import Slot
from ingest_api.answers import chunk_document
from ingest_api.exchange import Case, Exchange
from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing
from ingest_api.replies import Reply
from ingest_api.request_body import InferenceBody, announced_bytes, build_request, parse_body, read_body
from runtime.errors import VlastreamError
from runtime.settings import Settings

#: nginx's status for a client that left before its answer; nobody reads it.
CLIENT_CLOSED_REQUEST = 499


class InferenceRoute:
    def __init__(self, *, settings: Settings, keys: KeyRing, exchange: Exchange) -> None:
        self._settings = settings
        self._keys = keys
        self._exchange = exchange

    async def post(self, request: Request) -> Response:
        """Actions for one observation."""
        case = self._exchange.begin()
        try:
            reply = await self._ask(request, case)
            if reply is None:
                self._exchange.left(case)
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            actions = self._exchange.actions(reply, case)
        except VlastreamError as error:
            return self._exchange.refused(error, case).response(case.request_id)
        self._exchange.answered(case)
        document = chunk_document(
            actions.outcome, timings=actions.timings_ms, replayed=actions.replayed, expired=actions.expired
        )
        content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json", headers=self._exchange.headers(case))

    async def _ask(self, request: Request, case: Case) -> Reply | None:
        """The reply to a request; None if its client left. Raises Problem and the like."""
        key = await self._keys.of(request)
        # Before the body is read, so that a refusal for want of room costs next to nothing.
        await self._exchange.allow(case, key)
        limit_bytes = self._exchange.largest_bytes(key)
        with self._exchange.admit(key, announced_bytes(request, limit_bytes)) as slot:
            # Body and message live in `_send` alone: nothing of them is held while the pipeline works.
            future, timeout_s = await self._send(await read_body(request, limit_bytes), request, case, key, slot)
            loop = asyncio.get_running_loop()
            end_s = loop.time() + timeout_s
            reply = await self._unless_client_leaves(future, request)
            if reply is not None:
                slot.served()
            else:
                # The pipeline goes on with it: leaving early must not make room for more.
                loop.call_at(end_s, slot.hand_over())
            return reply

    async def _send(
        self, raw: bytes, request: Request, case: Case, key: KeyRecord, slot: Slot
    ) -> tuple[asyncio.Future[Reply], float]:
        body = parse_body(raw, InferenceBody)
        if body.request_id is not None:
            case.request_id = body.request_id
        cards = self._exchange.name(case, model=body.model or "", robot_type=body.robot_type)
        message = build_request(
            body,
            request_id=case.request_id,
            model=case.model,
            first_camera=cards[0].cameras[0],
            default_ttl_ms=self._settings.default_ttl_ms,
        )
        await self._exchange.allow_robot(key, body.robot_id)
        return self._exchange.send(message, case, key, slot, request.headers.get("traceparent", ""))

    async def _unless_client_leaves(self, future: asyncio.Future[Reply], request: Request) -> Reply | None:
        """The reply, or None once the client is gone. Raises as `Exchange.reply` does."""
        watch = asyncio.create_task(_disconnected(request))
        watch.add_done_callback(lambda _: future.cancel())
        try:
            return await self._exchange.reply(future)
        except asyncio.CancelledError:
            if watch.done() and not watch.cancelled():
                return None
            raise
        finally:
            watch.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
