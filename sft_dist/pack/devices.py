"""What GPUs can do, from the vendors' data sheets: for MFU and for the estimate."""

from __future__ import annotations

from typing import NamedTuple

GIB = 1 << 30


class Device(NamedTuple):
    """A GPU.

    Attributes:
        peak_flops: Dense bf16 peak in FLOP/s.
        memory_bytes: Memory as the driver shows it.
        bandwidth: Of that memory, bytes a second.
        link: To the other GPUs of a node, bytes a second one way: NVLink, or PCIe at what it reaches.
    """

    peak_flops: float
    memory_bytes: int
    bandwidth: float
    link: float


NVLINK5, NVLINK4, NVLINK3, PCIE5, PCIE4 = 700e9, 350e9, 230e9, 40e9, 20e9

DEVICES = {
    "B200": Device(2250e12, 178 * GIB, 8.0e12, NVLINK5),
    "GH200": Device(989e12, 94 * GIB, 4.0e12, NVLINK4),
    "H200": Device(989e12, 139 * GIB, 4.8e12, NVLINK4),
    "H200 NVL": Device(835e12, 139 * GIB, 4.8e12, NVLINK4),
    "H100": Device(989e12, 79 * GIB, 3.35e12, NVLINK4),
    "H100 NVL": Device(835e12, 93 * GIB, 3.9e12, PCIE5),
    "H100 PCIe": Device(756e12, 79 * GIB, 2.0e12, PCIE5),
    "A100": Device(312e12, 79 * GIB, 2.0e12, NVLINK3),
    "A100-SXM4-40GB": Device(312e12, 39 * GIB, 1.55e12, NVLINK3),
    "A100-PCIE-40GB": Device(312e12, 39 * GIB, 1.55e12, PCIE4),
    "L40S": Device(362e12, 44 * GIB, 0.86e12, PCIE4),
    "L40": Device(181e12, 44 * GIB, 0.86e12, PCIE4),
    "A40": Device(150e12, 44 * GIB, 0.7e12, PCIE4),
    "A10G": Device(70e12, 22 * GIB, 0.6e12, PCIE4),
    "A10": Device(125e12, 22 * GIB, 0.6e12, PCIE4),
    "L4": Device(121e12, 22 * GIB, 0.3e12, PCIE4),
}


def find_device(name: str) -> Device | None:
    """Return the entry for a device's name as the driver or a user writes it, such as `NVIDIA H100 80GB HBM3`.

    Of keys that the name contains the longest counts, so a variant is not taken for its namesake.
    """
    contained = [key for key in DEVICES if key.lower() in name.lower()]
    return DEVICES[max(contained, key=len)] if contained else None
