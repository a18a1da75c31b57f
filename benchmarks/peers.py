"""The sides that benchmarks compare: this package, sentence-transformers and the reference code's way."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from cft.config.schema import LoraSettings, ModelSettings
from cft.model.embedder import Embedder
from cft.model.lora import find_targets
from cft.model.sources import fetch

PADDED_TO = 150  # the reference code's


def sentence_transformer(
    model: ModelSettings, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """The same weights in sentence-transformers: last token's state, normalised. EOS is the caller's to write.

    Raises:
        ImportError: if it is not installed.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    with tempfile.TemporaryDirectory() as folder:
        _without_chat_template(fetch(model).folder, Path(folder))
        # by transformers' own argument: `.to` would also round the positions' frequencies
        transformer = Transformer(folder, max_seq_length=model.max_length, model_kwargs={"dtype": dtype})
    tokenizer = transformer.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    width = transformer.get_word_embedding_dimension()
    return SentenceTransformer(
        modules=[transformer, Pooling(width, pooling_mode="lasttoken"), Normalize()], device=str(device)
    )


def its_version() -> str:
    """Sentence-transformers as tables call it."""
    import sentence_transformers

    return f"sentence-transformers {sentence_transformers.__version__}"


def _without_chat_template(folder: Path, copy: Path) -> None:
    """The same model, but texts are not silently wrapped into a conversation."""
    for path in folder.iterdir():
        if path.name == "tokenizer_config.json":
            told = json.loads(path.read_text())
            told.pop("chat_template", None)
            (copy / path.name).write_text(json.dumps(told))
        elif path.name != "chat_template.jinja":
            (copy / path.name).symlink_to(path.resolve())


def put_lora(trunk: Any, lora: LoraSettings | None = None) -> None:
    """Put the paper's update on a trunk as anyone has it from PEFT, with torch's own dropout."""
    lora = lora or LoraSettings()
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        target_modules=find_targets(trunk, lora).names,
    )
    torch.manual_seed(0)
    get_peft_model(trunk, config)


def original(model: ModelSettings) -> Any:
    """The same weights as the reference code holds them: with a language-model head."""
    causal = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(fetch(model).folder))
    causal.base_model.load_state_dict(Embedder.base(model).model.state_dict())
    causal.set_attn_implementation("sdpa")
    return causal


def original_vectors(causal: Any, sequences: list[tuple[int, ...]]) -> torch.Tensor:
    """The reference code's forward pass: padded to 150 on the left, logits and all hidden states computed."""
    filler = sequences[0][-1]
    ids = torch.tensor([[filler] * (PADDED_TO - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (PADDED_TO - len(s)) + [1] * len(s) for s in sequences])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = causal(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    return out.hidden_states[-1][:, -1]


def timed(work: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Seconds that it takes, until the device has done all of it."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device | str) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def medians(
    sides: dict[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Median seconds of each side, the sides taking turns; the first turn does not count if it is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + warm_up):
        for name, work in sides.items():
            seconds = timed(work, device)
            if turn >= warm_up:
                times[name].append(seconds)
        print(f"  turn {turn + 1} of {repeats + warm_up} done", file=sys.stderr)
    return {name: statistics.median(values) for name, values in times.items()}
