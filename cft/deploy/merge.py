"""One embedder out of several trainings of one base model: the weighted sum of what they changed, by PEFT's methods.

Trainings that differ in seed, data or rate end at different weights, and their mean is often better than each of them.

Source: Wortsman et al. 2022 (model soups), arXiv 2203.05482; Yadav et al. 2023 (TIES), arXiv 2306.01708.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cft import __version__
from cft.config.command_line import check_options
from cft.deploy.load import PlaceOfBase, find_embedder
from cft.job.run_folder import RunFolder
from cft.model.contract import FILE_NAME as CONTRACT
from cft.model.contract import Contract
from cft.model.sources import ADAPTER_FOLDER
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import read_json, staging_folder, user_path, write_json
from cft.system.overrides import override
from cft.system.tables import Row, as_text

if TYPE_CHECKING:
    import torch

    from cft.model.adapters import Adapter
    from cft.model.embedder import Embedder

log = logging.getLogger(__name__)

# Of what a vector depends on, all must be equal but for these: what was trained, and what says nothing of vectors.
_FREE = ("adapter", "model", "weights", "content", "pissa")
# How far the sum of changes that PEFT makes may be from ours, as a share of the largest sum of products' sizes in it.
_TOLERANCE = 1e-5
_MOST_GENERATIONS = 8  # of trainings and merges that stand on one another, which are looked into
_DENSITY = 0.5  # of ties, where none is given
_TEXTS = ["A man is playing a flute.", "Nobody is at home."]


class Method(str, Enum):
    """How changes become one."""

    cat = "cat"
    linear = "linear"
    ties = "ties"


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Merge trainings of one base model into one embedder, a folder like that of any of them.

    Score it: python -m cft.run adapter=FOLDER train.steps=0 eval=..., with the model= of its trainings.
    """

    runs: Annotated[list[str], "two or more runs: folders, or the ends of their names, as in runs=[A,B,C]"]
    weights: Annotated[
        list[float], "how much each counts, as in weights=[2,1,1]; divided by their sum; none: all alike"
    ] = field(default_factory=list)
    method: Annotated[
        Method,
        "cat: the weighted sum of the changes, exactly (ranks add up); linear: of their factors (keeps the rank, is "
        "rough); ties: the same without small and contradicting numbers",
    ] = Method.cat
    density: Annotated[
        float | None, "for ties: the share of each factor's numbers that is kept, the largest; none: 0.5"
    ] = None
    out: Annotated[str, "the folder to write; none: outputs/ and a name of what is merged"] = ""
    outputs: Annotated[Path, "where runs are, and the new one goes"] = Path("outputs")
    model_path: PlaceOfBase = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_options(self)
        if len(self.runs) < 2:
            raise UserError(f"{override('runs', self.runs)}: name two runs or more")
        if self.weights and len(self.weights) != len(self.runs):
            raise UserError(
                f"{override('weights', self.weights)}: there are {len(self.weights)} weights for {len(self.runs)} runs"
            )
        if self.weights and (any(weight < 0 for weight in self.weights) or not sum(self.weights)):
            raise UserError(f"{override('weights', self.weights)}: must be 0 or more, and not all 0")
        if not math.isfinite(sum(self.weights)):
            raise UserError(
                f"{override('weights', self.weights)}: are too large to be added up; only their ratios count, so that "
                "smaller ones do the same"
            )
        if self.density is None:
            return
        if not 0 < self.density <= 1:
            raise UserError(f"{override('density', self.density)}: must be above 0 and at most 1")
        if self.method is not Method.ties:
            raise UserError(
                f"{override('density', self.density)} would not be read: add {override('method', Method.ties)}"
            )

    @property
    def shares(self) -> list[float]:
        """How much each run counts; they add up to 1."""
        weights = self.weights or [1.0] * len(self.runs)
        shares = [weight / sum(weights) for weight in weights]
        assert math.isclose(sum(shares), 1, rel_tol=1e-9)
        return shares

    @property
    def kept(self) -> float:
        """`density`, decided."""
        return _DENSITY if self.density is None else self.density


