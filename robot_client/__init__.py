"""What a robot installs: `infer(observation) -> ActionChunk` over REST, WebSocket or Kafka, without torch.

    with RobotClient(RestTransport(url, key), robot_id="arm-1", robot_type="tabletop_arm") as robot:
        chunk = robot.infer(Observation(images={"base": jpeg}, state=state, instruction="pick up the red block"))

A ControlLoop executes chunks in time while the next one is on its way. Each transport's library is loaded when
that transport is first asked for, so that a robot needs only the one that it uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from robot_client.axes import Axes
from robot_client.chunk import ActionChunk, Safety
from robot_client.client import AsyncRobotClient, LoopThread, RobotClient
from robot_client.errors import Late, Refused, RobotClientError, Unreachable, Violation
from robot_client.hold import HoldRule
from robot_client.loop import Body, ControlLoop, LoopReport, Pace
from robot_client.observation import InferenceOptions, Observation
from robot_client.retry import RetryRule
from robot_client.schedule import Schedule, ScheduleRule
from robot_client.transport import Transport

if TYPE_CHECKING:
    from robot_client.kafka import KafkaTransport
    from robot_client.rest import RestTransport
    from robot_client.websocket import WebSocketTransport

__all__ = [
    "ActionChunk",
    "AsyncRobotClient",
    "Axes",
    "Body",
    "ControlLoop",
    "HoldRule",
    "InferenceOptions",
    "KafkaTransport",
    "Late",
    "LoopReport",
    "LoopThread",
    "Observation",
    "Pace",
    "Refused",
    "RestTransport",
    "RetryRule",
    "RobotClient",
    "RobotClientError",
    "Safety",
    "Schedule",
    "ScheduleRule",
    "Transport",
    "Unreachable",
    "Violation",
    "WebSocketTransport",
]

_TRANSPORTS = {"KafkaTransport": "kafka", "RestTransport": "rest", "WebSocketTransport": "websocket"}


def __getattr__(name: str) -> Any:
    if name not in _TRANSPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_TRANSPORTS[name]}"), name)
