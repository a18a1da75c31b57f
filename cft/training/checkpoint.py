"""A training's state in one file: weights, optimiser moments, step and history.

It holds no random state, as every step is seeded by the job's seed and its own number, and no pickle.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cft.system.errors import UserError
from cft.system.files import atomic_write

FILE_NAME = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_BEST = "best/"


def save(
    folder: Path,
    *,
    step: int,
    history: list[dict],
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the state after `step` steps in place of the one before; `best` are the weights of the best step."""
    tensors = {f"weight/{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    for name, weight in weights.items():
        for moment in _MOMENTS:
            if moment in optimizer.state.get(weight, {}):
                tensors[f"{moment}/{name}"] = optimizer.state[weight][moment].cpu().contiguous()
    tensors |= {f"{_BEST}{name}": value for name, value in (best or {}).items()}
    with atomic_write(folder / FILE_NAME) as part:
        save_file(tensors, part, metadata={"step": str(step), "history": json.dumps(history)})


def load(
    folder: Path, *, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict]]:
    """Load a saved state into weights and optimiser.

    Returns:
        The number of steps done and their history; (0, []) if nothing was saved.

    Raises:
        UserError: if the file is damaged or belongs to another model.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return 0, []
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata()
            step = int(metadata["step"])
            names = set(stream.keys())
            for name, weight in weights.items():
                weight.data.copy_(stream.get_tensor(f"weight/{name}"))
                moments = {m: stream.get_tensor(f"{m}/{name}") for m in _MOMENTS if f"{m}/{name}" in names}
                if moments:
                    state = {m: value.to(weight.device) for m, value in moments.items()}
                    optimizer.state[weight] = {"step": torch.tensor(float(step)), **state}
            return step, json.loads(metadata["history"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to start this training over") from error


def load_best(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the best step in a saved state that `load` has read; none if there are none."""
    if not (folder / FILE_NAME).exists():
        return {}
    with safe_open(folder / FILE_NAME, framework="pt") as stream:
        names = [name for name in stream.keys() if name.startswith(_BEST)]  # noqa: SIM118  it is no dictionary
        return {name.removeprefix(_BEST): stream.get_tensor(name) for name in names}


def moments(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, *, step: int) -> dict[str, torch.Tensor]:
    """The optimiser's moments of a weight, created as zeros if missing; none before the first step."""
    if step and weight not in optimizer.state:
        fresh = {name: torch.zeros_like(weight) for name in _MOMENTS}
        optimizer.state[weight] = {"step": torch.tensor(float(step)), **fresh}
    return {name: optimizer.state[weight][name] for name in _MOMENTS} if step else {}


def step_of(folder: Path) -> int:
    """Steps done in the saved state; 0 if nothing readable was saved."""
    try:
        with safe_open(folder / FILE_NAME, framework="pt") as stream:
            return int(stream.metadata()["step"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return 0


def remove(folder: Path) -> None:
    """Delete the state of a training that is finished."""
    (folder / FILE_NAME).unlink(missing_ok=True)
