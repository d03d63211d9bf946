"""The weights of the models in a backup: where they lie, whether they are still the same, and how they are put back."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from runtime.errors import Fatal
from runtime.settings import Settings
from schemas.card_files import load_cards

Say = Callable[[str], None]

#: Folder of a backup that holds `<deployment>/<path within its weights>`.
MODELS = "models"


class State(StrEnum):
    """Of a file that a backup knows, where a card wants it."""

    SAME = "as in the backup"
    MISSING = "not there"
    OTHER = "another file than in the backup"
    NO_CARD = "of a deployment that has no card with weights here"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """name: path in the backup. target: where it belongs; None without a card. held: the backup has the file, not
    only its hash."""

    name: str
    sha256: str
    held: bool
    target: Path | None
    state: State


def weights_in_use(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Every file of every card's weights, and its name in a backup."""
    for deployment, folder in _folders(settings).items():
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path, f"{MODELS}/{deployment}/{path.relative_to(folder)}"


def compare(settings: Settings, stored: Mapping[str, str], hashed_only: Mapping[str, str]) -> list[ModelFile]:
    """What a backup knows of weights, beside what is in use here; both maps: name in the backup -> SHA-256.

    Raises Fatal for a name that leads out of a weights folder.
    """
    folders = _folders(settings)
    found = []
    for name, sha256 in sorted({**stored, **hashed_only}.items()):
        if name.startswith(f"{MODELS}/"):
            target = _target(folders, name)
            found.append(ModelFile(name, sha256, name in stored, target, _state(target, sha256)))
    return found


def place(folder: Path, files: list[ModelFile], *, overwrite: bool, say: Say) -> int:
    """Put a backup's weights where the cards want them, each whole or not at all; the number of files put there.

    A file that is there and differs stays, unless `overwrite`. A worker that has the old one open goes on with it.
    Raises Fatal where a file cannot be written, or has changed in the backup meanwhile.
    """
    placed = kept = 0
    for file in files:
        if file.state is State.SAME:
            continue
        if file.target is None:
            say(f"{file.name}: {file.state}; it stays in the backup")
        elif not file.held:
            say(f"{file.name}: {file.state}, and only hashed in the backup: bring {file.sha256} to {file.target}")
        elif file.state is State.OTHER and not overwrite:
            kept += 1
            say(f"{file.target} is {file.state} and was left: --overwrite-models puts the backup's in its place")
        else:
            _put(folder / file.name, file.target, file.sha256)
            placed += 1
            say(f"{file.target}: {'replaced' if file.state is State.OTHER else 'put back'}")
    same = sum(file.state is State.SAME for file in files)
    say(f"models: {placed} files put in place, {same} were there, {kept} differ and were left")
    if placed:
        say("workers read weights at their start: restart those that serve these models")
    return placed


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders(settings: Settings) -> dict[str, Path]:
    """Deployment -> folder of its weights, of those that have any."""
    return {card.deployment: card.weights_path for card in load_cards(settings.cards_dir).models if card.weights}


def _target(folders: Mapping[str, Path], name: str) -> Path | None:
    _, deployment, *parts = PurePosixPath(name).parts
    folder = folders.get(deployment)
    if folder is None:
        return None
    target = folder.joinpath(*parts)
    if not parts or ".." in parts or not target.resolve().is_relative_to(folder.resolve()):
        raise Fatal(f"the backup's {name} leads out of {folder}: it was not made by `vlastream backup create`")
    return target


def _state(target: Path | None, sha256: str) -> State:
    if target is None:
        return State.NO_CARD
    if not target.is_file():
        return State.MISSING
    return State.SAME if sha256_of(target) == sha256 else State.OTHER


def _put(source: Path, target: Path, sha256: str) -> None:
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, unfinished)
        if sha256_of(unfinished) != sha256:
            raise Fatal(f"{source} has changed since the backup: {target} was left as it is")
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        raise Fatal(f"{target} cannot be written: {error}: make room, or run this as its owner") from error
    finally:
        unfinished.unlink(missing_ok=True)
