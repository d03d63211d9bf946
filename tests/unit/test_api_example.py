"""The shipped request is one that runs."""

from __future__ import annotations

import json

from ingest_api.openapi import EXAMPLE_FILE
from ingest_api.request_body import InferenceBody, build_request, parse_body
from schemas.messages import ImageEncoding
from stream_agents.images import examine
from tests.unit.api_case import Api


def test_the_shipped_request_is_valid_and_brings_a_picture_that_the_gate_takes() -> None:
    body = parse_body(EXAMPLE_FILE.read_bytes(), InferenceBody)
    assert body.request_id is None
    assert (body.robot_type, body.model, len(body.state)) == ("tabletop_arm", "tabletop-pi0", 8)
    request = build_request(body, request_id="r", model="tabletop-pi0", first_camera="base", default_ttl_ms=2000)
    (image,) = request.images
    assert (image.camera, image.encoding) == ("base", ImageEncoding.IMAGE_ENCODING_JPEG)
    finding = examine(image)
    assert (finding.width, finding.height, finding.reason) == (224, 224, "")


async def test_it_is_the_example_of_the_openapi_document() -> None:
    async with Api().client(None) as client:
        document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/v1/inference"]["post"]["requestBody"]["content"]["application/json"]
    assert content["example"] == json.loads(EXAMPLE_FILE.read_text())
