"""Texts to vectors, by one contract, the same way in training, evaluation and use."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cft.batching.layout import Layout
from cft.config.schema import Batches, ModelSettings, Pooling
from cft.model.backbone import Backbone, load_backbone
from cft.model.contract import FILE_NAME, SETTINGS, Contract
from cft.model.sources import ModelFiles, fetch, find_base, published_pooling
from cft.model.tokenizer import prompted_ids
from cft.model.weights import ADAPTER_FILES, ADAPTER_FOLDER, load_weights, require_promised_weights, save_weights
from cft.system.errors import UserError
from cft.system.hub import fetch_repository, may_be_repository
from cft.system.memory import unless_out_of_memory

log = logging.getLogger(__name__)


def token_budget_on(device: torch.device) -> int:
    """Tokens of one forward pass that suit a device.

    Large enough that neighbours in the alphabet share prefixes and matrix products are efficient, small enough that
    activations stay well below the weights, on a CPU in its caches (8% faster there).
    """
    return 2048 if device.type == "cpu" else 8192


class Embedder:
    """A model, a tokenizer and the contract that turns texts into vectors with them.

    Attributes:
        model: the trunk, with or without an adapter.
        backbone: the base model that `model` stands on.
        contract: what the vectors depend on.
        at_limit: number of texts tokenised so far that reached the contract's length limit, most of them cut.
    """

    def __init__(self, model: torch.nn.Module, backbone: Backbone, contract: Contract) -> None:
        self.model = model
        self.backbone = backbone
        self.contract = contract
        self.at_limit = 0

    @classmethod
    def base(
        cls,
        model: ModelSettings,
        *,
        files: ModelFiles | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Embedder":
        """A base model as an embedder, before any training.

        Args:
            model: which model, and how it embeds.
            files: its files, if `sources.fetch` was called already.
            device: where it goes.
            dtype: of its weights.

        Raises:
            UserError: if the model cannot be fetched, read or run in batches.
        """
        files = files or fetch(model)
        published = published_pooling(files.folder) if files.folder else None
        if published not in (None, model.pooling):
            ours = model.pooling.value
            log.warning("%s was published with pooling=%s; here it is pooling=%s", model.path, published.value, ours)
        backbone = load_backbone(model, files, dtype=dtype, device=device)
        return cls(backbone.trunk, backbone, backbone.contract)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", model_path: str | Path | None = None
    ) -> "Embedder":
        """A trained embedder, held to the contract that was written when it was trained.

        Args:
            folder: a run's folder, as `cft.run` prints it at its end; one written by `save` or by `cft.export
                format=peft`; or a hub repository that `cft.push` filled, as OWNER/NAME.
            device: where the model goes.
            model_path: where its base model is now, as `model.path` takes it; None for where it was. Its content is
                checked either way.

        Raises:
            UserError: if the folder holds no trained embedder, or its base model, tokenizer or weights differ from
                what the contract promises.
        """
        name, folder = str(folder), Path(folder).expanduser()
        if not folder.is_dir():
            if not may_be_repository(name):
                raise UserError(f"{name}: no such folder (a hub repository is named OWNER/NAME)")
            folder = fetch_repository("the embedder", name, None, [FILE_NAME, *ADAPTER_FILES])
        contract = Contract.load(folder)
        settings: dict[str, Any] = {name: getattr(contract, name) for name in SETTINGS}
        path, files = find_base(contract, folder, str(model_path) if model_path else None)
        model = ModelSettings(name=contract.model, path=path, **settings)
        base = cls.base(model, files=files, device=device, dtype=getattr(torch, contract.dtype))
        contract.require(base.contract)
        weights = folder / ADAPTER_FOLDER if (folder / ADAPTER_FOLDER).is_dir() else folder
        identity = require_promised_weights(weights, contract)
        contract = replace(contract, adapter=identity)
        return cls(load_weights(base.model, weights).to(device), base.backbone, contract)

    def save(self, folder: str | Path) -> str:
        """Write the trained weights and then their contract into a folder, which `load` turns into the same embedder.

        Returns:
            SHA-256 of the weights and of how they are put on the base model.
        """
        folder = Path(folder).expanduser()
        weights = save_weights(self.model, folder / ADAPTER_FOLDER, self.contract.model)
        replace(self.contract, adapter=weights).save(folder, place=self.backbone.place)
        return weights

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def with_template(self, template: str) -> "Embedder":
        """The same model under another prompt; nothing is copied."""
        return Embedder(self.model, self.backbone, self.contract.with_template(template))

    def tokenize(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Turn texts into token ids: prompt, truncate, then prefix and suffix (EOS) around.

        Raises:
            UserError: if a text is empty or blank, or has tokens that the model lacks, naming which.
        """
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {index + 1} of {len(texts)} is no text but {text!r}")
            if not text.strip():
                raise UserError(f"text {index + 1} of {len(texts)} is empty: there is nothing to embed")
        contract, vocabulary = self.contract, self.backbone.vocabulary
        prefix, suffix = contract.prefix_ids, contract.suffix_ids
        rows = prompted_ids(self.backbone.tokenizer, texts, contract.template, contract.room)
        sequences = [(*prefix, *row, *suffix) for row in rows]
        self.at_limit += sum(len(sequence) == contract.max_length for sequence in sequences)
        assert all(len(s) <= contract.max_length and s[len(s) - len(suffix) :] == suffix for s in sequences)
        for index, sequence in enumerate(sequences):
            if not rows[index]:
                raise UserError(f"text {index + 1} of {len(texts)}, {texts[index]!r}, has no token this model knows")
            if max(sequence) >= vocabulary:
                raise UserError(
                    f"text {index + 1} of {len(texts)}, {texts[index][:60]!r}, holds token {max(sequence)}, beyond the "
                    f"model's {vocabulary} embeddings: tokens were added to its tokenizer alone"
                )
        return sequences

    def layout(self, sequences: Sequence[Sequence[int]]) -> Layout:
        """Lay token sequences out as this model's batch."""
        return self.backbone.batching.layout(sequences, self.device)

    def forward(self, layout: Layout) -> torch.Tensor:
        """Run a batch through the model and pool.

        Returns:
            (B, D) float32, not normalised, with gradient where the model has one.
        """
        return pool(self._run(layout).last_hidden_state.flatten(0, 1), layout, self.contract.pooling)

    def hidden_states(self, layout: Layout) -> tuple[torch.Tensor, ...]:
        """States (nodes, D) after the embedding layer and after every layer, the last after the final norm."""
        return tuple(states.flatten(0, 1) for states in self._run(layout, output_hidden_states=True).hidden_states)

    def _run(self, layout: Layout, **options: bool) -> Any:
        self.backbone.check_attention()
        return self.model(**layout.inputs(), use_cache=False, **options)

    def _embed(self, sequences: list[tuple[int, ...]]) -> torch.Tensor:
        """Vectors (B, D) of sequences, in halves where all at once run out of memory."""
        vectors = unless_out_of_memory(lambda: self.forward(self.layout(sequences)))
        if vectors is not None:
            return vectors
        if len(sequences) == 1:
            raise UserError(f"out of memory with a single text of {len(sequences[0])} tokens: lower model.max_length")
        half = len(sequences) // 2
        return torch.cat([self._embed(sequences[:half]), self._embed(sequences[half:])])

    def batches(self, sequences: Sequence[tuple[int, ...]], token_budget: int) -> Iterator[list[int]]:
        """Group sequences into batches of at most `token_budget` tokens; those that share prefixes go together.

        Yields:
            Indices of one batch's sequences, at least one.
        """
        batching = self.backbone.batching
        tree = batching.kind is Batches.tree
        batch: list[int] = []
        total = longest = 0
        for index in sorted(range(len(sequences)), key=lambda i: sequences[i] if tree else (len(sequences[i]),)):
            length = len(sequences[index])
            total, longest = total + length, max(longest, length)
            if batch and batching.forward_tokens(total, len(batch) + 1, longest) > token_budget:
                yield batch
                batch, total, longest = [], length, length
            batch.append(index)
        yield batch

    def encode(
        self, texts: Sequence[str], *, token_budget: int | None = None, progress: str | None = None
    ) -> np.ndarray:
        """Turn texts into unit vectors.

        Every distinct text goes through the model once; similar texts go together, so that they share prefixes.

        Args:
            texts: any number of non-empty texts.
            token_budget: tokens of one forward pass, counted before sharing; None for what suits the device.
            progress: a caption for a progress bar, or None for silence.

        Returns:
            (len(texts), D) float32, every row of length 1, in the order of `texts`.

        Raises:
            UserError: if a text is empty, or the model gives NaN or infinity for one.
        """
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts: put the one text into a list")
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        if not row_of:
            return np.empty((0, 0), dtype=np.float32)
        distinct = list(row_of)
        sequences = self.tokenize(distinct)
        vectors: np.ndarray | None = None
        with (
            in_mode(self.model, training=False),
            torch.inference_mode(),
            tqdm(total=len(distinct), desc=progress, unit="text", disable=progress is None, leave=False) as bar,
        ):
            for batch in self.batches(sequences, token_budget or token_budget_on(self.device)):
                units = F.normalize(self._embed([sequences[row] for row in batch]), dim=-1)
                _check_finite(units, [distinct[row] for row in batch])
                if vectors is None:
                    vectors = np.empty((len(distinct), units.shape[1]), dtype=np.float32)
                vectors[batch] = units.cpu().numpy()
                bar.update(len(batch))
        assert vectors is not None
        return vectors[[row_of[text] for text in texts]]


@contextmanager
def in_mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode for a while."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def pool(states: torch.Tensor, layout: Layout, pooling: Pooling) -> torch.Tensor:
    """Hidden states of nodes to one vector a sequence.

    Args:
        states: (N, D).
        layout: of a batch of B sequences.
        pooling: the last token's state, the first one's, the mean over all tokens, or the mean in which token i of T
            weighs i / (1 + ... + T), as a causal model's later tokens have seen more.

    Returns:
        (B, D) float32.

    Source: of the weighted mean, Muennighoff 2022, arXiv 2202.08904.
    """
    states = states.float()  # before nodes are selected: the gradients of one that is selected often add up in float32
    if pooling is Pooling.last:
        return states.index_select(0, layout.last)
    if pooling is Pooling.first:
        return states.index_select(0, layout.paths[:, 0])
    rows, length = layout.paths.shape
    position = torch.arange(1, length + 1, device=states.device)
    weights = (position <= layout.lengths[:, None]).float()
    if pooling is Pooling.weighted_mean:
        weights = weights * position
    by_token = states.index_select(0, layout.paths.reshape(-1)).view(rows, length, -1)
    with torch.autocast(states.device.type, enabled=False):  # which would round the mean to bfloat16
        return torch.einsum("btd,bt->bd", by_token, weights / weights.sum(dim=1, keepdim=True))


def _check_finite(vectors: torch.Tensor, texts: list[str]) -> None:
    broken = (~torch.isfinite(vectors).all(dim=-1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(f"the embedding of {texts[broken[0]]!r} is not finite; {len(broken)} of {len(texts)} are not")
