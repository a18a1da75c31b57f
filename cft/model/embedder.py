"""Texts to vectors, by one contract, the same way in training, evaluation and use."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cft.batching.layout import Layout
from cft.config.schema import PLACEHOLDER, Batches, ModelSettings, Pooling
from cft.model.backbone import Backbone, load_backbone
from cft.model.contract import FILE_NAME, Contract
from cft.model.sources import ModelFiles, fetch, published_pooling
from cft.model.tokenizer import bodies
from cft.model.weights import ADAPTER_CONFIG, ADAPTER_FOLDER, ADAPTER_WEIGHTS, load_weights, weights_digest
from cft.system.errors import UserError
from cft.system.hub import fetch_repository, may_be_repository

log = logging.getLogger(__name__)

# Tokens of one forward pass. Large enough that neighbours in the alphabet share prefixes and matrix products are
# efficient, small enough that activations stay well below the weights, on a CPU in its caches (8% faster there).
_TOKEN_BUDGET = {"cpu": 2048}
_TOKEN_BUDGET_ELSEWHERE = 8192


def token_budget_on(device: torch.device) -> int:
    """Tokens of one forward pass that suit a device."""
    return _TOKEN_BUDGET.get(device.type, _TOKEN_BUDGET_ELSEWHERE)


class Embedder:
    """A model, a tokenizer and the contract that turns texts into vectors with them.

    Attributes:
        model: the trunk, with or without an adapter.
        contract: what the vectors depend on.
        at_limit: how many texts were tokenised so far that came to the contract's length limit, most of them cut.
    """

    def __init__(self, model: torch.nn.Module, backbone: Backbone, contract: Contract) -> None:
        self.model = model
        self.contract = contract
        self.at_limit = 0
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
        published = published_pooling(files.folder) if files.folder else None
        if published not in (None, model.pooling):
            here = model.pooling.value
            log.warning("%s was published with pooling=%s; here it is pooling=%s", model.path, published.value, here)
        backbone = load_backbone(model, files, dtype=dtype, device=device)
        contract = Contract(
            model=model.path,
            weights=files.identity,
            tokenizer=backbone.tokenizer_digest,
            prefix_ids=backbone.prefix_ids,
            suffix_ids=backbone.suffix_ids,
            append_eos=model.append_eos,
            eos_token=model.eos_token,
            template=PLACEHOLDER,
            pooling=model.pooling,
            layer=model.layer,
            attention=model.attention,
            max_length=model.max_length,
            dtype=str(dtype).removeprefix("torch."),
            quantization=model.quantization,
        )
        return cls(backbone.trunk, backbone, contract)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> "Embedder":
        """A trained embedder, held to the contract that was written when it was trained.

        Args:
            folder: a run's folder, as `cft.run` names it at its end; one that `cft.export format=peft` wrote; or the
                hub repository that `cft.push` sent one to, by OWNER/NAME.
            device: where the model goes.

        Raises:
            UserError: if the folder holds no trained embedder, or its base model, tokenizer or weights differ from
                what the contract promises.
        """
        name, folder = str(folder), Path(folder).expanduser()
        if not folder.is_dir() and may_be_repository(name):
            folder = fetch_repository("the embedder", name, None, [FILE_NAME, ADAPTER_CONFIG, ADAPTER_WEIGHTS])
        contract = Contract.load(folder)
        kind, _, commit = contract.weights.partition(":")
        model = ModelSettings(
            name=contract.model,
            path=contract.model,
            revision=commit if kind == "commit" else None,
            pooling=contract.pooling,
            layer=contract.layer,
            attention=contract.attention,
            append_eos=contract.append_eos,
            eos_token=contract.eos_token,
            max_length=contract.max_length,
            quantization=contract.quantization,
        )
        base = cls.base(model, device=device, dtype=getattr(torch, contract.dtype))
        contract.require(base.contract)
        weights = folder / ADAPTER_FOLDER if (folder / ADAPTER_FOLDER).is_dir() else folder
        if weights_digest(weights) != contract.adapter:
            raise UserError(f"the weights in {weights} are not those the contract was written for")
        trained = load_weights(base.model, weights).to(device)
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
            if not isinstance(text, str):
                raise UserError(f"text {index + 1} of {len(texts)} is no text but {text!r}")
            if not text.strip():
                raise UserError(f"text {index + 1} of {len(texts)} is empty: there is nothing to embed")
        contract = self.contract
        prefix, suffix = contract.prefix_ids, contract.suffix_ids
        found = bodies(self._backbone.tokenizer, texts, contract.template, contract.room)
        sequences = [(*prefix, *body, *suffix) for body in found]
        self.at_limit += sum(len(sequence) == contract.max_length for sequence in sequences)
        assert all(len(s) <= contract.max_length and s[len(s) - len(suffix) :] == suffix for s in sequences)
        for index, sequence in enumerate(sequences):
            if len(sequence) == len(prefix) + len(suffix):
                raise UserError(f"text {index + 1} of {len(texts)}, {texts[index]!r}, has no token this model knows")
            if max(sequence) >= self._backbone.vocabulary:
                raise UserError(
                    f"text {index + 1} of {len(texts)}, {texts[index][:60]!r}, holds token {max(sequence)}, beyond the "
                    f"model's {self._backbone.vocabulary} embeddings: tokens were added to its tokenizer alone"
                )
        return sequences

    def layout(self, sequences: Sequence[Sequence[int]]) -> Layout:
        """Lay token sequences out as this model's batch."""
        return self._backbone.batching.layout(sequences, self.device)

    def forward(self, layout: Layout) -> torch.Tensor:
        """Run a batch through the model and pool.

        Returns:
            (B, D) float32, not normalised, with gradient where the model has one.
        """
        self._backbone.check_attention()
        states = self.model(**layout.inputs(), use_cache=False).last_hidden_state.flatten(0, 1)
        return pool(states, layout, self.contract.pooling)

    def _fitting(self, sequences: list[tuple[int, ...]]) -> torch.Tensor:
        """Vectors (B, D) of sequences, in halves where the whole runs out of memory."""
        try:
            return self.forward(self.layout(sequences))
        except torch.OutOfMemoryError:
            if len(sequences) == 1:
                raise UserError(
                    f"out of memory with a single text of {len(sequences[0])} tokens: lower model.max_length"
                ) from None
        half = len(sequences) // 2
        return torch.cat([self._fitting(sequences[:half]), self._fitting(sequences[half:])])

    def hidden_states(self, layout: Layout) -> tuple[torch.Tensor, ...]:
        """States (nodes, D) behind the embedding layer and behind every layer, the last after the final norm."""
        self._backbone.check_attention()
        found = self.model(**layout.inputs(), use_cache=False, output_hidden_states=True).hidden_states
        return tuple(states.flatten(0, 1) for states in found)

    def order(self, sequences: Sequence[tuple[int, ...]]) -> list[int]:
        """In which order sequences go into batches: those that share beginnings, or padding, together."""
        if self._backbone.batching.kind is Batches.tree:
            return sorted(range(len(sequences)), key=lambda row: sequences[row])
        return sorted(range(len(sequences)), key=lambda row: len(sequences[row]))

    def chunks(
        self, order: Sequence[int], sequences: Sequence[Sequence[int]], token_budget: int
    ) -> Iterator[list[int]]:
        """Cut an order into batches of at most `token_budget` tokens, each with at least one sequence."""
        chunk: list[int] = []
        tokens_of = self._backbone.batching.tokens_of
        total = longest = 0
        for index in order:
            length = len(sequences[index])
            total, longest = total + length, max(longest, length)
            if chunk and tokens_of(total, len(chunk) + 1, longest) > token_budget:
                yield chunk
                chunk, total, longest = [], length, length
            chunk.append(index)
        yield chunk

    def encode(
        self,
        texts: Sequence[str],
        *,
        token_budget: int | None = None,
        progress: str | None = None,
    ) -> np.ndarray:
        """Turn texts into unit vectors.

        Every distinct text goes through the model once; texts that are alike go together, so that they share
        prefixes.

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
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return np.empty((0, 0), dtype=np.float32)
        sequences = self.tokenize(distinct)
        order = self.order(sequences)
        budget = token_budget or token_budget_on(self.device)
        vectors: np.ndarray | None = None
        with (
            in_mode(self.model, training=False),
            torch.inference_mode(),
            tqdm(total=len(distinct), desc=progress, unit="text", disable=progress is None, leave=False) as bar,
        ):
            for chunk in self.chunks(order, sequences, budget):
                found = F.normalize(self._fitting([sequences[i] for i in chunk]), dim=-1)
                _check_finite(found, [distinct[i] for i in chunk])
                if vectors is None:
                    vectors = np.empty((len(distinct), found.shape[1]), dtype=np.float32)
                vectors[chunk] = found.cpu().numpy()
                bar.update(len(chunk))
        assert vectors is not None
        place = {text: index for index, text in enumerate(distinct)}
        return vectors[[place[text] for text in texts]]


@contextmanager
def in_mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Have a model in training or evaluation mode for a while, and then as it was."""
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
    place = torch.arange(1, length + 1, device=states.device)
    weights = (place <= layout.lengths[:, None]).float()
    if pooling is Pooling.weighted_mean:
        weights = weights * place
    by_token = states.index_select(0, layout.paths.reshape(-1)).view(rows, length, -1)
    with torch.autocast(states.device.type, enabled=False):  # which would round the mean to bfloat16
        return torch.einsum("btd,bt->bd", by_token, weights / weights.sum(dim=1, keepdim=True))


def _check_finite(vectors: torch.Tensor, texts: list[str]) -> None:
    broken = (~torch.isfinite(vectors).all(dim=-1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(f"the embedding of {texts[broken[0]]!r} is not finite; {len(broken)} of {len(texts)} are not")
