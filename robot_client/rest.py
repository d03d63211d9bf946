"""REST: POST /v1/inference over one kept-alive connection pool."""

from __future__ import annotations

import asyncio

try:
    import httpx
except ImportError as error:
    raise ImportError("RestTransport needs httpx: install vlastream with its extra `client`") from error

from robot_client.chunk import ActionChunk, BadReply, chunk_from_json, refusal_from_json
from robot_client.errors import AttemptFailed, Refused
from robot_client.request_json import request_json
from robot_client.retry import refuse
from schemas.messages import InferenceRequest


class RestTransport:
    """`url` is the API's base, for example http://127.0.0.1:8000; `api_key` from `vlastream keys create`."""

    def __init__(self, url: str, api_key: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {api_key}"},
            limits=httpx.Limits(max_keepalive_connections=4, keepalive_expiry=30.0),
            transport=transport,
            # A robot's traffic to its own service never goes by a proxy of the environment.
            trust_env=False,
        )

    async def open(self) -> None:
        """Nothing to do: the first request opens the connection."""

    async def exchange(self, request: InferenceRequest, timeout_s: float) -> ActionChunk:
        try:
            # httpx times each phase by itself; the outer limit is what holds for the whole attempt.
            async with asyncio.timeout(timeout_s):
                reply = await self._http.post("/v1/inference", json=request_json(request), timeout=timeout_s)
        except httpx.ConnectTimeout as error:
            raise AttemptFailed(f"the API did not accept a connection within {timeout_s:.2f} s") from error
        except (httpx.TimeoutException, TimeoutError) as error:
            raise AttemptFailed(f"no answer within {timeout_s:.2f} s", timed_out=True) from error
        except httpx.TransportError as error:
            raise AttemptFailed(f"the API cannot be reached: {error or type(error).__name__}") from error
        return read_reply(reply, request.request_id)

    async def close(self) -> None:
        await self._http.aclose()


def read_reply(reply: httpx.Response, request_id: str) -> ActionChunk:
    """The chunk of a reply. Raises AttemptFailed or Refused as `Transport.exchange` says."""
    try:
        body = reply.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    if reply.status_code == httpx.codes.OK:
        try:
            return chunk_from_json(body)
        except BadReply as error:
            raise Refused(str(error), code="bad_reply", status=200, request_id=request_id) from error
    retry_after_s = _retry_after_s(reply)
    refusal = refusal_from_json(body, status=reply.status_code, request_id=request_id, retry_after_s=retry_after_s)
    raise refuse(refusal)


def _retry_after_s(reply: httpx.Response) -> float | None:
    """Seconds of Retry-After; None where it is absent or a date, which would need a clock that agrees."""
    try:
        seconds = float(reply.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