def merge_runs(options: MergeOptions) -> str:
    """Write the merged embedder; returns what was merged, in words.

    Raises:
        UserError: if a run is not there, they are of different bases or embed differently, or cannot be merged so;
            before a model is loaded.
    """
    from cft.job.card import write_merged_card
    from cft.model.adapters import fetch_adapter

    folders = [find_embedder(name, options.outputs) for name in options.runs]
    twice = [folder for number, folder in enumerate(folders) if folder.resolve() in _resolved(folders[:number])]
    if twice:
        raise UserError(
            f"{override('runs', options.runs)}: {twice[0]} is named twice; its weight says how much it counts"
        )
    contracts = [Contract.load(folder) for folder in folders]
    for folder, contract in zip(folders[1:], contracts[1:], strict=True):
        _require_alike(folders[0], contracts[0], folder, contract)
    adapters = [fetch_adapter(str(folder), None) for folder in folders]
    _require_mergeable(adapters, options)
    pissa = [_pissa_among(folder, options.outputs) for folder in folders]
    _require_sums(pissa, options)
    target = user_path(options.out) if options.out else _target(adapters, options)
    if target.exists():
        raise UserError(f"{target} exists; name another folder by out=")
    parents = [
        {"run": folder.name, "adapter": adapter.identity, "share": share}
        for folder, adapter, share in zip(folders, adapters, options.shares, strict=True)
    ]
    with staging_folder(target) as staging:
        scratch = staging / "run"
        scratch.mkdir()
        merged = _merged(folders, adapters, options, pissa=any(pissa))
        expected = merged.encode(_TEXTS)
        merged.save(scratch)
        record: dict[str, Any] = {"method": options.method.value, "parents": parents, "cft": __version__}
        record |= {"density": options.kept} if options.method is Method.ties else {}
        write_json(scratch / RunFolder.MERGED, record)
        write_merged_card(scratch, target.name, folders, record)
        _require_same(scratch, expected, options)
        os.rename(scratch, target)
    return _report(target, parents, options)


def _resolved(folders: list[Path]) -> set[Path]:
    return {folder.resolve() for folder in folders}


def _require_alike(first: Path, one: Contract, second: Path, other: Contract) -> None:
    """Refuse embedders of which one would not be what the other is."""
    if not one.has_weights_of(other):
        raise UserError(
            f"{first} and {second} are trainings of different base models ({one.model}, {other.model}): nothing is "
            "there to be merged"
        )
    ours, theirs = vars(one), vars(other)
    odd = [name for name in ours if name not in _FREE and ours[name] != theirs[name]]
    if odd:
        lines = [f"  {name}: {ours[name]!r} and {theirs[name]!r}" for name in odd]
        raise UserError("\n".join([f"{first} and {second} do not embed alike, and cannot be merged:", *lines]))


def _require_mergeable(adapters: "list[Adapter]", options: MergeOptions) -> None:
    """Refuse trainings that the method cannot put together."""
    from peft import PeftType

    whole = [adapter.config is None for adapter in adapters]
    if any(whole):
        if not all(whole):
            raise UserError(
                f"{adapters[whole.index(False)].name} is an adapter, {adapters[whole.index(True)].name} a whole"
            )
        if options.method is not Method.linear:
            raise UserError(
                f"{override('method', options.method.value)}: these runs were trained whole (lora=none), and only "
                "method=linear merges such weights"
            )
        return
    for adapter in adapters:
        if adapter.config.peft_type != PeftType.LORA:
            raise UserError(f"{adapter.name} is an adapter of the kind {adapter.config.peft_type}: only LoRA is merged")
        if adapter.config.use_dora:
            raise UserError(f"{adapter.name} was trained with lora.variant=dora, whose lengths are no sum: not merged")
        if adapter.config.bias != "none":
            raise UserError(f"{adapter.name} has trained biases, which PEFT does not merge")
    ranks = [adapter.config.r for adapter in adapters]
    targets = [set(adapter.config.target_modules) for adapter in adapters]
    if options.method is not Method.cat and len(set(ranks)) > 1:
        raise UserError(
            f"{override('method', options.method.value)}: ranks are {', '.join(map(str, ranks))}; take method=cat"
        )
    if any(names != targets[0] for names in targets):
        odd = ", ".join(sorted(set.union(*targets) - set.intersection(*targets)))
        raise UserError(f"these runs changed different layers ({odd}): not merged")


