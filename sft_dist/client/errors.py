"""Why a request has no completion. What is answered already stays in the cache whichever of them is raised."""

from __future__ import annotations


class RefusedError(Exception):
    """The server will never answer this request (too long a prompt, a refused parameter); others it may."""


class UnavailableError(RuntimeError):
    """The server did not answer in spite of all attempts; the same command later may succeed."""


class BudgetSpentError(Exception):
    """The token budget does not allow this request."""
