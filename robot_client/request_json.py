"""An InferenceRequest as the JSON of REST and of the WebSocket's text frames."""

from __future__ import annotations

import base64
from typing import Any

from schemas.messages import ImageEncoding, InferenceRequest, SafetyMode

_ENCODINGS = {
    ImageEncoding.IMAGE_ENCODING_JPEG: "jpeg",
    ImageEncoding.IMAGE_ENCODING_PNG: "png",
    ImageEncoding.IMAGE_ENCODING_RGB8: "rgb8",
}
_SAFETY_MODES = {
    SafetyMode.SAFETY_MODE_REJECT: "reject",
    SafetyMode.SAFETY_MODE_CLAMP: "clamp",
    SafetyMode.SAFETY_MODE_MONITOR: "monitor",
}


def request_json(request: InferenceRequest) -> dict[str, Any]:
    """The body of POST /v1/inference; what is unset is left out."""
    options: dict[str, Any] = {"ttl_ms": request.ttl_ms, "latest_only": request.options.latest_only}
    if request.options.HasField("seed"):
        options["seed"] = request.options.seed
    if request.options.safety_mode in _SAFETY_MODES:
        options["safety_mode"] = _SAFETY_MODES[request.options.safety_mode]
    body: dict[str, Any] = {
        "request_id": request.request_id,
        "robot_id": request.robot_id,
        "robot_type": request.robot_type,
        "instruction": request.instruction,
        "images": [
            {
                "camera": image.camera,
                "encoding": _ENCODINGS[image.encoding],
                "data": base64.b64encode(image.data).decode("ascii"),
                **({"width": image.width, "height": image.height} if image.width else {}),
            }
            for image in request.images
        ],
        "state": list(request.state),
        "step": request.step,
        "captured_at_ms": request.captured_at_ms,
        "options": options,
    }
    if request.model:
        body["model"] = request.model
    if request.episode_id:
        body["episode_id"] = request.episode_id
    if request.HasField("executed"):
        values, dim = list(request.executed.values), request.executed.dim
        body["executed"] = [values[i : i + dim] for i in range(0, len(values), dim)]
    return body
