"""Requests to an OpenAI-compatible server -> completions, each bought once. Used by construct.

`Client.complete` answers from the cache on disk where it can; else it keeps to concurrency, rates and budget, and retries.
"""

from sft_dist.client.cache import Cache
from sft_dist.client.client import Client, Stats
from sft_dist.client.errors import BudgetSpentError, RefusedError, UnavailableError
from sft_dist.client.ordered_map import map_in_order
from sft_dist.client.request import Choice, Completion, CompletionRequest, request_seed, unusable

__all__ = [
    "BudgetSpentError",
    "Cache",
    "Choice",
    "Client",
    "Completion",
    "CompletionRequest",
    "RefusedError",
    "Stats",
    "UnavailableError",
    "map_in_order",
    "request_seed",
    "unusable",
]
