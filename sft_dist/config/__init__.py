"""The only schema: pydantic models (data, train, cluster), frozen, no unknown keys; `load` composes and validates.

Nothing here imports torch. Below the pipelines, functions take leaf values, never these models.
"""

from sft_dist.config.root import RunConfig

__all__ = ["RunConfig"]
