"""Code that a model wrote + tests -> whether the tests pass, in a process of its own with limits.

What holds it: a separate Python without site packages (`-I -S`), in an empty folder that is removed, with a bare environment; limits
of the kernel on CPU seconds, memory, the size of files and the number of open ones, and none that let it start processes (but for root);
a deadline, after which it is killed with its process group; and no network, where Linux lets a process make namespaces.

What does not: it runs as the user, and reads, changes and deletes what the user may. Where the system refuses namespaces it reaches the
network (`has_network` tells). As root it may start processes, which may outlive it. A program that wants to be taken for right can be: it
shares a process with the tests. Who does not trust the model that writes the code runs all of this in a container.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

CPU_SECONDS = 10
WAIT_FACTOR = 10  # the deadline, in multiples of the CPU limit: a busy machine runs slowly
SAID_CHARS = 200
_STDERR = "stderr"

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
# Limits come first. The token is said when the tests have come to their end: an answer that exits before does not say it.
_RUNNER = """
import ctypes, os, resource, sys
said, seconds = int(sys.argv[1]), int(sys.argv[2])
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER, CLONE_NEWNET
except (OSError, AttributeError):
    pass
for kind, most in (
    ("CPU", seconds), ("AS", 1 << 30), ("FSIZE", 1 << 20), ("NOFILE", 32), ("CORE", 0), ("NPROC", 0),
):
    if hasattr(resource, "RLIMIT_" + kind):
        resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (most, most))
token, code, tests = sys.stdin.buffer.read().split(b"\\0")
names = {"__name__": "answer"}
exec(compile(code, "answer", "exec"), names)
exec(compile(tests, "tests", "exec"), names)
os.write(said, token)
"""


def code_of(text: str) -> str:
    """Return the code of an answer: its fenced Python blocks, or all of it where there is none."""
    return "\n".join(_FENCE.findall(text)) or text


def failing_tests(code: str, tests: str, *, cpu_seconds: int = CPU_SECONDS) -> str | None:
    """Run code, then tests, and return what went wrong; None: the tests came to their end.

    Args:
        code: Of the answer.
        tests: Code that raises where the answer is wrong.
        cpu_seconds: Of both together; the deadline is ten times as long.
    """
    if "\0" in code + tests:
        return "the code holds a null character"
    token = secrets.token_hex(16)
    program = f"{token}\0{code}\0{tests}".encode("utf-8", "replace")
    reads, writes = os.pipe()
    os.set_blocking(reads, False)  # a process that outlives the tests may hold the other end
    try:
        with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
            why = _run(program, Path(folder), writes, cpu_seconds)
        os.close(writes)
        writes = -1
        with suppress(BlockingIOError):
            return None if os.read(reads, 64) == token.encode() else why
        return why
    finally:
        for end in (reads, writes):
            if end >= 0:
                os.close(end)


def has_network() -> bool:
    """Return whether code under test reaches the network here."""
    reach = "import errno, socket\ntry:\n socket.create_connection(('127.0.0.1', 9), 2)\nexcept OSError as e:\n assert e.errno == errno.ENETUNREACH"
    return failing_tests("", reach) is not None


def _run(program: bytes, folder: Path, said: int, cpu_seconds: int) -> str:
    """Run the program to its end, and return how it ended; the token goes through `said`."""
    inside = folder / "inside"
    inside.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(inside), "TMPDIR": str(inside), "LANG": "C.UTF-8"}
    command = [sys.executable, "-I", "-S", "-c", _RUNNER, str(said), str(cpu_seconds)]
    ended = ""
    with (folder / _STDERR).open("wb") as error:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=error, cwd=inside, env=environment,
            start_new_session=True, pass_fds=(said,),
        )  # fmt: skip
        try:
            process.communicate(program, timeout=WAIT_FACTOR * cpu_seconds)
        except subprocess.TimeoutExpired:
            ended = f"it did not end in {WAIT_FACTOR * cpu_seconds} s"
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not ended and process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        ended = f"it used up {cpu_seconds} s of CPU time"
    lines = (folder / _STDERR).read_bytes()[-4096:].decode("utf-8", "replace").strip().splitlines()
    return ended or (lines[-1][:SAID_CHARS] if lines else "it ended before the tests did")
