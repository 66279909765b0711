"""What the hardware can do, measured on the spot, and the one place where a time becomes a ratio to it."""

import statistics
from collections.abc import Callable
from time import perf_counter

import torch

COPY = {"cuda": 1 << 31, "cpu": 1 << 28}
PRODUCT = {"cuda": 8192, "cpu": 512}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one run, the device waited for before and after."""
    wait(device)
    began = perf_counter()
    run()
    wait(device)
    return perf_counter() - began


def milliseconds(run: Callable[[], object], device: torch.device, repeat: int = 10, warm: int = 3) -> float:
    """Median of single runs, by the device's events where it has them."""
    times = []
    for i in range(warm + repeat):
        if device.type == "cuda":
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            run()
            b.record()
            b.synchronize()
            spent = a.elapsed_time(b)
        else:
            spent = 1e3 * seconds(run, device)
        if i >= warm:
            times.append(spent)
    return statistics.median(times)


def copy_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Bytes per second of a copy inside the device's memory, read plus written; size: bytes copied."""
    a, b = torch.empty(2, size or COPY[device.type], dtype=torch.uint8, device=device)
    a.fill_(1)  # untouched host memory is one page of zeros, and copies as fast as the caches do
    return 2 * a.numel() / (milliseconds(lambda: b.copy_(a), device) / 1e3)


def product_rate(device: torch.device, dtype: torch.dtype, n: int | None = None) -> float:
    """Floating-point operations per second of an n x n matrix product of random numbers."""
    n = n or PRODUCT[device.type]
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / (milliseconds(lambda: a @ b, device) / 1e3)


def floor_ms(amount: float, rate: float) -> float:
    """The roofline: milliseconds that bytes take at a bandwidth, or operations at a rate."""
    return amount / rate * 1e3
