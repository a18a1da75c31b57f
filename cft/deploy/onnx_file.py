"""A finished embedder as an ONNX graph: token ids and attention mask in, unit vectors out.

Pooling and normalisation are in the graph, so that a runtime needs the tokenizer and nothing else. The graph is run in
onnxruntime, with the exported tokenizer, before the export gets its name, on texts of several lengths and in batches of
several sizes: a length or a batch size that was fixed when the graph was made would show.
"""

import gc
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from cft.config.schema import Pooling, Role
from cft.deploy import portable
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.system.errors import UserError, first_line
from cft.system.text import printable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Precision = Literal["f32", "int8"]

FILE_NAME = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
VECTORS, STATES = "sentence_embedding", "token_embeddings"

# Largest difference of a coordinate of a unit vector in float32.
TOLERANCE = 1e-4
# Least cosine in 8 bits: below it something is broken, not rounded.
_LEAST_COSINE = 0.9

# A protobuf message, which the file is, holds 2 GiB: larger weights stand in a file of their own beside it.
_MOST_BYTES_WITHIN = 1_900_000_000

# Which samples go into a batch together: alone, and beside others, so that widths and numbers of rows differ.
_BATCHES = ((0,), (1,), (4,), (1, 0), (2, 3, 0), (4, 1, 2, 3, 0))


class _Graph(torch.nn.Module):
    """A trunk with pooling and normalisation behind it."""

    def __init__(self, trunk: Any, pooling: Pooling, *, sees_all: bool) -> None:
        super().__init__()
        self.trunk, self.pooling, self.sees_all = trunk, Pooling(pooling), sees_all

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors (B, D) and hidden states (B, T, D) of rows (B, T) with a mask of 1 at real tokens."""
        mask = attention_mask
        if self.sees_all:
            # A mask of four dimensions is used as it is given, in place of the causal one.
            hidden = (1 - attention_mask)[:, None, None, :].float() * torch.finfo(torch.float32).min
            mask = hidden.expand(-1, 1, attention_mask.shape[1], -1)
        states = self.trunk(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
        weights = _pooling_weights(attention_mask, self.pooling)
        pooled = torch.einsum("btd,bt->bd", states, weights / weights.sum(dim=1, keepdim=True))
        return F.normalize(pooled, dim=-1), states


def _pooling_weights(attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(B, T) float32: what each token's state counts for, 0 at padding."""
    position = attention_mask.cumsum(dim=1) * attention_mask  # from 1; 0 at padding
    if pooling is Pooling.last:
        return (position == attention_mask.sum(dim=1, keepdim=True)).float()
    if pooling is Pooling.first:
        return (position == 1).float()
    return (attention_mask if pooling is Pooling.mean else position).float()


def write(embedder: Embedder, folder: Path, precision: Precision, *, output: Path) -> list[str]:
    """Write tokenizer, graph, prompts and contract, and run them; the embedder is used up.

    Args:
        embedder: on the CPU; whoever keeps no other reference to it has its memory back before the graph is run.
        folder: where the files go. precision: of the matrices. output: what the folder will be called.

    Returns:
        How it was made and checked, and how it is used.

    Raises:
        UserError: if the embedder has no such form, or the graph gives other vectors.
    """
    portable.check_portable(embedder, as_graph=True)
    expected = portable.sample_vectors(embedder)
    before = {role: portable.words_before(embedder.in_role(role)) for role in Role}
    _write_tokenizer(embedder, folder)
    portable.write_prompts(folder, embedder)
    contract, sees_all = embedder.contract, embedder.backbone.batching.made_bidirectional
    contract.save(folder)
    trunk, drift = portable.merge_adapter(embedder)
    if drift > TOLERANCE:
        raise UserError(f"merging the adapter changes vectors by {drift:.1e}: export with format=peft instead")
    del embedder
    _export(_Graph(trunk, contract.pooling, sees_all=sees_all), folder / FILE_NAME)
    del trunk
    gc.collect()
    lines = [f"merged in float32: no coordinate of a unit vector moved by more than {drift:.1e}"]
    lines += [_check_vectors(folder, expected, before, max(2 * drift, TOLERANCE))]
    if precision == "int8":
        quantise(folder)
        lines += [_check_cosines(folder, expected, before)]
    return [*lines, *_usage(output, contract, before[Role.text])]


def _write_tokenizer(embedder: Embedder, folder: Path) -> None:
    """The portable tokenizer, of which a reader of tokenizer.json alone also learns how to cut and pad."""
    tokenizer = portable.portable_tokenizer(embedder)
    # A runtime refuses inputs that the graph lacks, such as segment ids.
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = list(INPUTS)
    tokenizer.backend_tokenizer.enable_truncation(embedder.contract.max_length)
    tokenizer.backend_tokenizer.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    tokenizer.save_pretrained(folder)
    portable.check_tokens(embedder, folder)


def _usage(output: Path, contract: Contract, words: str) -> list[str]:
    """Lines of Python that load it."""
    lines = [
        f'  session = onnxruntime.InferenceSession("{output / FILE_NAME}")',
        f'  tokenizer = AutoTokenizer.from_pretrained("{output}")',
        f'  rows = tokenizer({[words + "a text"]!r}, padding=True, truncation=True, return_tensors="np")',
        f'  vectors = session.run(["{VECTORS}"], dict(rows))[0]  # of length 1',
    ]
    if contract.prompts.differ:
        lines.append(f"words before a text, by its role, are in {portable.PROMPTS_FILE}")
    if contract.dimensions:
        trained = ", ".join(map(str, contract.dimensions))
        lines.append(f"the first {trained} numbers were trained to do alone, scaled to length 1 again")
    return lines


