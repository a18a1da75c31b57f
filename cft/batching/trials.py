"""What the trial at loading found, kept, so that a model is tried once on a machine and not by each command.

A trial is of everything that decides it: the weights and the configuration, the settings, the code that lays out
batches and attends, the libraries, the precision and the device. Refusals are not kept.
"""

import inspect
import logging
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from cft.batching.layout import Batching, choose_batching, use_batching
from cft.config.schema import ModelSettings
from cft.system.digest import digest, sha256_of_file
from cft.system.errors import UserError
from cft.system.files import cache_folder, read_record, write_record

log = logging.getLogger(__name__)


def find_batching(trunk: Any, model: ModelSettings, prefix_ids: tuple[int, ...], weights: str) -> Batching:
    """What `choose_batching` finds of a trunk, which is left with the attention that goes with it.

    Args:
        trunk: on its device, with its own attention. weights: names its weights by content.

    Raises:
        UserError: as `choose_batching`.
    """
    path = cache_folder() / "trials" / f"{digest(_tried(trunk, model, prefix_ids, weights))}.json"
    with suppress(UserError):  # there is none, or not a whole one
        kept = read_record(path, Batching)
        use_batching(trunk, kept, model)
        return kept
    found = choose_batching(trunk, model, prefix_ids)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, found)
    except (OSError, UserError) as error:  # it is tried again next time
        log.debug("the trial of %s is not kept: %s", model.path, error)
    return found


def _tried(trunk: Any, model: ModelSettings, prefix_ids: tuple[int, ...], weights: str) -> dict[str, Any]:
    """All that a trial depends on."""
    weight = next(trunk.parameters())
    device = torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else weight.device.type
    return {
        "weights": weights,
        "class": type(trunk).__name__,
        "config": trunk.config.to_json_string(use_diff=False),
        "attention": trunk.config._attn_implementation,
        "settings": [model.attention, model.batches, model.layer, model.max_length, model.quantization],
        "prefix": prefix_ids,
        "dtype": [str(weight.dtype) for weight in trunk.parameters()],
        "device": [device, torch.backends.cpu.get_cpu_capability()],
        "libraries": [torch.__version__, transformers.__version__],
        "code": _code(),
        "computed": sorted({_computed_by(type(module)) for module in trunk.modules()}),
    }


@cache
def _code() -> list[str]:
    """The files of this part, which lay out batches and attend."""
    return [sha256_of_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))]


def _computed_by(kind: type[torch.nn.Module]) -> tuple[str, ...]:
    """Names what a module computes: packages that speed up transformers put other functions in the place of its own."""
    function = inspect.unwrap(kind.forward)
    code = getattr(function, "__code__", None)
    inside = (code.co_code.hex(), repr(code.co_names)) if code else ()
    return (f"{kind.__module__}.{kind.__qualname__}", f"{function.__module__}.{function.__qualname__}", *inside)