def _target(adapters: "list[Adapter]", options: MergeOptions) -> Path:
    facts = [[adapter.identity for adapter in adapters], options.shares, options.method.value, options.kept]
    return options.outputs / f"merged-{digest(facts)}"


def _pissa_among(folder: Path, outputs: Path, depth: int = 0) -> str:
    """What an embedder's factors have of PiSSA, as the end of a sentence with its name; empty if nothing.

    Its contract says so. One that an older cft wrote does not, but a run's configuration or the record of a merge may
    be there, which lead to those that it was made of.
    """
    folder = folder.parent if folder.name == ADAPTER_FOLDER else folder
    if (folder / CONTRACT).exists() and Contract.load(folder).pissa:
        return f"{folder} was trained with lora.init=pissa"
    place = folder.parent.parent if folder.parent.name == RunFolder.STEPS else folder
    config, record = (_record(place / name) for name in (RunFolder.CONFIG, RunFolder.MERGED))
    init = str(config.get("lora", {}).get("init", ""))
    before = str(config.get("adapter") or "")
    if init.startswith("pissa") and not before:  # a training that goes on from an adapter does not begin anew
        return f"{folder} was trained with {override('lora.init', init)}"
    names = [str(parent.get("run", "")) for parent in record.get("parents", [])]
    parents = [user_path(before)] if before else []
    parents += [root / name for name in names for root in (folder.parent, outputs)]
    for parent in parents if depth < _MOST_GENERATIONS else []:
        found = _pissa_among(parent, outputs, depth + 1)
        if found:
            return f"{folder} stands on {found}" if not depth else found
    return ""


