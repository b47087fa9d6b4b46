"""Where nodes hand in what they found: lines of JSON over TCP to node 0. Standard library only.

The doctor must receive from a node whose torch is broken, and must name one that says nothing, so it does not use torch's
own rendezvous. Clocks are compared as NTP does: half of the shortest round trip is the error.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

PINGS = 5
RETRY_S = 0.5


class RendezvousServer:
    """Node 0: collects parts, answers pings, tells everybody what comes next."""

    def __init__(self, port: int, token: str) -> None:
        """Listen on every interface.

        Raises:
            OSError: When the port is taken.
        """
        self._token = token
        self._parts: dict[tuple[int, int], Any] = {}  # (phase, index of the node)
        self._files: dict[int, IO[str]] = {}
        self._gone: set[int] = set()
        self._changed = threading.Condition()
        self._server = socket.create_server(("", port))
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
            files = list(self._files.values())
        for file in files:
            _send(file, message)

    def _accept(self) -> None:
        while True:
            visitor, _ = self._server.accept()
            self.address = visitor.getsockname()[0]
            threading.Thread(target=self._serve, args=(visitor,), daemon=True).start()

    def _serve(self, visitor: socket.socket) -> None:
        index = None
        try:
            with visitor.makefile("rw", encoding="utf-8") as file:
                for line in file:
                    message = json.loads(line)
                    if message.get("token") != self._token:
                        return  # not one of this job
                    if "ping" in message:
                        _send(file, {"pong": time.time()})
                        continue
                    index = int(message["index"])
                    with self._changed:
                        self._files[index] = file
                        self._parts[int(message["phase"]), index] = message["part"]
                        self._changed.notify_all()
        except (OSError, ValueError, KeyError):
            pass  # a stranger, or a node that died: it is missing then
        with self._changed:
            if index is not None:
                self._gone.add(index)
                self._files.pop(index, None)
            self._changed.notify_all()


class RendezvousClient:
    """Any other node: hands in, and waits for an answer."""

    def __init__(self, address: str, port: int, *, index: int, token: str, wait_s: float) -> None:
        """Connect as soon as node 0 listens.

        Raises:
            OSError: When it does not within `wait_s`.
        """
        end = time.monotonic() + wait_s
        while True:
            try:
                self._socket = socket.create_connection(
                    (address, port), timeout=max(1.0, end - time.monotonic())
                )
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(RETRY_S)
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._index, self._token = index, token

    def clock_offset_s(self) -> float:
        """Return how far this node's clock is ahead of node 0's, in seconds."""
        trips = []
        for _ in range(PINGS):
            sent = time.time()
            _send(self._file, {"token": self._token, "ping": sent})
            theirs, back = self.receive(10.0)["pong"], time.time()
            trips.append((back - sent, (sent + back) / 2 - theirs))
        return float(min(trips)[1])

    def send(self, phase: int, part: Any) -> None:
        """Send what this node found."""
        _send(self._file, {"token": self._token, "index": self._index, "phase": phase, "part": part})

    def receive(self, wait_s: float) -> Any:
        """Return the next message of node 0.

        Raises:
            OSError: When none comes in time, or node 0 is gone.
        """
        self._socket.settimeout(wait_s)
        line = self._file.readline()
        if not line:
            raise OSError("node 0 hung up")
        return json.loads(line)


def _send(file: IO[str], message: Mapping[str, Any]) -> None:
    try:
        file.write(json.dumps(message) + "\n")
        file.flush()
    except (OSError, ValueError):
        return  # gone; whoever waits for it will miss it
