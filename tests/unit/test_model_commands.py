"""`vlastream models`: what is served, and whether it could be, said before any robot asks."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from gpu_consumers.model_check import check_model
from gpu_consumers.policies.deterministic import DeterministicPolicy
from runtime.cli import main
from runtime.errors import Fatal
from runtime.model_commands import find_card, list_models
from runtime.settings import Settings
from tests import tiny_openvla
from tests.cards import embodiment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Cards of one robot type with a deterministic deployment, and folders to add to."""
    (tmp_path / "embodiments").mkdir()
    (tmp_path / "models").mkdir()
    robot = embodiment().model_dump(mode="json")
    (tmp_path / "embodiments" / "test_arm.yaml").write_text(yaml.safe_dump(robot))
    write_card(tmp_path)
    return Settings(_env_file=None, cards_dir=tmp_path)


def write_card(folder: Path, name: str = "steady", **changes: object) -> Path:
    card = {
        "model": "steady",
        "deployment": name,
        "title": "For tests",
        "policy": "deterministic",
        "embodiments": ["test_arm"],
        "cameras": ["base"],
        "state_dim": 2,
        "action_dim": 3,
        "horizon": 4,
        "batch_sizes": [1, 2],
    }
    path = folder / "models" / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**card, **changes}))
    return path


def checked(settings: Settings, name: str) -> str:
    said: list[str] = []
    assert check_model(settings, name, say=said.append) == 0
    return "\n".join(said)


def test_the_list_has_a_line_for_each_deployment(settings: Settings) -> None:
    write_card(settings.cards_dir, "steady-b")
    said: list[str] = []
    list_models(settings, say=said.append)
    assert {line.split()[0] for line in said} == {"steady", "steady-b"}
    assert all("steady (default)" in line and "4 x 3" in line for line in said)


@pytest.mark.parametrize("by", ["name", "file"])
def test_a_sound_deployment_is_described(settings: Settings, by: str) -> None:
    told = checked(settings, "steady" if by == "name" else str(settings.cards_dir / "models" / "steady.yaml"))
    for part in ("revision", "cpu", "float32", "4 x 3 actions", "batch   1", "batch   2", "MiB"):
        assert part in told


def test_weights_in_the_released_layout_are_checked_like_any_other(settings: Settings, tmp_path: Path) -> None:
    tiny_openvla.write_checkpoint(tmp_path / "weights")
    shapes: dict[str, object] = {
        "weights": "../weights",
        "horizon": 1,
        "action_dim": 7,
        "embodiments": ["seven"],
        "policy_config": {"unnorm_key": "fractal"},
    }
    actions = [{**embodiment().actions[0].model_dump(mode="json"), "name": f"a{index}"} for index in range(7)]
    robot = {**embodiment().model_dump(mode="json"), "robot_type": "seven", "actions": actions}
    robot |= {"workspace": None, "gripper": None}
    (settings.cards_dir / "embodiments" / "seven.yaml").write_text(yaml.safe_dump(robot))
    write_card(settings.cards_dir, "vla", policy="openvla", **shapes)
    told = checked(settings.model_copy(update={"model_dtype": "bfloat16"}), "vla")
    assert "bfloat16" in told
    assert "1 x 7 actions" in told
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(Fatal, match="lacks config"):
        check_model(settings, "vla", say=print)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embodiments": ["other_arm"]}, "other_arm, which has no card"),
        ({"action_dim": 6}, "the policy gives 6 values, the robot takes 3"),
        ({"horizon": 0}, "horizon"),
        ({"cameras": ["base"], "optional_cameras": ["base"]}, "twice"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_with_the_reason(
    settings: Settings, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    (tmp_path / "beside" / "models").mkdir(parents=True)
    path = write_card(tmp_path / "beside", "steady", **changes)
    with pytest.raises(Fatal, match=sentence):
        find_card(settings, str(path))


def test_an_unknown_name_is_answered_with_the_known_ones(settings: Settings) -> None:
    with pytest.raises(Fatal, match="or one of: steady"):
        find_card(settings, "wobbly")
    with pytest.raises(Fatal, match="nowhere"):
        find_card(settings, "nowhere/card.yaml")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("nan", "not finite: try MODEL_DTYPE"), ("shape", r"its card says \(4, 3\)"), ("raise", "cannot answer")],
)
def test_answers_that_no_gate_would_let_through_are_faults(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, fault: str, sentence: str
) -> None:
    """The deterministic policy plays a broken model where the made-up instruction says so."""
    write_card(settings.cards_dir, "broken", policy_config={"faults": True})
    whole = DeterministicPolicy.prepare
    monkeypatch.setattr(
        DeterministicPolicy,
        "prepare",
        lambda self, one: whole(self, dataclasses.replace(one, instruction=f"fault {fault}")),
    )
    with pytest.raises(Fatal, match=sentence):
        check_model(settings, "broken", say=print)


def test_a_batch_without_memory_ends_the_list_and_is_no_fault(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DeterministicPolicy.infer

    def infer(self: DeterministicPolicy, batch: list[Any]) -> object:
        if len(batch) > 1:
            raise MemoryError
        return whole(self, batch)

    monkeypatch.setattr(DeterministicPolicy, "infer", infer)
    assert "at most 1 at once" in checked(settings, "steady")


def test_the_command_ends_with_one_where_the_card_cannot_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARDS_DIR", str(ROOT / "deploy" / "cards"))
    result = CliRunner().invoke(main, ["models", "check", "wobbly"])
    assert result.exit_code == 1
    assert "tabletop-pi0" in result.output
    assert "Traceback" not in result.output
    assert CliRunner().invoke(main, ["models", "list"]).exit_code == 0
