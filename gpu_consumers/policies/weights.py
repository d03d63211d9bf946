"""Safetensors files of a weights folder, and how their tensors get into a model. No pickle, no code, no hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gpu_consumers.policies.contract import LoadOptions
from runtime.errors import Fatal
from schemas.cards import DType, ModelCard

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {DType.FLOAT32: torch.float32, DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16}
#: Names in one message; a folder of another model lacks hundreds.
_NAMED = 8


def torch_dtype(card: ModelCard, options: LoadOptions) -> torch.dtype:
    return _DTYPES[options.dtype or card.dtype]


class WeightFiles:
    """The safetensors of one folder: `model.safetensors`, or the shards that `model.safetensors.index.json` names."""

    def __init__(self, card: ModelCard, *, others: tuple[str, ...] = ()) -> None:
        """`others`: further files that the policy reads. Raises Fatal that names what the folder lacks."""
        self.folder = card.weights_path
        self.deployment = card.deployment
        lacking = [name for name in others if not (self.folder / name).is_file()]
        self._paths = self._shards()
        lacking += [path.name for path in self._paths if not path.is_file()]
        if lacking:
            raise Fatal(f"deployment {card.deployment}: {self.folder} lacks {', '.join(sorted(lacking))}")

    def digest(self) -> str:
        """16 hex digits of SHA-256 over the files, in the order of their names."""
        whole = hashlib.sha256()
        for path in self._paths:
            with path.open("rb") as weights:
                while block := weights.read(1 << 20):
                    whole.update(block)
        return whole.hexdigest()[:16]

    def names(self) -> list[str]:
        found: list[str] = []
        for path in self._paths:
            with self._opened(path) as tensors:
                found += tensors.keys()
        return found

    def read(self, *, low_cpu_memory: bool, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor as stored. Mapped files lend pages that are read when the tensor is copied."""
        for path in self._paths:
            if low_cpu_memory:
                with self._opened(path) as tensors:
                    for name in filter(wanted, tensors.keys()):
                        yield name, tensors.get_tensor(name)
            else:
                from safetensors.torch import load

                yield from ((name, tensor) for name, tensor in load(path.read_bytes()).items() if wanted(name))

    def json(self, name: str) -> dict[str, object]:
        """A JSON object beside the weights. Raises Fatal."""
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Fatal(f"deployment {self.deployment}: {self.folder / name} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise Fatal(f"deployment {self.deployment}: {self.folder / name} holds no JSON object")
        return content

    def _shards(self) -> list[Path]:
        if not (self.folder / _INDEX).is_file():
            return [self.folder / _ONE_FILE]
        places = self.json(_INDEX).get("weight_map")
        names = set(places.values()) if isinstance(places, dict) else set()
        if not names or any(Path(str(name)).name != name for name in names):
            raise Fatal(f"deployment {self.deployment}: {self.folder / _INDEX} names no shards of this folder")
        return [self.folder / str(name) for name in sorted(names)]

    def _opened(self, path: Path) -> safe_open:
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise Fatal(f"deployment {self.deployment}: {path} is not a whole safetensors file: {error}") from error


def load_into(
    model: nn.Module,
    files: WeightFiles,
    *,
    rename: Callable[[str], str | None],
    dtype: torch.dtype,
    device: str,
    options: LoadOptions,
) -> None:
    """Put every stored tensor into `model`, which may be built without memory for its parameters.

    `rename` gives a stored name its place in the model, None for what the model has no use for. Buffers that no file
    holds stay as the model computed them. Raises Fatal for tensors that are missing, unknown or of another shape.
    """
    placed: dict[str, torch.Tensor] = {}
    for name, tensor in files.read(low_cpu_memory=options.low_cpu_memory, wanted=lambda n: rename(n) is not None):
        target = rename(name)
        if target is not None:
            kept = dtype if tensor.is_floating_point() else tensor.dtype
            # A copy: a view of the mapped file would change with the file.
            placed[target] = tensor.to(device=device, dtype=kept, copy=True)
    wanted = model.state_dict()
    _refuse(files, "lacks", sorted(wanted.keys() - placed.keys()))
    _refuse(files, "holds what this policy does not know:", sorted(placed.keys() - wanted.keys()))
    odd = [name for name, tensor in placed.items() if tensor.shape != wanted[name].shape]
    _refuse(files, "does not fit its config.json in", sorted(odd))
    model.load_state_dict(placed, assign=True)
    model.to(device).eval().requires_grad_(requires_grad=False)


def _refuse(files: WeightFiles, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise Fatal(
            f"deployment {files.deployment}: the safetensors in {files.folder} {what} {', '.join(names[:_NAMED])}{more}"
        )
