"""Where nodes hand in what they found: signed lines of JSON over TCP to node 0. Standard library only.

The doctor must receive from a node whose torch is broken, and must name one that says nothing, so it does not use torch's
own rendezvous. On a shared network everybody can connect, so every line is signed: both sides hold a secret (a file of mode
0600 on the shared disk), each connection has a key of its own from the secret and a random text of either side, and a line
counts once. What is not signed is not read, and lines and connections are bounded. Clocks are compared as NTP does: half of
the shortest round trip is the error.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_dist.core.files import write_text

PINGS = 5
RETRY_S = 0.5
MAX_LINE = 1 << 20  # bytes; what a node finds is some kilobytes
MAX_STRANGERS = 64  # connections at a time that have not signed a line yet
HELLO_S = 10.0  # for the first signed line


def make_secret(file: Path) -> str:
    """Write a new secret that only this user can read; return it."""
    secret = secrets.token_hex(32)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, secret, private=True)
    return secret


def read_secret(file: Path) -> str:
    """Read the secret that node 0 wrote.

    Raises:
        OSError: When it is not there, belongs to somebody else, or others can read it.
    """
    with file.open(encoding="ascii") as f:
        state = os.fstat(f.fileno())
        if state.st_uid != os.getuid() or state.st_mode & 0o077:
            raise OSError(f"{file} belongs to another user or can be read by others, so it is not believed")
        return f.read(256)


class _Line:
    """One side of a connection: signs what it sends, reads what the other side signed."""

    def __init__(self, connection: socket.socket, secret: str, *, server: bool) -> None:
        self._file = connection.makefile("rwb")
        mine = secrets.token_hex(16)
        self._file.write(mine.encode() + b"\n")
        self._file.flush()
        theirs = self._file.readline(64).strip().decode("ascii", "replace")
        both = f"{mine}.{theirs}" if server else f"{theirs}.{mine}"
        self._key = hmac.digest(secret.encode(), both.encode(), hashlib.sha256)
        self._out, self._in = (b"S", b"C") if server else (b"C", b"S")
        self._sent = self._received = 0
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; one that cannot be sent is lost, and whoever waits for it misses it."""
        text = json.dumps(message).encode()
        try:
            with self._lock:
                self._file.write(self._sign(self._out, self._sent, text) + b" " + text + b"\n")
                self._file.flush()
                self._sent += 1
        except (OSError, ValueError):
            return

    def receive(self) -> Any:
        """Return the next message, None when the other side hung up.

        Raises:
            OSError: When a line is not signed, too long, or late.
        """
        line = self._file.readline(MAX_LINE + 1)
        if not line:
            return None
        signature, _, text = line.rstrip(b"\n").partition(b" ")
        if len(line) > MAX_LINE or not hmac.compare_digest(
            signature, self._sign(self._in, self._received, text)
        ):
            raise OSError("a line is not signed by this job")
        self._received += 1
        return json.loads(text)

    def _sign(self, side: bytes, number: int, text: bytes) -> bytes:
        return (
            hmac.digest(self._key, side + str(number).encode() + b" " + text, hashlib.sha256).hex().encode()
        )


class RendezvousServer:
    """Node 0: collects parts, answers pings, tells everybody what comes next."""

    def __init__(self, port: int, secret: str, *, alone: bool = False) -> None:
        """Listen, on loopback when no other machine takes part.

        Raises:
            OSError: When the port is taken.
        """
        self._secret = secret
        self._parts: dict[tuple[int, int], Any] = {}  # (phase, index of the node)
        self._lines: dict[int, _Line] = {}
        self._gone: set[int] = set()
        self._changed = threading.Condition()
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)
        self._server = socket.create_server(("127.0.0.1" if alone else "", port))
        self.address: str | None = None  # the one of ours by which the others found us
        threading.Thread(target=self._accept, daemon=True).start()

    def collect(self, phase: int, indices: set[int], wait_s: float) -> dict[int, Any]:
        """Return the parts of a phase by node; those that do not come in time, or that hung up, are missing."""
        end = time.monotonic() + wait_s
        with self._changed:
            while True:
                have = {i for p, i in self._parts if p == phase}
                left = end - time.monotonic()
                if not indices - have - self._gone or left <= 0:
                    return {i: self._parts[phase, i] for i in sorted(have & indices)}
                self._changed.wait(left)

    def broadcast(self, message: Mapping[str, Any]) -> None:
        """Send one message to every node that is still there."""
        with self._changed:
            lines = list(self._lines.values())
        for line in lines:
            line.send(message)

    def _accept(self) -> None:
        while True:
            visitor, _ = self._server.accept()
            if not self._strangers.acquire(blocking=False):
                visitor.close()  # a node tries again
                continue
            threading.Thread(target=self._serve, args=(visitor,), daemon=True).start()

    def _serve(self, visitor: socket.socket) -> None:
        index, known = None, False
        try:
            with visitor:
                visitor.settimeout(HELLO_S)
                line = _Line(visitor, self._secret, server=True)
                while (message := line.receive()) is not None:
                    if not known:
                        known, self.address = True, visitor.getsockname()[0]
                        self._strangers.release()
                        visitor.settimeout(None)
                    if "ping" in message:
                        line.send({"pong": time.time()})
                        continue
                    index = int(message["index"])
                    with self._changed:
                        self._lines[index] = line
                        self._parts[int(message["phase"]), index] = message["part"]
                        self._changed.notify_all()
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a stranger, or a node that died: it is missing then
        if not known:
            self._strangers.release()
        with self._changed:
            if index is not None:
                self._gone.add(index)
                self._lines.pop(index, None)
            self._changed.notify_all()


class RendezvousClient:
    """Any other node: hands in, and waits for an answer. Only what node 0 signed is an answer."""

    def __init__(self, address: str, port: int, *, index: int, secret_file: Path, wait_s: float) -> None:
        """Connect as soon as node 0 has written its secret and listens.

        Raises:
            OSError: When it does not within `wait_s`.
        """
        self._index = index
        end = time.monotonic() + wait_s
        while True:
            try:
                secret = read_secret(secret_file)
                left = max(1.0, end - time.monotonic())
                self._socket = socket.create_connection((address, port), timeout=left)
                self._line = _Line(self._socket, secret, server=False)
                self._line.send({"ping": 0})
                if self._line.receive() is not None:
                    return
                raise OSError("node 0 hung up")  # busy, or the secret is an earlier one
            except (OSError, ValueError):
                if time.monotonic() > end:
                    raise
                time.sleep(RETRY_S)

    def clock_offset_s(self) -> float:
        """Return how far this node's clock is ahead of node 0's, in seconds."""
        trips = []
        for _ in range(PINGS):
            sent = time.time()
            self._line.send({"ping": sent})
            theirs, back = self.receive(10.0)["pong"], time.time()
            trips.append((back - sent, (sent + back) / 2 - theirs))
        return float(min(trips)[1])

    def send(self, phase: int, part: Any) -> None:
        """Send what this node found."""
        self._line.send({"index": self._index, "phase": phase, "part": part})

    def receive(self, wait_s: float) -> Any:
        """Return the next message of node 0.

        Raises:
            OSError: When none comes in time, it is not signed, or node 0 is gone.
        """
        self._socket.settimeout(wait_s)
        message = self._line.receive()
        if message is None:
            raise OSError("node 0 hung up")
        return message
