"""What GPUs can do, from the vendors' data sheets: for MFU and for the estimate."""

from __future__ import annotations

from typing import NamedTuple

GIB = 1 << 30


class Device(NamedTuple):
    """Dense bf16 peak in FLOP/s, and memory in bytes as the driver shows it."""

    peak_flops: float
    memory_bytes: int


# The first key that a device's name contains counts, so a longer one stands before its part.
DEVICES = {
    "B200": Device(2250e12, 178 * GIB),
    "GH200": Device(989e12, 94 * GIB),
    "H200": Device(989e12, 139 * GIB),
    "H100": Device(989e12, 79 * GIB),
    "A100-SXM4-40GB": Device(312e12, 39 * GIB),
    "A100-PCIE-40GB": Device(312e12, 39 * GIB),
    "A100": Device(312e12, 79 * GIB),
    "L40S": Device(362e12, 44 * GIB),
    "A10G": Device(70e12, 22 * GIB),
    "L4": Device(121e12, 22 * GIB),
}


def find_device(name: str) -> Device | None:
    """Return the entry for a device's name as the driver or a user writes it, such as `NVIDIA H100 80GB HBM3`."""
    return next((device for key, device in DEVICES.items() if key.lower() in name.lower()), None)
