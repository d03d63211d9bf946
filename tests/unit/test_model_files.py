"""Weights come back from a backup where the cards want them, and never over something else unasked."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from runtime.cli import main as cli
from runtime.errors import Fatal
from runtime.settings import Settings
from sinks.recovery import backup, model_files
from sinks.recovery.backup import MANIFEST, Manifest, StoredFile
from sinks.recovery.commands import restore_backup, verify_backup
from sinks.recovery.model_files import State, sha256_of, weights_in_use
from tests.cards import embodiment, model

_WEIGHTS = {"model.safetensors": b"numbers", "tokenizer/words.json": b"{}"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation of two deployments: one with weights of two files, one without any."""
    folder = tmp_path / "cards"
    for kind in ("models", "embodiments"):
        (folder / kind).mkdir(parents=True)
    with_weights = model(deployment="heavy", weights="../weights/heavy", default=False, model="other")
    for card in (with_weights, model()):
        content = card.model_dump(mode="json", exclude_none=True, exclude={"path"})
        (folder / "models" / f"{card.deployment}.yaml").write_text(yaml.safe_dump(content))
    arm = embodiment().model_dump(mode="json", exclude_none=True)
    (folder / "embodiments" / "test_arm.yaml").write_text(yaml.safe_dump(arm))
    for name, numbers in _WEIGHTS.items():
        path = folder / "weights" / "heavy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbers)
    return Settings(_env_file=None, cards_dir=folder)


@pytest.fixture
def weights(settings: Settings) -> Path:
    return settings.cards_dir / "weights" / "heavy"


@pytest.fixture
def stored(settings: Settings, tmp_path: Path) -> Path:
    return _backup(settings, tmp_path / "backup")


def _backup(settings: Settings, folder: Path, *, hashes: bool = False) -> Path:
    """The weights' part of a backup, as `create` writes it."""
    files, hashed = {}, {}
    for path, name in weights_in_use(settings):
        if hashes:
            hashed[name] = sha256_of(path)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        files[name] = StoredFile(sha256_of(path), path.stat().st_size)
    folder.mkdir(exist_ok=True)
    manifest = Manifest(created_at="t", revision="1", valkey_keys=0, rows={}, files=files, hashed_only=hashed)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))
    return folder


def _restore(settings: Settings, folder: Path, *, overwrite: bool = False) -> list[str]:
    told: list[str] = []
    restore_backup(settings, folder=folder, replay=False, models_only=True, overwrite_models=overwrite, say=told.append)
    return told


def _contents(weights: Path) -> dict[str, bytes]:
    return {str(path.relative_to(weights)): path.read_bytes() for path in weights.rglob("*") if path.is_file()}


def test_weights_that_are_gone_are_put_back_where_the_card_wants_them(
    settings: Settings, weights: Path, stored: Path
) -> None:
    shutil.rmtree(weights)
    told = _restore(settings, stored)
    assert _contents(weights) == _WEIGHTS
    assert told[-2] == "models: 2 files put in place, 0 were there, 0 differ and were left"
    assert "restart" in told[-1]
    assert _restore(settings, stored) == ["models: 0 files put in place, 2 were there, 0 differ and were left"]


def test_a_file_that_differs_stays_until_it_is_said_that_it_goes(
    settings: Settings, weights: Path, stored: Path
) -> None:
    (weights / "model.safetensors").write_bytes(b"newer numbers")
    with (weights / "model.safetensors").open("rb") as opened:
        told = _restore(settings, stored)
        assert _contents(weights)["model.safetensors"] == b"newer numbers"
        assert "--overwrite-models" in told[0]
        assert told[-1] == "models: 0 files put in place, 1 were there, 1 differ and were left"
        assert "replaced" in _restore(settings, stored, overwrite=True)[0]
        assert opened.read() == b"newer numbers", "who has it open goes on with it"
    assert _contents(weights) == _WEIGHTS


def test_a_backup_whose_weights_were_changed_places_nothing(settings: Settings, weights: Path, stored: Path) -> None:
    shutil.rmtree(weights)
    (stored / "models/heavy/model.safetensors").write_bytes(b"altered")
    with pytest.raises(Fatal, match="is damaged"):
        _restore(settings, stored)
    manifest = Manifest.read(stored)
    with pytest.raises(Fatal, match="has changed since the backup"):
        model_files.place(stored, backup.models(settings, manifest), overwrite=False, say=print)
    assert not _contents(weights)


def test_hashes_alone_say_which_file_is_wanted(settings: Settings, weights: Path, tmp_path: Path) -> None:
    folder = _backup(settings, tmp_path / "hashes", hashes=True)
    wanted = sha256_of(weights / "model.safetensors")
    (weights / "model.safetensors").unlink()
    told = _restore(settings, folder)
    assert f"bring {wanted} to {weights / 'model.safetensors'}" in told[0]
    assert not (weights / "model.safetensors").exists()


def test_weights_of_a_deployment_without_a_card_stay_in_the_backup(
    settings: Settings, weights: Path, stored: Path
) -> None:
    (settings.cards_dir / "models" / "heavy.yaml").unlink()
    shutil.rmtree(weights)
    told = _restore(settings, stored)
    assert [State.NO_CARD in line for line in told] == [True, True, False]
    assert not weights.exists()


@pytest.mark.parametrize("name", ["models/heavy/../../escaped", "models/heavy", "models/heavy/link/escaped"])
def test_no_name_of_a_manifest_leads_out_of_the_weights_folder(
    settings: Settings, weights: Path, stored: Path, tmp_path: Path, name: str
) -> None:
    (weights / "link").symlink_to(tmp_path)
    with pytest.raises(Fatal, match="leads out of"):
        model_files.compare(settings, {name: "0" * 64}, {})


def test_verify_says_what_a_restore_would_put_back(settings: Settings, weights: Path, stored: Path) -> None:
    (weights / "tokenizer/words.json").unlink()
    told: list[str] = []
    assert verify_backup(settings, folder=stored, files_only=True, say=told.append) == 0
    assert [line for line in told if line.startswith("note: ")] == [
        f"note: models/heavy/tokenizer/words.json ({weights / 'tokenizer/words.json'}): not there: "
        "`restore` puts it back"
    ]


def test_the_command_asks_nothing_where_no_database_is_replaced(
    settings: Settings, weights: Path, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(weights)
    monkeypatch.setenv("CARDS_DIR", str(settings.cards_dir))
    done = CliRunner().invoke(cli, ["backup", "restore", str(stored), "--models-only"])
    assert done.exit_code == 0, done.output
    assert _contents(weights) == _WEIGHTS
