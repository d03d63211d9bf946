"""The request gate's rules: pure decisions on one decoded request. What they need to know comes in as arguments."""

from __future__ import annotations

import difflib
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from schemas.cards import CUSTOM, CardSet, EmbodimentCard, ModelCard
from schemas.codes import Code
from schemas.ids import fraction
from schemas.messages import Control, InferenceRequest, SafetyMode
from schemas.topics import MAX_INLINE_IMAGE_BYTES
from stream_agents.images import examine

MIN_INSTRUCTION_CHARACTERS = 3
MAX_INSTRUCTION_CHARACTERS = 500
MIN_INSTRUCTION_WORDS = 3
#: Words that people type to fill a field; an instruction made of these alone says nothing.
FILLER_WORDS = frozenset(
    "a an the test testing asdf qwerty foo bar baz lorem ipsum dolor todo tbd xxx placeholder string text blah".split()  # noqa: SIM905 - words
)
ROBOT_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
MAX_EPISODE_ID_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a request, under the code that it is refused with."""

    code: Code
    field: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Accepted:
    deployment: ModelCard
    embodiment: EmbodimentCard
    #: Width and height of every image, in the order of the request.
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Every fault that was found; the first one's code is the refusal's."""

    faults: tuple[Fault, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    retry_after_s: float = 0.0

    @property
    def code(self) -> Code:
        return self.faults[0].code


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What besides the request itself decides: the cards, the workers, the operator, the clock."""

    cards: CardSet
    has_live_worker: Callable[[str], bool]
    stop_of: Callable[[str, str, str], Control | None]
    now_ms: int
    deadline_ms: int
    max_ttl_ms: int
    #: Nobody is asked to wait for less than a worker needs to come back.
    worker_retry_after_s: float = 2.0
    #: Model -> deployment -> weight, as the operator deals its robots; None where the cards do.
    weights_of: Callable[[str], Mapping[str, float] | None] = lambda model: None
    #: Customer, robot type -> a card that the customer brought.
    own_robot: Callable[[str, str], EmbodimentCard | None] = lambda customer_id, robot_type: None


def judge(
    request: InferenceRequest, customer_id: str, around: Circumstances, *, pinned: str = ""
) -> Accepted | Refused:
    """Apply every rule. Content comes before circumstances, so that a faulty request learns all its faults at once.

    pinned: the deployment that this request was sent to before; it goes there again, however robots are dealt now.
    """
    faults = [*_identity(request), *_instruction(request), *_time_to_live(request, around.max_ttl_ms)]
    embodiment, type_faults = _robot_type(request, customer_id, around)
    faults += type_faults
    deployment, model_faults = _deployment(request, embodiment, around, pinned)
    faults += model_faults
    if embodiment is not None:
        faults += _numbers(request, embodiment if deployment is None else deployment.commanded(embodiment))
    sizes: list[tuple[int, int]] = []
    faults += _images(request, deployment, sizes)
    if faults or deployment is None or embodiment is None:
        return Refused(tuple(faults), tuple(sizes))
    stop = around.stop_of(customer_id, request.robot_id, deployment.model)
    if stop is not None:
        why = f": {stop.why}" if stop.why else ""
        return Refused((Fault(Code.STOPPED, "robot_id", "stopped", f"{stop.target} was stopped{why}"),), tuple(sizes))
    if around.now_ms > around.deadline_ms:
        detail = "the deadline had passed when the request was read: raise ttl_ms or send less"
        return Refused((Fault(Code.EXPIRED, "options.ttl_ms", "expired", detail),), tuple(sizes))
    if not around.has_live_worker(deployment.deployment):
        detail = f"no GPU worker of {deployment.deployment} is alive"
        fault = Fault(Code.NO_WORKER, "model", "no_live_worker", detail)
        return Refused((fault,), tuple(sizes), retry_after_s=around.worker_retry_after_s)
    return Accepted(deployment, embodiment, tuple(sizes))


def route(
    model: str, robot_id: str, robot: EmbodimentCard, cards: CardSet, weights: Mapping[str, float] | None = None
) -> ModelCard | None:
    """The deployment of a robot: stable by robot id, in proportion to the weights. None if none fits.

    weights: deployment -> weight; the cards' own `traffic` where there are none, or none that fit the cards.
    """
    fitting = [card for card in cards.deployments(model) if misfit(card, robot, cards) is None]
    shares = [(card, weights.get(card.deployment, 0.0) if weights is not None else 0.0) for card in fitting]
    if not any(weight > 0 for _, weight in shares):
        shares = [(card, card.traffic) for card in fitting]
    shares = [(card, weight) for card, weight in shares if weight > 0]
    point = fraction(robot_id) * sum(weight for _, weight in shares)
    for card, weight in shares:
        point -= weight
        if point < 0:
            return card
    return shares[-1][0] if shares else None


def misfit(card: ModelCard, robot: EmbodimentCard, cards: CardSet) -> str | None:
    """Why a deployment does not drive a robot; None if it does. An installation's cards were checked on loading."""
    if cards.embodiment(robot.robot_type) is None:
        return card.custom_misfit(robot)
    return None if robot.robot_type in card.embodiments else "the model does not serve it"


def _identity(request: InferenceRequest) -> Iterator[Fault]:
    try:
        # UUID() also takes digits of other scripts; ids travel in ASCII headers.
        valid = request.request_id.isascii() and bool(uuid.UUID(request.request_id))
    except ValueError:
        valid = False
    if not valid:
        yield Fault(Code.INVALID_REQUEST, "request_id", "not_a_uuid", "send a UUID, a new one for each observation")
    if not ROBOT_ID.fullmatch(request.robot_id):
        yield Fault(
            Code.INVALID_REQUEST, "robot_id", "malformed", "use 1 to 64 of A-Z, a-z, 0-9, '.', '_', ':' and '-'"
        )
    if len(request.episode_id) > MAX_EPISODE_ID_CHARACTERS or not (request.episode_id or "-").isprintable():
        yield Fault(Code.INVALID_REQUEST, "episode_id", "malformed", "use at most 128 printable characters")
    if request.options.safety_mode not in SafetyMode.values():
        yield Fault(Code.INVALID_REQUEST, "options.safety_mode", "unknown", "use reject, clamp or monitor")


def _time_to_live(request: InferenceRequest, max_ttl_ms: int) -> Iterator[Fault]:
    if not 0 <= request.ttl_ms <= max_ttl_ms:
        detail = f"{request.ttl_ms} ms: use 1 to {max_ttl_ms}"
        yield Fault(Code.INVALID_REQUEST, "options.ttl_ms", "out_of_range", detail)


def _instruction(request: InferenceRequest) -> Iterator[Fault]:
    text = request.instruction
    words = re.findall(r"\w+", text.lower())
    reason = detail = ""
    if len(text.strip()) < MIN_INSTRUCTION_CHARACTERS:
        reason, detail = "too_short", f"say what to do in at least {MIN_INSTRUCTION_WORDS} words"
    elif len(text) > MAX_INSTRUCTION_CHARACTERS:
        reason, detail = "too_long", f"{len(text)} characters: at most {MAX_INSTRUCTION_CHARACTERS}"
    elif not text.isprintable():
        reason, detail = "not_printable", "remove control characters and line breaks"
    elif len(words) < MIN_INSTRUCTION_WORDS:
        reason, detail = "too_few_words", f"say what to do in at least {MIN_INSTRUCTION_WORDS} words"
    elif len(set(words)) == 1 or all(word in FILLER_WORDS or word.isdigit() for word in words):
        reason, detail = "filler", "this names nothing that a robot could do"
    if reason:
        yield Fault(Code.INVALID_INSTRUCTION, "instruction", reason, detail)


def _robot_type(
    request: InferenceRequest, customer_id: str, around: Circumstances
) -> tuple[EmbodimentCard | None, list[Fault]]:
    cards = around.cards
    known = [card.robot_type for card in cards.embodiments]
    # Many types are known, most of which no model here drives: those that one does are the answer.
    served = ", ".join(sorted({name for model in cards.models for name in model.embodiments} - {CUSTOM})[:20])
    card = cards.embodiment(request.robot_type) or around.own_robot(customer_id, request.robot_type)
    if card is not None:
        return card, []
    if request.robot_type.strip().lower() in ("", "unknown"):
        reason, detail = "unknown_robot_type", f"say which robot this is, one of: {served}"
    else:
        near = difflib.get_close_matches(request.robot_type.strip().lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"models drive: {served}"
        reason, detail = "unsupported_robot_type", f"{_shortened(request.robot_type)} has no card; {hint}"
    return None, [Fault(Code.INVALID_ROBOT_TYPE, "robot_type", reason, detail)]


def _deployment(
    request: InferenceRequest, embodiment: EmbodimentCard | None, around: Circumstances, pinned: str
) -> tuple[ModelCard | None, list[Fault]]:
    cards = around.cards
    model = request.model or cards.default_model or ""
    if not cards.deployments(model):
        known = ", ".join(sorted({card.model for card in cards.models}))
        detail = f"{_shortened(model)} is not served; known are: {known}"
        return None, [Fault(Code.UNKNOWN_MODEL, "model", "unknown_model", detail)]
    if embodiment is None:
        return None, []
    deployment = cards.deployment(pinned) if pinned else None
    if deployment is None:
        weights = around.weights_of(model)
        deployment = route(model, request.robot_id, embodiment, cards, weights)
    if deployment is None:
        serves = sorted({name for card in cards.deployments(model) for name in card.embodiments})
        detail = f"{model} does not serve {embodiment.robot_type}; it serves: {', '.join(serves)}"
        if cards.embodiment(embodiment.robot_type) is None and CUSTOM in serves:
            why = [reason for card in cards.deployments(model) if (reason := card.custom_misfit(embodiment))]
            detail = f"{model} cannot drive {embodiment.robot_type}: {why[-1] if why else 'no deployment takes robots'}"
        return None, [Fault(Code.EMBODIMENT_MISMATCH, "robot_type", "not_served_by_model", detail)]
    return deployment, []


def _numbers(request: InferenceRequest, embodiment: EmbodimentCard) -> Iterator[Fault]:
    wanted = len(embodiment.state)
    if len(request.state) != wanted:
        names = ", ".join(dim.name for dim in embodiment.state)
        detail = f"{embodiment.robot_type} has {wanted} values ({names}), these are {len(request.state)}"
        yield Fault(Code.INVALID_STATE, "state", "wrong_length", detail)
    elif not all(map(math.isfinite, request.state)):
        bad = next(i for i, value in enumerate(request.state) if not math.isfinite(value))
        detail = f"value {bad} ({embodiment.state[bad].name}) is NaN or infinite"
        yield Fault(Code.INVALID_STATE, "state", "not_finite", detail)
    executed = request.executed
    if executed.horizon or executed.values:
        fits = executed.dim == len(embodiment.actions) and executed.horizon * executed.dim == len(executed.values)
        if not fits or not all(map(math.isfinite, executed.values)):
            detail = f"send finite rows of {len(embodiment.actions)} values"
            yield Fault(Code.INVALID_STATE, "executed", "malformed", detail)


def _images(request: InferenceRequest, deployment: ModelCard | None, sizes: list[tuple[int, int]]) -> Iterator[Fault]:
    total = sum(len(image.data) for image in request.images)
    if total > MAX_INLINE_IMAGE_BYTES:
        detail = f"{total} bytes of images: at most {MAX_INLINE_IMAGE_BYTES}; compress or scale them down"
        yield Fault(Code.TOO_LARGE, "images", "too_large", detail)
        return
    names = [image.camera for image in request.images]
    needed = deployment.cameras if deployment is not None else ()
    wanted = needed + (deployment.optional_cameras if deployment is not None else ())
    for camera in wanted:
        if names.count(camera) > 1 or (camera in needed and camera not in names):
            reason = "missing" if camera not in names else "repeated"
            yield Fault(Code.INVALID_IMAGE, f"images.{camera}", reason, f"send one image of camera {camera}")
    for image in request.images:
        if deployment is not None and image.camera not in wanted:
            detail = f"{deployment.model} looks through: {', '.join(wanted)}"
            yield Fault(Code.INVALID_IMAGE, "images.camera", "unknown_camera", detail)
        finding = examine(image)
        sizes.append((finding.width, finding.height))
        if finding.reason:
            known = image.camera if image.camera in wanted else "image"
            yield Fault(Code.INVALID_IMAGE, f"images.{known}", finding.reason, finding.detail)
    if not request.images and not wanted:
        yield Fault(Code.INVALID_IMAGE, "images", "missing", "send at least one image")


def _shortened(text: str) -> str:
    printable = "".join(c for c in text[:60] if c.isprintable())
    return f"'{printable}{'...' if len(text) > 60 else ''}'"
