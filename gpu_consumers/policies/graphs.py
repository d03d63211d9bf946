"""CUDA graphs: what a policy does on the GPU is recorded once for each shape of its inputs, then replayed.

A small batch of a VLA model is bound by the thousands of kernel launches of its layers and steps, not by the kernels; a
replay launches them all at once (https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-graphs).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from gpu_consumers.devices import is_out_of_memory
from gpu_consumers.sizing import bucket

log = logging.getLogger(__name__)

Item = TypeVar("Item")
#: Runs before a recording: libraries choose their kernels and claim their workspaces in them.
_RUNS_BEFORE = 2


def filled_up(batch: Sequence[Item], sizes: Sequence[int]) -> list[Item]:
    """The batch and repeats of its last item, up to the next of the ascending `sizes`; larger ones stay as they are."""
    return [*batch, *[batch[-1]] * (bucket(len(batch), sizes) - len(batch))]


@dataclass(frozen=True, slots=True)
class _Recording:
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor
    graph: Any


class GraphedCall:
    """A function of tensors, replayed on a GPU and simply called elsewhere.

    `call` gets its inputs on the device and returns one tensor there. Its work may depend on their shapes alone: it
    must neither wait for the device nor pick sizes by values. One thread calls.
    """

    def __init__(self, call: Callable[..., torch.Tensor], device: str, *, record: bool = True) -> None:
        """record: whether to record on a GPU at all."""
        self._call = call
        self._device = device
        self.records = record and device.startswith("cuda")
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        # Shared by all recordings, as only one of them runs at a time and its output is read before the next.
        self._pool: Any = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Inputs may lie anywhere. The output lies on the device; it holds until the next call."""
        if self.records:
            shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
            recording = self._recordings.get(shapes) or self._record(shapes, inputs)
            if recording is not None:
                for place, given in zip(recording.inputs, inputs, strict=True):
                    place.copy_(given)
                recording.graph.replay()
                return recording.output
        return self._call(*[tensor.to(self._device) for tensor in inputs])

    def _record(self, shapes: tuple[Any, ...], inputs: tuple[torch.Tensor, ...]) -> _Recording | None:
        """None where this function cannot be recorded on this device; it is then called from here on."""
        places = tuple(tensor.to(self._device, copy=True) for tensor in inputs)
        try:
            with torch.cuda.device(self._device):
                recording = self._recorded(places)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.records = False
            log.warning("recording a CUDA graph failed, so every kernel is launched by itself: %r", error)
            return None
        self._recordings[shapes] = recording
        return recording

    def _recorded(self, places: tuple[torch.Tensor, ...]) -> _Recording:
        cuda: Any = torch.cuda
        current, aside = cuda.current_stream(), cuda.Stream()
        aside.wait_stream(current)
        with cuda.stream(aside):
            for _ in range(_RUNS_BEFORE):
                self._call(*places)
        current.wait_stream(aside)
        self._pool = self._pool or cuda.graph_pool_handle()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self._call(*places)
        return _Recording(places, output, graph)
