"""/v1/search: your instructions by meaning, your scenes by resemblance. Exact filters, approximate neighbours."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Request, Response
from google.protobuf.message import DecodeError
from pydantic import AfterValidator, Field
from sqlalchemy import Select, func, literal, select

from ingest_api import openapi
from ingest_api.gateway import Gateway, NoReply, Question
from ingest_api.keys import KeyRing
from ingest_api.problems import Problem, fault
from ingest_api.query import Flag, Limit, Moment, Name, Parameters, described, parse_query
from ingest_api.reading import Reader, Row, answer, read
from runtime.data_tables import context_metadata, instruction_analytics
from runtime.errors import Unavailable
from runtime.tables import inference_log
from schemas.codes import Code
from schemas.embeddings import INSTRUCTION_EMBEDDING_DIM
from schemas.instructions import instruction_hash
from schemas.messages import Embedding, EmbeddingQuery
from schemas.scopes import Scope
from schemas.topics import QUERIES

#: The index goes on until it has found as many as were asked for that pass the filters (pgvector 0.8).
ITERATIVE_SCAN = (("hnsw.iterative_scan", "relaxed_order"), ("hnsw.ef_search", "100"))
#: So many times the wanted rows come from the index, of which the nearest are kept: a filter costs recall otherwise.
_MORE = 2
_TIMEOUT_S = 5.0
_MOST_REMEMBERED = 1000


def _searchable(text: str) -> str:
    text = " ".join(text.split())
    if not text or not text.isprintable():
        raise ValueError("write 1 to 500 printable characters")
    return text


class _Filters(Parameters):
    robot_type: Name | None = Field(default=None, description="of this robot type only")
    since: Moment | None = Field(default=None, description="not before this time")
    until: Moment | None = Field(default=None, description="before this time")
    limit: Limit = Field(default=10, description="rows at most")


class InstructionSearch(_Filters):
    q: Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_searchable)] = Field(
        description="what is looked for, in your own words"
    )
    min_success_rate: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="of your own requests with this instruction"
    )


class SceneSearch(_Filters):
    success: Flag | None = Field(default=None, description="only scenes whose task was judged so")


class QueryEmbedder(Protocol):
    async def embed(self, text: str, customer_id: str) -> list[float]:
        """384 numbers, unit length. Raises Unavailable where no embedder answers."""
        ...


class KafkaQueryEmbedder:
    """Asks the embedder by request-reply over Kafka, and remembers what it said. Of one event loop."""

    def __init__(self, gateway: Gateway, timeout_s: float = _TIMEOUT_S) -> None:
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._known: OrderedDict[str, list[float]] = OrderedDict()

    async def embed(self, text: str, customer_id: str) -> list[float]:
        if text in self._known:
            self._known.move_to_end(text)
            return self._known[text]
        question = Question(
            topic=QUERIES,
            value=EmbeddingQuery(text=text).SerializeToString(),
            robot_id=b"",
            request_id="",
            customer_id=customer_id,
        )
        try:
            reply = await self._gateway.ask(question, self._timeout_s)
            found = list(Embedding.FromString(reply.value).instruction)
        except (NoReply, DecodeError) as error:
            raise Unavailable("no embedder answers: is the role `embedder` up?", retry_after_s=2.0) from error
        if len(found) != INSTRUCTION_EMBEDDING_DIM:
            raise Unavailable("the embedder has no model for instructions", retry_after_s=60.0)
        self._known[text] = found
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return found


def is_filtered(wanted: InstructionSearch) -> bool:
    """Whether more is asked than what an instruction means."""
    return any(value is not None for value in (wanted.robot_type, wanted.min_success_rate, wanted.since, wanted.until))


def own_uses_query(wanted: InstructionSearch, customer_id: str) -> Select[Any]:
    """How often this customer's robots were given each text within the filters, and how often it went well.

    The table of instructions sums over all customers who used the same words, so nothing is filtered by its figures.
    """
    log = inference_log.c
    uses, succeeded = func.count(), func.count().filter(log.status == "success")
    query = (
        select(log.instruction, uses.label("uses"), succeeded.label("succeeded"))
        .where(log.customer_id == customer_id, log.instruction.is_not(None))
        .group_by(log.instruction)
    )
    if wanted.robot_type is not None:
        query = query.where(log.robot_type == wanted.robot_type)
    if wanted.since is not None:
        query = query.where(log.created_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(log.created_at < wanted.until)
    return query


def passing(uses: Iterable[Row], min_success_rate: float | None) -> list[str]:
    """Hashes of the instructions among the rows of an `own_uses_query` that went well often enough, in order."""
    total: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    for row in uses:
        # Texts that read the same are one instruction.
        key = instruction_hash(row["instruction"])
        total[key] += row["uses"]
        succeeded[key] += row["succeeded"]
    return sorted(key for key, count in total.items() if succeeded[key] / count >= (min_success_rate or 0.0))


def instruction_query(
    wanted: InstructionSearch, customer_id: str, embedding: list[float], among: Sequence[str] | None = None
) -> Select[Any]:
    """Instructions that this customer has used, nearest first. among: only those with these hashes; None: all."""
    table = instruction_analytics.c
    distance = table.instruction_embedding.cosine_distance(embedding)
    query = (
        select(
            table.instruction,
            table.category,
            (literal(1.0) - distance).label("similarity"),
        )
        .where(table.customers.contains([customer_id]), table.instruction_embedding.is_not(None))
        .order_by(distance)
        .limit(_MORE * wanted.limit)
    )
    return query if among is None else query.where(table.instruction_hash == func.any(list(among)))


def asked_scene(customer_id: str, request_id: str) -> Select[Any]:
    """Id and vector of the scene of a customer's request, the newest where the id was used again."""
    table = context_metadata.c
    return (
        select(table.id, table.image_embedding)
        .where(table.customer_id == customer_id, table.request_id == request_id, table.image_embedding.is_not(None))
        .order_by(table.created_at.desc())
        .limit(1)
    )


