"""The paper's three models at their full size, with random weights: load, one training step, one evaluation batch.

Each is written as the hub lays it out (config.json and shards of bfloat16 safetensors; MiniCPM in its own words),
loaded by cft, given the paper's LoRA, and run in a process of its own, so that its peak memory is its own. On a GPU
the seconds are printed too; on a CPU they would say more about the machine than about the model.

    python benchmarks/full_size.py                      # all three; 6 GB of disk at a time, 16 GB of memory
    python benchmarks/full_size.py phi2 --triplets 7    # one, at the batch that the original gave each of its GPUs
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from cft.config.schema import LoraSettings, ModelSettings
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, trainable
from cft.model.minicpm import granite_config
from cft.model.tokenizer import byte_tokenizer
from cft.system.tables import as_text
from cft.training import memory
from cft.training.losses import info_nce

# The shapes of the published configurations (openbmb/MiniCPM-2B-dpo-bf16, microsoft/phi-2, google/gemma-2b-it).
SHAPES: dict[str, dict] = {
    "minicpm": {
        "model_type": "minicpm", "hidden_size": 2304, "num_hidden_layers": 40, "num_attention_heads": 36,
        "num_key_value_heads": 36, "intermediate_size": 5760, "vocab_size": 122753, "rms_norm_eps": 1e-5,
        "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "max_position_embeddings": 4096,
        "hidden_act": "silu",
    },
    "phi2": {
        "model_type": "phi", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 10240, "vocab_size": 51200, "partial_rotary_factor": 0.4, "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
    },
    "gemma": {
        "model_type": "gemma", "hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 16384, "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
}  # fmt: skip
SHARD_BYTES = 2**31
# Tokens of a text: NLI sentences of the paper's data have 18 on average.
LENGTH = 18


def write_checkpoint(name: str, folder: Path) -> None:
    """Random weights of a model's full size, in the files that its hub repository has."""
    told = SHAPES[name]
    (folder / "config.json").write_text(json.dumps(told))
    byte_tokenizer().save_pretrained(folder)
    config = granite_config(told) if name == "minicpm" else AutoConfig.for_model(**told)
    with torch.device("meta"):
        shapes = AutoModel.from_config(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    shards: list[list[str]] = []

    def flush() -> None:
        save_file(shard, folder / f"model-{len(shards) + 1:05d}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for tensor_name, like in shapes.items():
        tensor = torch.empty(like.shape, dtype=torch.bfloat16)
        if like.dim() > 1:
            tensor.normal_(0, 0.02, generator=generator)
        else:
            tensor.fill_(1.0 if "norm" in tensor_name and tensor_name.endswith("weight") and name != "gemma" else 0.0)
        shard[f"model.{tensor_name}"] = tensor
        if sum(t.numel() * 2 for t in shard.values()) > SHARD_BYTES:
            flush()
    if shard:
        flush()
    files = {tensor: f"model-{number + 1:05d}.safetensors" for number, names in enumerate(shards) for tensor in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def measure(name: str, triplets: int, tokens: int, device: torch.device) -> dict:
    """Load one model, train it for a step and evaluate a batch of so many tokens."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(name, Path(folder))
        base = Embedder.base(ModelSettings(name=name, path=folder), device=device, dtype=torch.bfloat16)
    weights = memory.weight_bytes(base.model)
    embedder = Embedder(add_lora(base.model, LoraSettings(), seed=0).to(device), base.backbone, base.contract)
    optimizer = torch.optim.AdamW(trainable(embedder.model).values(), lr=5e-5)
    layout = embedder.layout(memory._texts(embedder, 3 * triplets, LENGTH))
    seconds: dict[str, float] = {}

    def timed(what: str, work) -> None:  # noqa: ANN001
        for _ in range(3 if device.type == "cuda" else 1):  # the first warms up
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[what] = time.perf_counter() - began

    losses: list[float] = []

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            vectors = embedder.forward(layout)
        anchor, positive, negative = vectors.split(triplets)
        loss = info_nce(anchor, positive, negative, temperature=0.05).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())

    def batch() -> None:
        with torch.inference_mode():
            embedder.forward(evaluated)

    evaluated = embedder.layout(memory._texts(embedder, max(tokens // LENGTH, 1), LENGTH))
    embedder.model.eval()
    timed("evaluation", batch)
    after_evaluation = _peak(device)
    embedder.model.train()
    timed("training", step)
    assert all(torch.isfinite(torch.tensor(losses))), losses
    return {
        "parameters": sum(w.numel() for w in base.model.parameters()),
        "batches": base.backbone.batching.kind.value,
        "difference": base.backbone.batching.difference,
        "weights": weights,
        "evaluation_peak": after_evaluation,
        "training_peak": _peak(device),
        "nodes": layout.nodes,
        "evaluated": evaluated.nodes,
        "loss": losses[-1],
        "seconds": seconds,
    }


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure each model in a process of its own and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(SHAPES), metavar="MODEL", help=", ".join(SHAPES))
    parser.add_argument("--triplets", type=int, default=60, help="of the training step; the paper's 60")
    parser.add_argument("--tokens", type=int, default=2048, help="of the evaluation batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.one:
        sys.stdout.write(json.dumps(measure(arguments.one, arguments.triplets, arguments.tokens, device)) + "\n")
        return
    rows = [
        (
            "model",
            "weights",
            "batches",
            "GiB weights",
            "GiB evaluating",
            "GiB training",
            "loss",
            "s evaluating",
            "s a step",
        )
    ]
    for name in arguments.models:
        print(f"{name}: writing, loading and running it", file=sys.stderr)
        command = [sys.executable, __file__, "--one", name, "--device", arguments.device]
        command += ["--triplets", str(arguments.triplets), "--tokens", str(arguments.tokens)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        sizes = [f"{found[key] / 2**30:.2f}" for key in ("weights", "evaluation_peak", "training_peak")]
        times = [f"{found['seconds'][key]:.3f}" if device.type == "cuda" else "" for key in ("evaluation", "training")]
        exact = f"{found['batches']} ({found['difference']:.1e})"
        rows.append((name, f"{found['parameters']:,}", exact, *sizes, f"{found['loss']:.3f}", *times))
        print(f"  training: {found['nodes']:,} tokens; evaluation: {found['evaluated']:,}", file=sys.stderr)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (memory is the whole process's peak)"
    print(f"{arguments.triplets} triplets of {3 * LENGTH} tokens, LoRA of the paper, bfloat16, on {where}\n")
    print(as_text(rows))


if __name__ == "__main__":
    main()
