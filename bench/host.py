"""What does the host spend on a micro-step, by ZeRO stage and compilation, beside a bare loop? The ratio is what counts.

    python bench/host.py                         # two minutes on a CPU; one process, every way in turn
    python bench/host.py --layers 4 --rounds 4   # as the test suite does

The depth of a real model (28 layers of Qwen3) and a toy width, so that kernels cost next to nothing: CPU milliseconds of one
micro-step, forward and backward, are what Python and DeepSpeed take. On a GPU the device waits for them wherever its own work is
shorter, at 0.6B always. Rounds of all ways alternate, so that a busy machine slows them alike; the median of each is taken.
Prints one JSON object: milliseconds by way, and each over that of the bare loop.
Expect (28 layers, quiet machine): stage 1 1.4, stage 2 1.7, stage 3 3.1, stage 3 recomputed 5; compiled below 2.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(DS_ACCELERATOR="cpu", TOKENIZERS_PARALLELISM="false")

import numpy as np

TOKENS, VOCABULARY = 16, 300
# name -> (stage; None: no DeepSpeed at all, recomputed, compiled)
WAYS = {
    "bare": (None, False, False),
    "bare, compiled": (None, False, True),
    "stage 1": (1, False, False),
    "stage 2": (2, False, False),
    "stage 3": (3, False, False),
    "stage 3, recomputed": (3, True, False),
    "stage 3, compiled": (3, False, True),
}


def make_model(folder, layers):
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(
        "qwen3", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def make_way(model, stage, recomputed, compiled):
    """A function that runs one micro-step."""

    from sft_dist.config.model import ModelConfig
    from sft_dist.config.train import DeepSpeedConfig, OptimConfig
    from sft_dist.core.records import Batch
    from sft_dist.model import activation_memory
    from sft_dist.model.load import load_packed
    from sft_dist.model.packed import to_inputs
    from sft_dist.train import zero
    from sft_dist.train.optim import parameter_groups

    settings = None
    if stage is not None:
        settings = zero.zero_config(
            DeepSpeedConfig(
                stage=stage, reduce_bucket_size=1_000_000, prefetch_bucket_size=200_000, persistence_threshold=100
            ),
            dtype="bfloat16", clip=1.0,
        )  # fmt: skip
    module = load_packed(
        str(model),
        ModelConfig(dtype="bfloat16" if stage else "float32", gradient_checkpointing=recomputed),
        device="cpu",
        zero_config=settings if stage == 3 else None,
    ).module
    if compiled:
        activation_memory.compile_layers(module.hf)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, TOKENS)
    batch = Batch.of_documents(ids, np.array([TOKENS]), np.arange(1, TOKENS))
    inputs = to_inputs(batch, "cpu")
    if stage is None:
        module.train()

        def bare():
            module(*inputs)[0].backward()
            module.zero_grad(set_to_none=True)

        return bare
    engine = zero.make_engine(module, settings, parameter_groups(module, OptimConfig()), OptimConfig())
    engine.train()
    return lambda: engine.backward(engine(*inputs)[0], scale_wrt_gas=False)


def measure(ways, layers, rounds):
    """CPU milliseconds of a micro-step, by way."""
    import torch

    from sft_dist.train import zero

    torch.set_num_threads(1)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ.setdefault("MASTER_PORT", str(s.getsockname()[1]))
    zero.init_distributed(5)
    with tempfile.TemporaryDirectory() as scratch:
        make_model(Path(scratch) / "model", layers)
        runs = {name: make_way(Path(scratch) / "model", *WAYS[name]) for name in ways}
    took = {name: [] for name in runs}
    for round_ in range(rounds + 2):  # the first two allocate, trace and compile
        for name, run in runs.items():
            began = time.process_time()
            run()
            if round_ > 1:
                took[name].append(1000 * (time.process_time() - began))
    return {name: statistics.median(values) for name, values in took.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    ms = measure(["bare", *(w for w in options.ways if w != "bare")], options.layers, options.rounds)
    found = {
        "layers": options.layers,
        "ms": {name: round(value, 1) for name, value in ms.items()},
        "over_bare": {name: round(value / ms["bare"], 2) for name, value in ms.items()},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