def scene_query(wanted: SceneSearch, customer_id: str, asked: Row) -> Select[Any]:
    """Scenes of this customer that resemble the asked one (a row of `asked_scene`), nearest first, itself left out."""
    table = context_metadata.c
    distance = table.image_embedding.cosine_distance(asked["image_embedding"])
    query = (
        select(
            table.request_id,
            table.robot_id,
            table.robot_type,
            table.episode_id,
            (literal(1.0) - distance).label("similarity"),
            table.image_model,
            table.lighting,
            table.time_of_day,
            table.environment_type,
            table.success,
            table.created_at,
        )
        .where(
            table.customer_id == customer_id,
            table.image_embedding.is_not(None),
            table.id != asked["id"],
        )
        .order_by(distance)
        .limit(_MORE * wanted.limit)
    )
    if wanted.robot_type is not None:
        query = query.where(table.robot_type == wanted.robot_type)
    if wanted.success is not None:
        query = query.where(table.success.is_(wanted.success))
    if wanted.since is not None:
        query = query.where(table.created_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(table.created_at < wanted.until)
    return query


def build_router(keys: KeyRing, reader: Reader, embedder: QueryEmbedder) -> APIRouter:
    router = APIRouter(tags=["search"])

    @router.get(
        "/v1/search/instructions",
        summary="Your instructions that mean about the same",
        response_class=Response,
        responses={**openapi.json_answer("Matches", "nearest first"), **openapi.problems(400, 401, 403, 503)},
        openapi_extra={**openapi.secured(Scope.READ), "parameters": described(InstructionSearch)},
    )
    async def instructions(request: Request) -> Response:
        key = await keys.of(request)
        wanted = parse_query(request, InstructionSearch)
        embedding = await embedder.embed(wanted.q, key.customer_id)
        among = None
        if is_filtered(wanted):
            among = passing(await read(reader, own_uses_query(wanted, key.customer_id)), wanted.min_success_rate)
        query = instruction_query(wanted, key.customer_id, embedding, among)
        return answer({"matches": await asyncio.to_thread(nearest, reader, query, wanted.limit)})

    @router.get(
        "/v1/search/scenes/{request_id}",
        summary="Your scenes that look like that of a request",
        response_class=Response,
        responses={**openapi.json_answer("Matches", "nearest first"), **openapi.problems(400, 401, 403, 404, 503)},
        openapi_extra={**openapi.secured(Scope.READ), "parameters": described(SceneSearch)},
    )
    async def scenes(request: Request, request_id: str) -> Response:
        key = await keys.of(request)
        wanted = parse_query(request, SceneSearch)
        asked = [] if "\x00" in request_id else await read(reader, asked_scene(key.customer_id, request_id))
        if not asked:
            detail = "no request of yours has this id and an image embedding: consent decides, and it takes a second"
            raise Problem(Code.NOT_FOUND, detail, violations=[fault("request_id", "unknown", detail)])
        query = scene_query(wanted, key.customer_id, asked[0])
        return answer({"matches": await asyncio.to_thread(nearest, reader, query, wanted.limit)})

    return router


def nearest(reader: Reader, query: Select[Any], limit: int) -> list[Row]:
    """The nearest rows of an `instruction_query` or a `scene_query`, nearest first. Blocks; raises Unavailable."""
    rows = reader.rows(query, ITERATIVE_SCAN)
    # The index hands them out in about the order of their distance.
    return sorted(rows, key=lambda row: -row["similarity"])[:limit]
