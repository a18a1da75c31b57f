"""Texts to vectors, by one contract, the same way in training, evaluation and use."""

import logging
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cft.batching.layout import Layout
from cft.config.schema import PLACEHOLDER, Batches, ModelSettings, Pooling, Prompts, Role
from cft.data.texts import checked_texts
from cft.model.backbone import Backbone, load_backbone
from cft.model.contract import FILE_NAME, SETTINGS, Contract
from cft.model.layer_weights import layer_weights_of
from cft.model.pissa import initial_factors
from cft.model.precision import TRAINED, chosen_dtype
from cft.model.published import require_known_modules, warn_of_differences
from cft.model.quantize import Dtype, quantize, require_dtype
from cft.model.sources import ADAPTER_FOLDER, ModelFiles, fetch, find_base
from cft.model.tokenizer import PromptedIds, prompted_ids, require_room
from cft.model.weights import ADAPTER_FILES, load_weights, require_promised_weights, save_weights
from cft.system.errors import UserError
from cft.system.files import user_path
from cft.system.hub import fetch_repository, may_be_repository
from cft.system.memory import unless_out_of_memory
from cft.system.text import described, did_you_mean

log = logging.getLogger(__name__)

# Texts whose tokens are in memory at a time while those that are too long are counted.
_COUNTED = 4096


def token_budget_on(device: torch.device) -> int:
    """Tokens of one forward pass that suit a device.

    Large enough that neighbours in the alphabet share prefixes and matrix products are efficient, small enough that
    activations stay well below the weights, on a CPU in its caches (8% faster there).
    """
    return 2048 if device.type == "cpu" else 8192


