"""`vlastream models check`: loads a policy as a worker would, runs a made-up observation, tells what it found."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from gpu_consumers.devices import choose_device, device_name, is_out_of_memory, release_memory
from gpu_consumers.policies.contract import Observation, Policy
from gpu_consumers.policies.registry import load_options, load_policy
from runtime.errors import Fatal
from runtime.model_commands import find_card
from runtime.settings import Settings
from schemas.cards import ModelCard

_SIDE_PX = 224
#: Timed runs of each batch size, after one that is not.
_RUNS = 5
_MIB = 1024 * 1024


def check_model(settings: Settings, name: str, *, say: Callable[[str], object]) -> int:
    """Check a deployment by its name or its card's file. Returns 0. Raises Fatal with what is wrong."""
    card = find_card(settings, name)
    device = choose_device(settings, card)
    options = load_options(settings)
    started = time.perf_counter()
    policy = load_policy(card, device, options)
    say(f"deployment  {card.deployment} (model {card.model}, policy {card.policy})")
    say(f"revision    {policy.revision}")
    say(f"device      {policy.device} ({device_name(policy.device)})")
    say(f"dtype       {(options.dtype or card.dtype).value}")
    say(f"loaded      in {time.perf_counter() - started:.1f} s")
    say(f"takes       {_described_input(card)}")
    say(f"gives       {card.horizon} x {card.action_dim} actions, values {_answered_range(policy)}")
    for size in card.batch_sizes:
        if not _timed(policy, size, say):
            break
    say(f"memory      {_peak_bytes(policy.device) / _MIB:.0f} MiB at most ({_memory_of(policy.device)})")
    return 0


def _answered_range(policy: Policy) -> str:
    """Lowest and highest action of one observation. Raises Fatal for what the action gate would refuse."""
    card = policy.card
    try:
        chunks = policy.finish(policy.infer([policy.prepare(_made_up(card, 0))]), 1)
    except Exception as error:
        raise Fatal(f"deployment {card.deployment} cannot answer one observation: {error!r}") from error
    wanted = (card.horizon, card.action_dim)
    if len(chunks) != 1 or chunks[0].shape != wanted:
        raise Fatal(f"deployment {card.deployment} gives {[chunk.shape for chunk in chunks]}, its card says {wanted}")
    if not np.isfinite(chunks[0]).all():
        raise Fatal(
            f"deployment {card.deployment} gives actions that are not finite: try MODEL_DTYPE=float32, and look at its "
            "normalisation"
        )
    return f"{chunks[0].min():.4g} to {chunks[0].max():.4g}"


def _timed(policy: Policy, size: int, say: Callable[[str], object]) -> bool:
    """Tell the latency of one batch size. False where the device has no memory for it."""
    batch = [policy.prepare(_made_up(policy.card, seed)) for seed in range(size)]
    took_s = []
    try:
        for _ in range(1 + _RUNS):
            started = time.perf_counter()
            policy.infer(batch)
            took_s.append(time.perf_counter() - started)
    except Exception as error:
        if size > 1 and is_out_of_memory(error):
            release_memory()
            say(f"batch {size:>3}   no memory: a worker would take at most {size - 1} at once")
            return False
        raise Fatal(f"deployment {policy.card.deployment} cannot run a batch of {size}: {error!r}") from error
    median_s = statistics.median(took_s[1:])
    say(
        f"batch {size:>3}   {median_s * 1000:.1f} ms, {size / median_s:.1f} a second (first: {took_s[0] * 1000:.0f} ms)"
    )
    return True


def _made_up(card: ModelCard, seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        request_id="check",
        instruction="pick up the red block",
        images={
            camera: rng.integers(0, 256, (_SIDE_PX, _SIDE_PX, 3), dtype=np.uint8)
            for camera in card.cameras + card.optional_cameras
        },
        state=np.zeros(card.state_dim, np.float32),
        seed=seed,
    )


def _described_input(card: ModelCard) -> str:
    optional = [f"{camera} (optional)" for camera in card.optional_cameras]
    return f"{card.state_dim} states, pictures of {', '.join([*card.cameras, *optional])}"


def _peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _memory_of(device: str) -> str:
    return "of the device, by torch" if device.startswith("cuda") else "of this process"
