"""What every stage is given, and the texts and models that stages share."""

import itertools
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft.data.records import Triplet

if TYPE_CHECKING:  # imported late: a call that finds everything done must not wait for torch
    import torch

    from cft.config.schema import ModelSettings

# Tells a stage's record what was found so far, so that a stage that is stopped leaves it behind.
Note = Callable[[dict[str, Any]], None]

# Tokens of NLI's texts (words and marks of 30,000 triplets): at 1, 5, 10, 25, 50, 75, 90, 95 and 99 of 100.
_SHARES = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
_PREMISES = (5, 8, 9, 13, 20, 28, 38, 44, 59)
_HYPOTHESES = (4, 5, 6, 8, 10, 13, 17, 20, 28)
_WORDS = 8000  # from which texts are made, the n-th as often as Zipf's law has it
_SPECIAL = 3  # token ids of padding, beginning and end
_LONGEST = 149  # tokens of a text before its end, as cft cuts them


@dataclass(frozen=True)
class Kit:
    """How the kit was called."""

    out: Path  # a JSON file a stage goes here
    tiny: bool = False  # tiny shapes, which run anywhere and say nothing
    triplets: str | None = None  # a file of NLI triplets: sent0, sent1, hard_neg
    sts: str | None = None  # the folder of the nine STS sets
    model: str = "smollm2"  # a choice of conf/model, for the stages that read texts
    model_path: str | None = None  # where its weights are, if not where the choice says
    budget: float = 470.0  # seconds for all stages
    left: float = 470.0  # of them when the stage began

    @property
    def device(self) -> "torch.device":
        """The GPU, or the CPU for tiny shapes where there is none."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def settings(self, uses: tuple[str, ...]) -> dict[str, Any]:
        """What a stage's result depends on."""
        return {name: getattr(self, name) for name in ("tiny", *uses)}

    @property
    def overrides(self) -> list[str]:
        """Words that name the base model on cft's command line."""
        if self.tiny:
            return ["model=tiny", f"model.path={_tiny_model(self.out)}"]
        return [f"model={self.model}", *([f"model.path={self.model_path}"] if self.model_path else [])]

    def base(self) -> "ModelSettings":
        """The base model of the stages that read texts."""
        from cft.config.compose import compose_config

        return compose_config(self.overrides).model

    def rows(self, count: int) -> list[Triplet]:
        """Triplets of the file, or generated ones of NLI's lengths."""
        if self.triplets is None:
            return generated(count)
        import numpy as np

        from cft.config.schema import DataSettings, DataSource
        from cft.data.training_data import load_training_data

        data = DataSettings(name="files", source=DataSource.files, train=self.triplets, holdout=0)
        found = load_training_data(data, seed=0).triplets
        places = np.random.default_rng(0).choice(len(found), min(count, len(found)), replace=False)
        return [found[int(place)] for place in places]


def _tiny_model(out: Path) -> Path:
    """A folder with a Llama of 2 layers as transformers writes it, for stages that read a model's files."""
    import torch
    from transformers import AutoConfig, AutoModel

    from cft.model.tokenizer import byte_tokenizer

    folder = (out / "tiny-model").resolve()
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0}
        config = AutoConfig.for_model("llama", vocab_size=len(byte_tokenizer()), **sizes)
        byte_tokenizer().save_pretrained(folder)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


def generated(count: int) -> list[Triplet]:
    """Triplets of made-up words, as long as NLI's and with as many of the first words in common."""
    import numpy as np

    generator = np.random.default_rng(0)
    letters = np.array(list("bdfgklmnprstvw"))
    vowels = np.array(list("aeiou"))
    syllables = generator.integers(1, 4, _WORDS)
    words = [
        "".join(letters[generator.integers(14)] + vowels[generator.integers(5)] for _ in range(n)) for n in syllables
    ]
    often = 1 / np.arange(1, _WORDS + 1)
    often /= often.sum()

    def texts(lengths: tuple[int, ...]) -> list[str]:
        drawn = np.interp(generator.random(count), _SHARES, lengths).round().astype(int)
        picked = generator.choice(_WORDS, int(drawn.sum()), p=often)
        ends = np.cumsum(drawn)
        return [
            " ".join(words[word] for word in picked[end - size : end]) for end, size in zip(ends, drawn, strict=True)
        ]

    columns = texts(_PREMISES), texts(_HYPOTHESES), texts(_HYPOTHESES)
    return [Triplet(one, other, (third,)) for one, other, third in zip(*columns, strict=True)]


def words_as_tokens(texts: list[str], vocabulary: int) -> list[tuple[int, ...]]:
    """Token ids with an end: a token a word or mark, which is about what a tokenizer makes of plain English.

    Models with random weights have no tokenizer, and their speed depends on lengths and common beginnings alone.
    """
    room = vocabulary - _SPECIAL
    found = ((_SPECIAL + zlib.crc32(word.encode()) % room for word in _words(text)) for text in texts)
    return [(*itertools.islice(ids, _LONGEST), 2) for ids in found]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def gib(count: float) -> str:
    """Bytes as tables show them."""
    return f"{count / 2**30:.2f}"
