"""Print the network interface whose address this machine uses towards ADDRESS, or nothing when none is found.

Gloo otherwise takes the interface of the machine's own name, which is 127.0.1.1 on a stock Debian or Ubuntu, and
two nodes then wait for each other for ever. Standard library only: containers often have no `ip` command.
"""  # noqa: INP001  a script beside others, not a package

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from pathlib import Path

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
IPV6_ADDRESSES = Path("/proc/net/if_inet6")


def source_address(peer: str) -> tuple[socket.AddressFamily, str]:
    """Return family and own address of the route to `peer`; connecting a UDP socket sends nothing."""
    family, _, _, _, target = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return family, probe.getsockname()[0]


def addresses_v4() -> dict[str, str]:
    """Return the IPv4 address of each interface that has one, by address."""
    out = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # an interface without an address
                continue
            out[socket.inet_ntoa(reply[20:24])] = name
    return out


def addresses_v6() -> dict[str, str]:
    """Return the interface of each IPv6 address."""
    rows = (
        [line.split() for line in IPV6_ADDRESSES.read_text().splitlines()] if IPV6_ADDRESSES.exists() else []
    )
    return {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0])): row[5] for row in rows}


def interface_to(peer: str) -> str:
    """Return the name of the interface towards `peer`; empty when there is no route or no interface has the address."""
    try:
        family, own = source_address(peer)
    except OSError:
        return ""
    if own.startswith("127."):
        return "lo"  # all of 127/8 is the loopback's, whichever address it carries
    found = addresses_v6() if family == socket.AF_INET6 else addresses_v4()
    return found.get(own, "")


if __name__ == "__main__":
    sys.stdout.write(interface_to(sys.argv[1]) + "\n")