def _record(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _require_sums(pissa: list[str], options: MergeOptions) -> None:
    """Refuse to combine factors of which half only take off what the other half began with (PiSSA)."""
    found = next(filter(None, pissa), "")
    if found and options.method is not Method.cat:
        raise UserError(
            f"{override('method', options.method.value)}: {found}, and half of its factors only take off what the "
            "others began with; take method=cat, which adds up whole changes"
        )


def _merged(folders: list[Path], adapters: "list[Adapter]", options: MergeOptions, *, pissa: bool) -> "Embedder":
    """The embedder in memory."""
    from cft.model.embedder import Embedder

    log.info("loading %s", folders[0])
    embedder = Embedder.load(folders[0], model_path=options.model_path or None)
    if adapters[0].config is None:
        _mean_of_wholes(embedder.model, adapters, options.shares)
    else:
        _combine(embedder.model, adapters, options)
    return Embedder(embedder.model, embedder.backbone, replace(embedder.contract, adapter=None, pissa=pissa))


def _mean_of_wholes(model: "torch.nn.Module", adapters: "list[Adapter]", shares: list[float]) -> None:
    from cft.model.weights import FULL_WEIGHTS, read_tensors

    total: dict[str, torch.Tensor] = {}
    for adapter, share in zip(adapters, shares, strict=True):
        for name, tensor in read_tensors(adapter.folder / FULL_WEIGHTS).items():
            part = tensor.double() * share
            total[name] = total[name] + part if name in total else part
    known = model.state_dict()
    model.load_state_dict({name: tensor.to(known[name].dtype) for name, tensor in total.items()})


def _combine(model: Any, adapters: "list[Adapter]", options: MergeOptions) -> None:
    """Replace the model's adapter by the adapters' combination, and its layer weights by their mean."""
    from cft.model.layer_weights import TENSOR, layer_weights_of
    from cft.model.sources import ADAPTER_WEIGHTS
    from cft.model.weights import read_tensors

    parts = [f"part{number}" for number in range(len(adapters))]
    for part, adapter in zip(parts, adapters, strict=True):
        model.load_adapter(str(adapter.folder), adapter_name=part, low_cpu_mem_usage=False)
    model.set_adapter(parts[0])  # PEFT warns where the active one is deleted
    model.delete_adapter("default")
    shares = dict(zip(parts, options.shares, strict=True))
    # What PiSSA leaves is small beside the products that it is the difference of, which is what rounding goes by.
    expected, sizes = _sum_of_changes(model, shares), _sizes_of_products(model, shares)
    # Of rank-stabilised adapters PEFT would scale the sum once more.
    model.peft_config[parts[0]].use_rslora = False
    density = options.kept if options.method is Method.ties else None
    model.add_weighted_adapter(parts, options.shares, "default", combination_type=options.method.value, density=density)
    model.set_adapter("default")
    if options.method is Method.cat:
        for name, change in _sum_of_changes(model, {"default": 1.0}).items():
            if float((change - expected[name]).detach().abs().max()) > _TOLERANCE * sizes[name]:
                raise RuntimeError(f"PEFT's sum of the changes of {name} is not the sum of the changes")
    for part in parts:
        model.delete_adapter(part)
    weights = layer_weights_of(model)
    if weights is not None:
        tensors = [read_tensors(adapter.folder / ADAPTER_WEIGHTS)[TENSOR] for adapter in adapters]
        mean = sum(share * tensor for share, tensor in zip(options.shares, tensors, strict=True))
        weights.load_state_dict({"logits": mean})


def _sum_of_changes(model: Any, shares: dict[str, float]) -> "dict[str, torch.Tensor]":
    """What adapters together add to the weight of each layer."""
    return {
        name: sum(share * layer.get_delta_weight(adapter) for adapter, share in shares.items())
        for name, layer in _layers(model, shares)
    }


def _sizes_of_products(model: Any, shares: dict[str, float]) -> dict[str, float]:
    """Largest sum of the sizes of the products that an element of each layer's change is made of."""
    return {
        name: sum(
            share * layer.scaling[adapter] * _largest_product(layer, adapter) for adapter, share in shares.items()
        )
        for name, layer in _layers(model, shares)
    }


def _largest_product(layer: Any, adapter: str) -> float:
    first, second = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
    return float((second.abs() @ first.abs()).max())


def _layers(model: Any, adapters: Iterable[str]) -> "Iterator[tuple[str, Any]]":
    """The layers that have all the adapters."""
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight") and all(adapter in layer.lora_A for adapter in adapters):
            yield name, layer


def _require_same(folder: Path, expected: Any, options: MergeOptions) -> None:
    """Refuse to keep a folder that gives other vectors than the embedder in memory."""
    import numpy as np

    from cft.model.embedder import Embedder

    loaded = Embedder.load(folder, model_path=options.model_path or None)
    difference = float(np.abs(loaded.encode(_TEXTS) - expected).max())
    if difference > _TOLERANCE:
        raise RuntimeError(f"the merged embedder, loaded again, gives other vectors (off by {difference:.1e})")


def _report(target: Path, parents: list[dict], options: MergeOptions) -> str:
    table: list[Row] = [("run", "share")]
    files = f"adapter/, contract.json, {RunFolder.MERGED}, {RunFolder.CARD}"
    table += [(parent["run"], f"{parent['share']:.3f}") for parent in parents]
    return "\n".join(
        [
            as_text(table),
            "",
            f"written: {target} (method={options.method.value}; {files})",
            f"  python -m cft.similar, cft.encode, cft.export and cft.push take {override('run', target)}",
            f"next: score it, python -m cft.run {override('adapter', target)} train.steps=0 eval=... and their other "
            "settings",
        ]
    )
