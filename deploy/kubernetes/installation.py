"""What an overlay installs: its numbers (installation.yaml) together with the cards of its deployments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deploy.kubernetes.scaling import Cost, Scaling
from schemas.card_files import load_embodiment_card, load_model_card
from schemas.cards import CardSet, ModelCard, Name
from schemas.quotas import FLEET_QUOTA, Quota
from schemas.topics import Topic, declare

FOLDER = Path(__file__).parent
OVERLAYS = FOLDER / "overlays"
#: Robot types are those of the images: overlays bring models only.
EMBODIMENTS = FOLDER.parent / "cards" / "embodiments"

_LONGEST_LABEL = 63

Count = Annotated[int, Field(ge=1, le=1024)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MeasuredCost(_Strict):
    """Milliseconds of a batch of n: per_item_ms * n + base_ms."""

    per_item_ms: float = Field(gt=0)
    base_ms: float = Field(ge=0)
    source: str

    @property
    def cost(self) -> Cost:
        return Cost(self.per_item_ms / 1000, self.base_ms / 1000, self.source)


class Worker(_Strict):
    """One pod of a deployment."""

    #: NVIDIA devices; 0: inference on the CPU.
    gpus: int = Field(ge=0, le=8)
    cpu: str
    memory: str
    min_replicas: int = Field(ge=1)
    cost: MeasuredCost


class FleetQuota(_Strict):
    """What a fleet may take of each broker, in whole numbers, as Strimzi has them."""

    bytes_per_s: int = Field(ge=1)
    request_percent: int = Field(ge=1)


class Installation(_Strict):
    """The numbers of one overlay."""

    #: Folder with models/*.yaml, relative to the overlay.
    cards: str
    fleets: tuple[Name, ...] = ()
    #: Fleet -> its quota where that is not schemas/quotas.py's.
    fleet_quotas: dict[Name, FleetQuota] = {}
    partitions: Count
    accepted_partitions: Count
    reply_partitions: Count
    replication: int = Field(ge=1, le=9)
    retention_days: int = Field(ge=1)
    default_ttl_ms: int = Field(ge=1)
    deployments: dict[Name, Worker] = Field(min_length=1)
    #: PersistentVolumeClaim with the weights that cards name below /srv/weights. Empty: they are in the image.
    weights_claim: str = ""

    @field_validator("deployments")
    @classmethod
    def _names_fit_into_labels(cls, value: dict[str, Worker]) -> dict[str, Worker]:
        for name in value:
            if len(f"gpu-{name}") > _LONGEST_LABEL:
                raise ValueError(
                    f"{name}: gpu-{name} is a label of its pods, which has {_LONGEST_LABEL} characters at most"
                )
        return value

    @model_validator(mode="after")
    def _quotas_are_of_fleets(self) -> Self:
        if unknown := sorted(self.fleet_quotas.keys() - set(self.fleets)):
            raise ValueError(f"fleet_quotas: {', '.join(unknown)} are not among the fleets")
        return self

    def quotas(self) -> dict[str, Quota]:
        """Fleet -> what it may take of each broker."""
        own = {name: Quota(q.bytes_per_s, q.request_percent) for name, q in self.fleet_quotas.items()}
        return {name: own.get(name, FLEET_QUOTA) for name in self.fleets}

    def topics(self) -> tuple[Topic, ...]:
        return declare(
            fleets=self.fleets,
            deployments=self.deployments,
            partitions=self.partitions,
            accepted_partitions=self.accepted_partitions,
            reply_partitions=self.reply_partitions,
            retention_days=self.retention_days,
        )

    def scaling(self, card: ModelCard) -> Scaling:
        worker = self.deployments[card.deployment]
        return Scaling(
            deployment=card.deployment,
            cost=worker.cost.cost,
            largest_batch=max(card.batch_sizes),
            ttl_s=self.default_ttl_ms / 1000,
            partitions=self.accepted_partitions,
            min_replicas=worker.min_replicas,
        )


def load_installation(overlay: Path) -> tuple[Installation, CardSet]:
    """The numbers and the cards of an overlay. Raises ValueError where the two do not name the same deployments."""
    installation = Installation.model_validate(yaml.safe_load((overlay / "installation.yaml").read_text()))
    files = sorted((overlay / installation.cards).glob("models/*.yaml"))
    cards = CardSet(
        models=tuple(load_model_card(file) for file in files),
        embodiments=tuple(load_embodiment_card(file) for file in sorted(EMBODIMENTS.glob("*.yaml"))),
    )
    named = {card.deployment for card in cards.models}
    if named != set(installation.deployments):
        raise ValueError(f"{overlay.name}: cards are of {sorted(named)}, costs of {sorted(installation.deployments)}")
    return installation, cards


def overlays() -> list[Path]:
    """The folder of every overlay, by name."""
    return sorted(file.parent for file in OVERLAYS.glob("*/installation.yaml"))
