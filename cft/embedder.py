"""Texts to vectors, by one contract, the same way in training, evaluation and use."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cft.backbone import ADAPTER_FOLDER, Backbone, check_directions, load_backbone, load_weights, weights_digest
from cft.contract import Contract
from cft.errors import UserError
from cft.prefix_tree import TreeLayout, lay_out
from cft.settings import PLACEHOLDER, Attention, ModelSettings, Pooling
from cft.sources import ModelFiles, fetch

# Tokens of one forward pass. Large enough that neighbours in the alphabet share prefixes and matrix products are
# efficient, small enough that activations stay well below the weights.
TOKEN_BUDGET = 8192


class Embedder:
    """A model, a tokenizer and the contract that turns texts into vectors with them.

    Attributes:
        model: the trunk, with or without an adapter.
        contract: what the vectors depend on.
    """

    def __init__(self, model: torch.nn.Module, backbone: Backbone, contract: Contract) -> None:
        self.model = model
        self.contract = contract
        self._backbone = backbone

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
            files: what `sources.fetch` brought for it, if that was done already.
            device: where it goes.
            dtype: of its weights.

        Raises:
            UserError: if the model cannot be had, read or run on prefix-tree batches.
        """
        files = files or fetch(model)
        backbone = load_backbone(model, files, dtype=dtype)
        check_directions(backbone.trunk, model.attention)
        contract = Contract(
            model=model.path,
            weights=files.identity,
            tokenizer=backbone.tokenizer_digest,
            prefix_ids=backbone.prefix_ids,
            suffix_ids=backbone.suffix_ids,
            append_eos=model.append_eos,
            template=PLACEHOLDER,
            pooling=model.pooling,
            attention=model.attention,
            max_length=model.max_length,
            dtype=str(dtype).removeprefix("torch."),
        )
        return cls(backbone.trunk.to(device), backbone, contract)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> "Embedder":
        """A trained embedder out of its run folder, held to the contract that was written when it was trained.

        Args:
            folder: a run's folder, as `cft.run` names it at its end.
            device: where the model goes.

        Raises:
            UserError: if the folder holds no trained embedder, or its base model, tokenizer or weights differ from
                what the contract promises.
        """
        folder = Path(folder)
        contract = Contract.load(folder)
        kind, _, commit = contract.weights.partition(":")
        model = ModelSettings(
            name=contract.model,
            path=contract.model,
            revision=commit if kind == "commit" else None,
            pooling=contract.pooling,
            attention=contract.attention,
            append_eos=contract.append_eos,
            max_length=contract.max_length,
        )
        base = cls.base(model, device=device, dtype=getattr(torch, contract.dtype))
        contract.require(base.contract)
        found = weights_digest(folder / ADAPTER_FOLDER)
        if found != contract.adapter:
            raise UserError(f"the weights in {folder / ADAPTER_FOLDER} are not those the contract was written for")
        trained = load_weights(base.model, folder / ADAPTER_FOLDER).to(device)
        return cls(trained, base.backbone, contract)

    def save(self, folder: Path, weights: str) -> None:
        """Write the contract beside trained weights with the SHA-256 `weights`."""
        replace(self.contract, adapter=weights).save(folder)

    @property
    def backbone(self) -> Backbone:
        """The base model that `model` stands on."""
        return self._backbone

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def with_template(self, template: str) -> "Embedder":
        """The same model under another prompt; nothing is copied."""
        return Embedder(self.model, self._backbone, self.contract.with_template(template))

    def tokenize(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Turn texts into token ids: prompt, truncate, then prefix and suffix (EOS) around.

        Raises:
            UserError: if a text is empty or blank, naming which.
        """
        for index, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"text {index + 1} of {len(texts)} is empty: there is nothing to embed")
        contract = self.contract
        prompted = [contract.template.replace(PLACEHOLDER, text) for text in texts]
        bodies = self._backbone.tokenizer(prompted, add_special_tokens=False)["input_ids"]
        prefix, suffix = contract.prefix_ids, contract.suffix_ids
        sequences = [(*prefix, *body[: contract.room], *suffix) for body in bodies]
        assert all(sequence[len(sequence) - len(suffix) :] == suffix for sequence in sequences)
        return sequences

    def lay_out(self, sequences: Sequence[Sequence[int]]) -> TreeLayout:
        """Lay token sequences out as this model's batch."""
        return lay_out(sequences, causal=self.contract.attention is Attention.causal, device=self.device)

    def forward(self, layout: TreeLayout) -> torch.Tensor:
        """Run a batch through the model and pool.

        Returns:
            (B, D) float32, not normalised, with gradient where the model has one.
        """
        states = self.model(
            input_ids=layout.token_ids, position_ids=layout.positions, layout=layout, use_cache=False
        ).last_hidden_state[0]
        return pool(states, layout, self.contract.pooling)

    def encode(
        self,
        texts: Sequence[str],
        *,
        token_budget: int = TOKEN_BUDGET,
        progress: str | None = None,
    ) -> np.ndarray:
        """Turn texts into unit vectors.

        Every distinct text goes through the model once; texts that are alike go together, so that they share
        prefixes.

        Args:
            texts: any number of non-empty texts.
            token_budget: tokens of one forward pass, counted before sharing.
            progress: a caption for a progress bar, or None for silence.

        Returns:
            (len(texts), D) float32, every row of length 1, in the order of `texts`.

        Raises:
            UserError: if a text is empty, or the model gives NaN or infinity for one.
        """
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts: put the one text into a list")
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return np.empty((0, 0), dtype=np.float32)
        sequences = self.tokenize(distinct)
        order = sorted(range(len(distinct)), key=sequences.__getitem__)
        vectors: np.ndarray | None = None
        was_training = self.model.training
        self.model.eval()
        try:
            with (
                torch.inference_mode(),
                tqdm(total=len(distinct), desc=progress, unit="text", disable=progress is None, leave=False) as bar,
            ):
                for chunk in _chunks(order, sequences, token_budget):
                    found = F.normalize(self.forward(self.lay_out([sequences[i] for i in chunk])), dim=-1)
                    _check_finite(found, [distinct[i] for i in chunk])
                    if vectors is None:
                        vectors = np.empty((len(distinct), found.shape[1]), dtype=np.float32)
                    vectors[chunk] = found.cpu().numpy()
                    bar.update(len(chunk))
        finally:
            self.model.train(was_training)
        assert vectors is not None
        place = {text: index for index, text in enumerate(distinct)}
        return vectors[[place[text] for text in texts]]


def pool(states: torch.Tensor, layout: TreeLayout, pooling: Pooling) -> torch.Tensor:
    """Hidden states of nodes to one vector a sequence.

    Args:
        states: (N, D). layout: of a batch of B sequences. pooling: last token, or mean over a sequence's tokens.

    Returns:
        (B, D) float32.
    """
    if pooling is Pooling.last:
        return states.index_select(0, layout.last).float()
    rows, length = layout.paths.shape
    real = torch.arange(length, device=states.device) < layout.lengths[:, None]
    by_token = states.index_select(0, layout.paths.reshape(-1)).view(rows, length, -1).float()
    return (by_token * real[..., None]).sum(dim=1) / layout.lengths[:, None]


def _chunks(order: list[int], sequences: list[tuple[int, ...]], token_budget: int) -> Iterator[list[int]]:
    """Cut an order into runs of at most `token_budget` tokens, each with at least one sequence."""
    chunk: list[int] = []
    tokens = 0
    for index in order:
        if chunk and tokens + len(sequences[index]) > token_budget:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(index)
        tokens += len(sequences[index])
    yield chunk


def _check_finite(vectors: torch.Tensor, texts: list[str]) -> None:
    broken = (~torch.isfinite(vectors).all(dim=-1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(f"the embedding of {texts[broken[0]]!r} is not finite; {len(broken)} of {len(texts)} are not")
