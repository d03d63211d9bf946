"""What a robot installs: `infer(observation) -> ActionChunk` over REST or Kafka, without torch.

    with RobotClient(RestTransport(url, key), robot_id="arm-1", robot_type="tabletop_arm") as robot:
        chunk = robot.infer(Observation(images={"base": jpeg}, state=state, instruction="pick up the red block"))

The Kafka transport is imported from robot_client.kafka, so that a robot that speaks REST loads no librdkafka.
"""

from robot_client.chunk import ActionChunk, Safety
from robot_client.client import AsyncRobotClient, RobotClient
from robot_client.errors import Late, Refused, RobotClientError, Unreachable, Violation
from robot_client.hold import HoldRule
from robot_client.observation import InferenceOptions, Observation
from robot_client.rest import RestTransport
from robot_client.retry import RetryRule
from robot_client.transport import Transport

__all__ = [
    "ActionChunk",
    "AsyncRobotClient",
    "HoldRule",
    "InferenceOptions",
    "Late",
    "Observation",
    "Refused",
    "RestTransport",
    "RetryRule",
    "RobotClient",
    "RobotClientError",
    "Safety",
    "Transport",
    "Unreachable",
    "Violation",
]