def _export(graph: _Graph, path: Path) -> None:
    """Write the graph, with any batch size and length.

    Raises:
        UserError: if torch cannot export this architecture.
    """
    held = sum(weight.numel() * weight.element_size() for weight in graph.state_dict().values())
    # Neither size is 0 or 1, which an exporter may take for fixed, and one row has padding.
    token_ids, mask = torch.full((2, 7), 5), torch.ones(2, 7, dtype=torch.long)
    mask[0, 4:] = 0
    axes = {0: "batch", 1: "length"}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.eval(),
                (token_ids, mask),
                dynamo=True,
                verbose=False,
                input_names=list(INPUTS),
                output_names=[VECTORS, STATES],
                dynamic_shapes=(axes, axes),
            )
            assert program is not None
            _strip(program.model)
            program.save(path, external_data=held > _MOST_BYTES_WITHIN)
    except Exception as error:  # whatever a model's own code, or its translation, raises
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer ones give advice to developers
            cause = cause.__cause__
        raise UserError(
            f"torch {torch.__version__} cannot export {type(graph.trunk).__name__} as an ONNX graph "
            f"({printable(first_line(cause))[:200]}): it is not written; format=sentence-transformers and merged do "
            "without one"
        ) from error


def _strip(model: Any) -> None:
    """Take off what the exporter noted: from where in this machine's files every node comes."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for part in (model, model.graph, *model.graph.inputs, *model.graph.initializers.values()):
        part.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's and the quantiser's notes are for their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace", "onnxscript", "onnx_ir", "")]
    levels, handlers = [logger.level for logger in loggers], logging.root.handlers[:]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        logging.root.handlers[:] = handlers  # a note to a root that has none makes one


def open_session(path: Path, *, threads: int = 0) -> "InferenceSession":
    """The graph in onnxruntime, on the CPU, with so many threads; 0 for what onnxruntime chooses.

    Raises:
        UserError: if onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class for every status, with no base of its own
        raise UserError(f"onnxruntime cannot load what was made of it ({first_line(error)[:200]})") from error


def run(session: "InferenceSession", tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors (texts, D) of one batch of texts, their prompt already before them."""
    rows = tokenizer(list(texts), padding=True, truncation=True, return_tensors="np")
    return session.run([VECTORS], {name: rows[name].astype(np.int64) for name in rows})[0]


def _batches(folder: Path, before: Mapping[Role, str]) -> Iterator[tuple[Role, tuple[int, ...], np.ndarray]]:
    """Samples of every role in batches of several sizes, and the vectors that the folder gives them."""
    from transformers import AutoTokenizer

    session = open_session(folder / FILE_NAME)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for role, words in before.items():
        for rows in _BATCHES:
            try:
                made = run(session, tokenizer, [words + portable.SAMPLES[row] for row in rows])
            except Exception as error:  # onnxruntime has a class for every status, with no base of its own
                raise UserError(f"onnxruntime cannot run what was made of it ({first_line(error)[:200]})") from error
            yield role, rows, made


def _check_vectors(
    folder: Path, expected: Mapping[Role, np.ndarray], before: Mapping[Role, str], tolerance: float
) -> str:
    """How far onnxruntime's vectors are from the embedder's, in words.

    Raises:
        UserError: if they are others.
    """
    distances = [np.abs(made - expected[role][list(rows)]).max() for role, rows, made in _batches(folder, before)]
    difference = float(np.max(distances))  # NaN if one is
    if not difference <= tolerance:
        raise UserError(f"onnxruntime makes other vectors of it (off by {difference:.1e}): it is not written")
    return f"onnxruntime gives the same vectors to {difference:.1e}, in batches of several sizes and lengths"


def quantise(folder: Path) -> None:
    """Put the matrices of a folder's graph into 8 bits, in its place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, small = folder / FILE_NAME, folder / "int8"
    files = [path for path in (whole, whole.with_name(f"{FILE_NAME}.data")) if path.exists()]
    small.mkdir()
    large = sum(path.stat().st_size for path in files) / 4 > _MOST_BYTES_WITHIN
    with _quiet():
        # Unsigned weights, as products of mixed signs overflow on CPUs without VNNI; a scale for each column.
        quantize_dynamic(
            whole, small / FILE_NAME, weight_type=QuantType.QUInt8, per_channel=True, use_external_data_format=large
        )
    for path in files:
        path.unlink()
    for path in small.iterdir():
        path.rename(folder / path.name)
    small.rmdir()


def _check_cosines(folder: Path, expected: Mapping[Role, np.ndarray], before: Mapping[Role, str]) -> str:
    """How near the vectors in 8 bits are to the embedder's, in words.

    Raises:
        UserError: if they are broken.
    """
    cosines = [(made * expected[role][list(rows)]).sum(axis=1).min() for role, rows, made in _batches(folder, before)]
    cosine = float(np.min(cosines))
    if not cosine >= _LEAST_COSINE:
        raise UserError(
            f"in 8 bits the graph gives other vectors (a cosine of {cosine:.4f} where {_LEAST_COSINE} is the least): "
            "it is not written; leave dtype at f32"
        )
    return f"in 8 bits (int8, dynamic), its vectors have a cosine of {cosine:.4f} or more to those in float32"
