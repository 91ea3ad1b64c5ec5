"""Kernels, host synchronizations and device time of a training step, from torch.profiler."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

_SYNCHRONIZE = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
_LAUNCH = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
_READ = {"aten::_local_scalar_dense", "aten::nonzero"}
"""Operators that wait for a device, which are counted on a CPU, without CUDA calls."""

Figures = dict[str, Any]


def figures_or_error(measure: Callable[[], Figures]) -> Figures:
    """Return the figures of a row, or its error, after which the next row is measured."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


class StepProfile:
    """Profile of a few steps, from `start` to `stop`."""

    def __init__(self, device: torch.device) -> None:
        activities = [ProfilerActivity.CPU]
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            activities.append(ProfilerActivity.CUDA)
        self._device = device
        self._profile = torch.profiler.profile(activities=activities)

    def start(self) -> None:
        """Begin when the device has finished earlier work."""
        synchronize(self._device)
        self._profile.start()

    def stop(self, steps: int, step_seconds: float) -> Figures:
        """Return the figures per step; a step takes `step_seconds` without the profiler."""
        synchronize(self._device)
        self._profile.stop()
        events = list(self._profile.events() or [])
        if not self._is_cuda:
            reads = sum(event.name in _READ for event in events)
            return {"host_syncs": reads / steps}
        # the last synchronization is that of `stop`
        host = [event.name for event in events if event.device_type == DeviceType.CPU]
        work = [
            event
            for event in events
            if event.device_type == DeviceType.CUDA
            and not getattr(event, "is_user_annotation", False)
        ]
        copies = ("Memcpy", "Memset")
        busy_us = union_length((e.time_range.start, e.time_range.end) for e in work)
        return {
            "kernels": sum(not event.name.startswith(copies) for event in work) / steps,
            "launches": sum(name.startswith(_LAUNCH) for name in host) / steps,
            "host_syncs": max(0, sum(name in _SYNCHRONIZE for name in host) - 1) / steps,
            "gpu_milliseconds": busy_us / 1_000 / steps,
            "gpu_busy": busy_us / 1e6 / steps / step_seconds,
        }


def union_length(ranges: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, as streams may work concurrently."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(ranges):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def time_loop(
    step: Callable[[int], Any],
    device: torch.device,
    *,
    sessions: int,
    least_seconds: float,
    warm_up: int = 10,
    profiled: int = 8,
) -> Figures:
    """Return rate, time, memory and profile of `step`, called with the number of the step.

    `sessions` is the number of sessions of a step.
    """
    reset_peak(device)
    for number in range(warm_up):
        step(number)
    synchronize(device)
    begin, number = time.perf_counter(), 0
    while number < 2 * profiled or time.perf_counter() - begin < least_seconds:
        step(number)
        number += 1
        if not number % profiled:  # otherwise the host would run ahead of the device
            synchronize(device)
    synchronize(device)
    seconds = (time.perf_counter() - begin) / number
    figures = {"sessions_per_second": sessions / seconds, "milliseconds": 1_000 * seconds}
    figures |= peak(device)
    profile = StepProfile(device)
    profile.start()
    for each in range(profiled):
        step(each)
    return figures | profile.stop(profiled, seconds)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin to measure the peak of GPU memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> Figures:
    """Return the peak of the GPU memory that torch allocates."""
    if device.type != "cuda":
        return {}
    return {"peak_bytes": torch.cuda.max_memory_allocated(device)}
