"""Tokens -> token store -> Tokens. Whole examples, untruncated, memory-mapped. Next: mix.

A store is a folder: `manifest.json` (written last), `shard-NNNNN.arrow` with one completion record
`shard-NNNNN.json` each, and `index/*.npy`, flat arrays from which an epoch is planned without opening a shard.
"""

from sft_dist.shards.build import finish_store, finished_shards, is_whole, open_build
from sft_dist.shards.format import FORMAT_VERSION, ShardRecord, remove_manifest, token_dtype
from sft_dist.shards.reader import Store
from sft_dist.shards.writer import ShardWriter

__all__ = [
    "FORMAT_VERSION",
    "ShardRecord",
    "ShardWriter",
    "Store",
    "finish_store",
    "finished_shards",
    "is_whole",
    "open_build",
    "remove_manifest",
    "token_dtype",
]