def torch_device(name: torch.device | str) -> torch.device:
    """A device that is here.

    Raises:
        UserError: if it is not, or torch knows no such kind.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f'device={name!r}: must be "cpu", "cuda", "cuda:NUMBER" or "mps"') from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device={name}: torch sees {count or 'no'} CUDA device{'' if count == 1 else 's'} here")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name}: cft runs on cpu, cuda and mps")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device=mps: torch sees no Apple GPU here; set device=cpu")
        log.warning("device=mps: cft has never been run on an Apple GPU; compare a few results with device=cpu")
    return device


class Embedder:
    """A model, a tokenizer and the contract that turns texts into vectors with them.

    Attributes:
        model: the trunk, with or without an adapter.
        backbone: the base model that `model` stands on.
        contract: what the vectors depend on.
        texts_cut: number of texts tokenised so far that were longer than the contract's length limit.

    Example:
        >>> from cft.config.compose import compose_model
        >>> embedder = Embedder.base(compose_model("tiny"))  # or Embedder.load("outputs/FOLDER")
        >>> query, documents = embedder.encode_query(["a question"]), embedder.encode_document(["one", "another"])
        >>> (query @ documents.T).shape  # cosines
        (1, 2)
    """

    def __init__(self, model: torch.nn.Module, backbone: Backbone, contract: Contract) -> None:
        self.model = model
        self.backbone = backbone
        self.contract = contract
        self.texts_cut = 0
        self._untrained: int | None = None  # the dimensions that were warned of last

    @classmethod
    def base(
        cls,
        model: ModelSettings,
        *,
        files: ModelFiles | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        templates: Collection[str] = (),
    ) -> "Embedder":
        """A base model as an embedder, before any training.

        What it was published with and is not used with is a warning.

        Args:
            model: which model, and how it embeds.
            files: its files, if `sources.fetch` was called already.
            device: where it goes.
            dtype: of its weights.
            templates: prompts that it will be used with.

        Raises:
            UserError: if the model cannot be fetched, read or run in batches, or was published with more than cft has.
        """
        files, device = files or fetch(model), torch_device(device)
        if files.folder:
            require_known_modules(files.folder, model)
        embedder = cls._of_files(model, files, device, dtype)
        if files.folder:
            warn_of_differences(files.folder, model, embedder.backbone.tokenizer, templates)
        return embedder

    @classmethod
    def _of_files(cls, model: ModelSettings, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> "Embedder":
        """A base model as its settings have it, whatever it was published with."""
        backbone = load_backbone(model, files, dtype=dtype, device=device)
        return cls(backbone.trunk, backbone, backbone.contract)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        model_path: str | Path | None = None,
        precision: str = TRAINED,
    ) -> "Embedder":
        """A trained embedder, held to the contract that was written when it was trained.

        Args:
            folder: a run's folder, as `cft.run` prints it at its end; one written by `save` or by `cft.export
                format=peft`; or a hub repository that `cft.push` filled, as OWNER/NAME.
            device: where the model goes.
            model_path: where its base model is now, as `model.path` takes it; None for where it was. Its content is
                checked either way.
            precision: trained: as its training computed; auto: bf16 where that is faster here, else fp32; or one of
                these. Another one than its training's gives vectors rounded otherwise (cosines of 0.999 to these).

        Raises:
            UserError: if the folder holds no trained embedder, or its base model, tokenizer or weights differ from
                what the contract promises.
        """
        name, folder = str(folder), _checked_folder(folder, "a path or OWNER/NAME")
        if not folder.is_dir():
            if not may_be_repository(name):
                raise UserError(f"{name}: no such folder (a hub repository is named OWNER/NAME)")
            with _also_no_folder(name):
                folder = fetch_repository("the embedder", name, None, [FILE_NAME, *ADAPTER_FILES])
        contract = Contract.load(folder)
        settings: dict[str, Any] = {name: getattr(contract, name) for name in SETTINGS}
        path, files = find_base(contract, folder, str(model_path) if model_path else None)
        model = ModelSettings(name=contract.model, path=path, **settings)
        device = torch_device(device)
        contract = replace(contract, dtype=chosen_dtype(precision, device, model, files, trained=contract.dtype))
        base = cls._of_files(model, files, device, getattr(torch, contract.dtype))
        contract.require(base.contract)
        weights = folder / ADAPTER_FOLDER if (folder / ADAPTER_FOLDER).is_dir() else folder
        identity = require_promised_weights(weights, contract)
        contract = replace(contract, adapter=identity)
        return cls(load_weights(base.model, weights).to(device), base.backbone, contract)

    def save(self, folder: str | Path) -> str:
        """Write the trained weights and then their contract into a folder, which `load` turns into the same embedder.

        Returns:
            SHA-256 of the weights and of how they are put on the base model.

        Raises:
            UserError: if a file stands where the folder is to be.
        """
        folder = _checked_folder(folder)
        taken = next(place for place in (folder, *folder.parents) if place.exists())
        if not taken.is_dir():
            raise UserError(f"folder={folder}: {taken} is a file; name a folder to write into")
        weights = save_weights(self.model, folder / ADAPTER_FOLDER, self.contract.model)
        pissa = self.contract.pissa or bool(initial_factors(self.model))
        replace(self.contract, adapter=weights, pissa=pissa).save(folder, place=self.backbone.place)
        return weights

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def with_template(self, template: str) -> "Embedder":
        """The same model under another prompt, which is that of every role; nothing is copied."""
        return self.with_prompts(Prompts(template))

    def with_prompts(self, prompts: Prompts) -> "Embedder":
        """The same model under other prompts, by role; nothing is copied.

        Raises:
            UserError: if they are no `cft.config.schema.Prompts`, or one of them has no place for the text.
        """
        if not isinstance(prompts, Prompts):
            raise UserError(
                f"prompts={described(prompts)}: must be Prompts of cft.config.schema, such as "
                f"Prompts(query='query: {PLACEHOLDER}'); with_template takes one text"
            )
        contract = self.contract.with_prompts(prompts)
        for template in dict.fromkeys(map(prompts.of, Role)):
            require_room(self.backbone.tokenizer, template, contract.room, copies=contract.copies)
        return Embedder(self.model, self.backbone, contract)

    def in_role(self, role: Role) -> "Embedder":
        """The same model under the prompt that texts of this role have; itself if all roles have the same.

        Raises:
            UserError: if there is no such role.
        """
        known = [each.value for each in Role]
        if not isinstance(role, str) or role not in known:
            guess = did_you_mean(role, known) if isinstance(role, str) else ""
            raise UserError(f"role={role!r}: must be {', '.join(known[:-1])} or {known[-1]}{guess}")
        if not self.contract.prompts.differ:
            return self
        return Embedder(self.model, self.backbone, self.contract.with_template(self.contract.prompts.of(role)))

    def tokenize(self, texts: Iterable[str]) -> list[tuple[int, ...]]:
        """Turn texts into token ids: prompt, truncate, twice with echo, then prefix and suffix (EOS) around.

        Raises:
            UserError: if `texts` is no list of texts, a text is empty or blank, or has tokens that the model lacks;
                naming which.
        """
        texts = checked_texts(texts)
        return self._tokenize(texts, range(1, len(texts) + 1), len(texts))

    def _tokenize(self, texts: list[str], numbers: Sequence[int], count: int) -> list[tuple[int, ...]]:
        """Token ids of checked texts; errors give their `numbers` out of the `count` that a caller gave."""
        contract, vocabulary = self.contract, self.backbone.vocabulary
        prefix, suffix = contract.prefix_ids, contract.suffix_ids
        rows, cut = self._prompted_ids(texts)
        sequences = [(*prefix, *(row * contract.copies), *suffix) for row in rows]
        self.texts_cut += sum(cut)
        assert all(len(s) <= contract.max_length and s[len(s) - len(suffix) :] == suffix for s in sequences)
        for number, text, row, sequence in zip(numbers, texts, rows, sequences, strict=True):
            if not row:
                raise UserError(f"text {number} of {count}, {text[:60]!r}, has no token this model knows")
            if max(sequence) >= vocabulary:
                raise UserError(
                    f"text {number} of {count}, {text[:60]!r}, holds token {max(sequence)}, beyond the model's "
                    f"{vocabulary} embeddings: tokens were added to its tokenizer alone"
                )
        return sequences

    def count_cut(self, texts: Iterable[str]) -> int:
        """How many distinct texts are longer than the contract's length limit, so that their ends are not read."""
        contract = self.contract
        # A token stands for a byte at least: texts of fewer bytes than there is room cannot be too long.
        most = contract.room - len(contract.template.encode()) - len(PLACEHOLDER)
        long = [text for text in dict.fromkeys(checked_texts(texts)) if _most_bytes(text) > most]
        blocks = (long[start : start + _COUNTED] for start in range(0, len(long), _COUNTED))
        return sum(sum(self._prompted_ids(block).cut) for block in blocks)

    def _prompted_ids(self, texts: list[str]) -> PromptedIds:
        """Token ids of prompted texts that fit, without the special tokens around them."""
        contract = self.contract
        return prompted_ids(self.backbone.tokenizer, texts, contract.template, contract.room, copies=contract.copies)

    def layout(self, sequences: Sequence[Sequence[int]]) -> Layout:
        """Lay token sequences out as this model's batch."""
        return self.backbone.batching.layout(sequences, self.device)

    def forward(self, layout: Layout) -> torch.Tensor:
        """Run a batch through the model and pool.

        Returns:
            (B, D) float32, not normalised, with gradient where the model has one.
        """
        weights = layer_weights_of(self.backbone.trunk) if self.contract.layer_weights else None
        if weights is not None:
            states = weights(self.hidden_states(layout)[1:])
        else:
            states = self._run(layout).last_hidden_state.flatten(0, 1)
        return self.pool(states, layout)

    def pool(self, states: torch.Tensor, layout: Layout, pooling: Pooling | None = None) -> torch.Tensor:
        """Hidden states (nodes, D) of a batch to one vector (B, D) float32 a sequence.

        With echo only the text's second occurrence is pooled, and what follows it: its first token is the one in the
        middle of what stands between prefix and suffix, which needs no note of where a text began.

        Args:
            pooling: None for the contract's.
        """
        contract, starts = self.contract, None
        if contract.echo:
            around = len(contract.prefix_ids) + len(contract.suffix_ids)
            starts = len(contract.prefix_ids) + (layout.lengths - around) // 2
        return pool(states, layout, contract.pooling if pooling is None else pooling, starts)

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
        self,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        dtype: Dtype = "float32",
        token_budget: int | None = None,
        progress: str | None = None,
    ) -> np.ndarray:
        """Turn texts into unit vectors.

        Every distinct text goes through the model once; similar texts go together, so that they share prefixes.

        Args:
            texts: any number of non-empty texts, in a list or any other iterable that has an order.
            dimensions: so many first numbers of the vectors alone, of length 1 again; None for all. Made for it are
                the contract's `dimensions`; others are a warning.
            dtype: float32, or what `cft.quantize` makes of it, int8 and uint8 by the ranges of these vectors: what is
                compared must be made at once, or by `cft.quantize` with the same ranges.
            token_budget: tokens of one forward pass, counted before sharing; None for what suits the device.
            progress: a caption for a progress bar, or None for silence.

        Returns:
            (len(texts), D) float32, every row of length 1, in the order of `texts`; or as `cft.quantize` makes them.

        Raises:
            UserError: if `texts` is no list of texts, a text is empty, the model gives NaN or infinity for one, it has
                fewer numbers than `dimensions`, or another argument is not as above.
        """
        require_dtype(dtype)
        texts = checked_texts(texts)
        if dimensions is not None:
            self.require_dimensions(dimensions)
        _check_way(token_budget, progress)
        if not texts:
            return quantize(self.encode(["a"], dimensions=dimensions)[:0], dtype)  # the model knows the width
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(row_of)
        first = {text: number for number, text in reversed([*enumerate(texts, start=1)])}
        sequences = self._tokenize(distinct, [first[text] for text in distinct], len(texts))
        vectors: np.ndarray | None = None
        with (
            in_mode(self.model, training=False),
            torch.inference_mode(),
            tqdm(total=len(distinct), desc=progress, unit="text", disable=progress is None, leave=False) as bar,
        ):
            for batch in self.batches(sequences, token_budget or token_budget_on(self.device)):
                units = F.normalize(self._embed([sequences[row] for row in batch])[:, :dimensions], dim=-1)
                _check_finite(units, [distinct[row] for row in batch])
                if vectors is None:
                    vectors = np.empty((len(distinct), units.shape[1]), dtype=np.float32)
                vectors[batch] = units.cpu().numpy()
                bar.update(len(batch))
        assert vectors is not None
        return quantize(vectors[[row_of[text] for text in texts]], dtype)

    def encode_query(
        self,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        dtype: Dtype = "float32",
        token_budget: int | None = None,
        progress: str | None = None,
    ) -> np.ndarray:
        """Turn queries into unit vectors, as `encode` does, under the prompt of queries."""
        return self.in_role(Role.query).encode(
            texts, dimensions=dimensions, dtype=dtype, token_budget=token_budget, progress=progress
        )

    def encode_document(
        self,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        dtype: Dtype = "float32",
        token_budget: int | None = None,
        progress: str | None = None,
    ) -> np.ndarray:
        """Turn documents into unit vectors, as `encode` does, under the prompt of documents."""
        return self.in_role(Role.document).encode(
            texts, dimensions=dimensions, dtype=dtype, token_budget=token_budget, progress=progress
        )

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        config: Any = self.backbone.trunk.config
        return config.hidden_size

    def require_dimensions(self, dimensions: int) -> None:
        """Refuse more first numbers than vectors have; warn, once, of those that were not trained to do alone.

        Raises:
            UserError: if there are not so many.
        """
        if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 1 <= dimensions <= self.width:
            raise UserError(
                f"dimensions={dimensions!r}: must be a whole number from 1 to {self.width}, or None for all"
            )
        trained = self.contract.dimensions
        if dimensions not in (self.width, *trained, self._untrained):
            self._untrained = dimensions
            made_for = f"the first {', '.join(map(str, trained))} were" if trained else "no first numbers were"
            log.warning(
                "dimensions=%d: this embedder was not trained to do with its first %d numbers (%s, by "
                "loss.dimensions): expect a lower quality",
                *(dimensions, dimensions, made_for),
            )


def _checked_folder(folder: Any, wanted: str = "a path") -> Path:
    """A folder that a caller named."""
    if not isinstance(folder, (str, Path)) or not str(folder) or "\0" in str(folder):
        raise UserError(f"the folder of an embedder is {wanted}, not {described(folder)}")
    return user_path(folder)


@contextmanager
def _also_no_folder(name: str) -> Iterator[None]:
    """In an error of the hub, say first that there is no such folder: that is what most people meant."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: no such folder; as a repository on the hub, {error}") from error


@contextmanager
def in_mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode for a while."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def pool(states: torch.Tensor, layout: Layout, pooling: Pooling, starts: torch.Tensor | None = None) -> torch.Tensor:
    """Hidden states of nodes to one vector a sequence.

    Args:
        states: (N, D).
        layout: of a batch of B sequences.
        pooling: the last token's state, the first one's, the mean over all tokens, or the mean in which token i of T
            weighs i / (1 + ... + T), as a causal model's later tokens have seen more.
        starts: (B,) the first token of each sequence that counts, T and i counted from there; None for the very first.

    Returns:
        (B, D) float32.

    Source: of the weighted mean, Muennighoff 2022, arXiv 2202.08904; of the text that goes in twice, Springer et al.
    2024, arXiv 2402.15449.
    """
    states = states.float()  # before nodes are selected: the gradients of one that is selected often add up in float32
    if pooling is Pooling.last:
        return states.index_select(0, layout.last)
    if pooling is Pooling.first:
        return states.index_select(0, layout.paths[:, 0])
    rows, length = layout.paths.shape
    position = torch.arange(1, length + 1, device=states.device)
    inside = position <= layout.lengths[:, None]
    if starts is not None:
        position = position - starts[:, None]
        inside &= position > 0
    weights = inside.float()
    if pooling is Pooling.weighted_mean:
        weights = weights * position
    by_token = states.index_select(0, layout.paths.reshape(-1)).view(rows, length, -1)
    with torch.autocast(states.device.type, enabled=False):  # which would round the mean to bfloat16
        return torch.einsum("btd,bt->bd", by_token, weights / weights.sum(dim=1, keepdim=True))


def _most_bytes(text: str) -> int:
    """Bytes of a text at most, as it stands or as a tokenizer's normaliser writes it: some signs become many."""
    own = len(text.encode())
    return own if text.isascii() else max(own, len(unicodedata.normalize("NFKD", text).encode()))


def _check_way(token_budget: Any, progress: Any) -> None:
    """Refuse what is no number of tokens or no caption."""
    whole = isinstance(token_budget, int) and not isinstance(token_budget, bool)
    if token_budget is not None and (not whole or token_budget < 1):
        raise UserError(f"token_budget={token_budget!r}: must be a whole number above 0, or None")
    if progress is not None and not isinstance(progress, str):
        raise UserError(f"progress={progress!r}: must be a caption such as 'embedding', or None for silence")


def first_numbers(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """The first numbers (n, dimensions) of vectors (n, D), each of length 1 again."""
    first = torch.from_numpy(np.ascontiguousarray(vectors[:, :dimensions]))
    return F.normalize(first, dim=-1).numpy()


def _check_finite(vectors: torch.Tensor, texts: list[str]) -> None:
    broken = (~torch.isfinite(vectors).all(dim=-1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(f"the embedding of {texts[broken[0]]!r} is not finite; {len(broken)} of {len(texts)} are not")
