"""A real HTTP server on loopback, in a thread, that speaks the OpenAI protocol and misbehaves when it is told to."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Fault:
    """What the server does instead of answering one request."""

    kind: str  # status, slow, reset, cut, not_json, no_choices, silent
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "scripted"}}'
    seconds: float = 0.0


def status(code: int, message: str = "scripted", **headers: str) -> Fault:
    return Fault(
        "status",
        code,
        {k.replace("_", "-"): v for k, v in headers.items()},
        json.dumps({"error": {"message": message}}),
    )


@dataclass
class Seen:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ScriptedServer:
    """Answers `answer(body)`: a text, or (text, finish_reason). `faults(n, body)` may give another fate to request n."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str | tuple[str, str]] = lambda _: "fine",
        faults: Callable[[int, dict[str, Any]], Fault | None] = lambda *_: None,
        delay_s: float = 0.0,
        usage: bool = True,
    ) -> None:
        self.answer, self.faults, self.delay_s, self.usage = answer, faults, delay_s, usage
        self.seen: list[Seen] = []
        self.served: Counter[str] = Counter()  # body -> how often it was answered
        self.running = self.peak = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        number = len(self.seen)
        self.seen.append(Seen(head[0].split()[1], headers, body))
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            fault = self.faults(number, body)
            await asyncio.sleep(fault.seconds if fault and fault.kind == "slow" else self.delay_s)
        finally:
            self.running -= 1
        if fault is None or fault.kind == "slow":
            await _send(writer, 200, {}, self._completion(body))
            self.served[json.dumps(body, sort_keys=True)] += 1
            return True
        if fault.kind == "reset":  # RST instead of FIN
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if fault.kind == "silent":
            return False
        if fault.kind == "cut":
            whole = self._completion(body).encode()
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(whole)}\r\n\r\n".encode() + whole[:20])
            await writer.drain()
            return False
        text = {"not_json": '{"choices": [', "no_choices": '{"choices": []}'}.get(fault.kind, fault.body)
        await _send(writer, fault.status, fault.headers, text)
        return True

    def _completion(self, body: dict[str, Any]) -> str:
        answer = self.answer(body)
        text, finish = answer if isinstance(answer, tuple) else (answer, "stop")
        chat = "messages" in body
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        )
        choices = [{"index": i, "finish_reason": finish, **content} for i in range(body.get("n", 1))]
        asked = body["messages"][-1]["content"] if chat else body["prompt"]
        usage = {"prompt_tokens": len(asked.split()), "completion_tokens": len(text.split()) * len(choices)}
        return json.dumps({"choices": choices, **({"usage": usage} if self.usage else {})})


async def _send(writer: asyncio.StreamWriter, code: int, headers: dict[str, str], text: str) -> None:
    body = text.encode()
    lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()


def prompt_of(body: dict[str, Any]) -> str:
    """The text that is asked, of either endpoint."""
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]
