"""What trials of a model found, kept, so that a model is tried once on a machine and not by each command.

A trial is of everything that decides it: the configuration, the settings, our own code and the libraries, the precision
and the device; that at loading is of the weights too. Refusals are not kept.
"""

import inspect
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from cft.batching.layout import Batching, choose_batching, use_batching
from cft.config.schema import Batches, ModelSettings
from cft.system.digest import digest, sha256_of_file
from cft.system.errors import UserError
from cft.system.files import cache_folder, read_record, write_record

log = logging.getLogger(__name__)

_Found = TypeVar("_Found")


def find_batching(trunk: Any, model: ModelSettings, prefix_ids: tuple[int, ...], weights: str) -> Batching:
    """What `choose_batching` finds of a trunk, which is left with the attention that goes with it.

    Args:
        trunk: on its device, with its own attention. weights: names its weights by content.

    Raises:
        UserError: as `choose_batching`.
    """
    tried = _tried(trunk, model, prefix_ids, weights)
    found = _found_before(tried, trunk)
    if found is None:
        found = choose_batching(trunk, model, prefix_ids)
        keep(tried, found)
    if found.kind is Batches.padded and model.batches is Batches.auto:
        log.info("texts are padded instead of sharing prefixes: %s", found.reason)
    return found


def _found_before(tried: Mapping[str, Any], trunk: Any) -> Batching | None:
    """What an earlier trial found, if the trunk takes its attention."""
    kept = recall(tried, Batching)
    if kept is not None:
        with suppress(UserError):
            use_batching(trunk, kept)
            return kept
    return None


def recall(tried: Mapping[str, Any], kind: type[_Found]) -> _Found | None:
    """What a trial of all this found before on this machine; None if there was none, or it is not whole."""
    with suppress(UserError):
        return read_record(_path(tried), kind)
    return None


def keep(tried: Mapping[str, Any], found: Any) -> None:
    """Keep what a trial of all this found, a dataclass; where that cannot be written, it is tried again next time."""
    path = _path(tried)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, found)
    except (OSError, UserError) as error:
        log.debug("a trial is not kept: %s", error)


def circumstances(model: Any, parts: tuple[str, ...]) -> dict[str, Any]:
    """What decides any trial of a model.

    Args:
        model: on its device. parts: of this package, whose code decides it too.
    """
    weight = next(model.parameters())
    device = torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else weight.device.type
    return {
        "class": type(model).__name__,
        "config": model.config.to_json_string(use_diff=False),
        "attention": model.config._attn_implementation,
        "dtype": [str(weight.dtype) for weight in model.parameters()],
        "device": [device, torch.backends.cpu.get_cpu_capability()],
        "libraries": [torch.__version__, version("transformers"), version("peft")],
        "code": [_code(part) for part in parts],
        "computed": sorted({_computed_by(type(module)) for module in model.modules()}),
    }


def _tried(trunk: Any, model: ModelSettings, prefix_ids: tuple[int, ...], weights: str) -> dict[str, Any]:
    """All that the trial at loading depends on."""
    return {
        **circumstances(trunk, ("batching",)),
        "weights": weights,
        "settings": [model.attention, model.batches, model.layer, model.max_length, model.quantization],
        "prefix": prefix_ids,
    }


def _path(tried: Mapping[str, Any]) -> Path:
    return cache_folder() / "trials" / f"{digest(tried)}.json"


@cache
def _code(part: str) -> list[str]:
    """The files of a part of this package."""
    return [sha256_of_file(path) for path in sorted((Path(__file__).parents[1] / part).glob("*.py"))]


def _computed_by(kind: type[torch.nn.Module]) -> tuple[str, ...]:
    """Names what a module computes: packages that speed up transformers put other functions in the place of its own."""
    function = inspect.unwrap(kind.forward)
    code = getattr(function, "__code__", None)
    inside = (code.co_code.hex(), repr(code.co_names)) if code else ()
    return (f"{kind.__module__}.{kind.__qualname__}", f"{function.__module__}.{function.__qualname__}", *inside)
