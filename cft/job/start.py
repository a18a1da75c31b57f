"""What a job starts from: a base model on its device, or an adapter on it."""

import logging
from dataclasses import dataclass

import torch

from cft.config.schema import Config, Precision, Prompts, PromptSettings, Role
from cft.model.adapters import Adapter, attach, fetch_adapter, require_named_base
from cft.model.embedder import Embedder, torch_device
from cft.model.sources import ModelFiles, fetch
from cft.system.distributed import device_of_rank
from cft.system.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """What a job starts from."""

    files: ModelFiles  # of the base model
    adapter: Adapter | None  # on the base model
    device: torch.device
    bf16: bool  # whether the model runs in bfloat16

    def dtype(self, config: Config) -> torch.dtype:
        """Type of the base weights: frozen ones may be bfloat16, trained ones stay float32."""
        return torch.bfloat16 if self.bf16 and config.lora.rank > 0 else torch.float32

    def load(self, config: Config, *, trainable: bool) -> Embedder:
        """Load it.

        Args:
            config: the job. trainable: whether an adapter is to be trained on.

        Raises:
            UserError: if the model cannot be loaded, or the adapter does not belong to it.
        """
        log.info("loading %s (%s)", config.model.name, config.model.path)
        every = (config.prompt.in_evaluation, config.prompt.in_training, config.prompt.saved)
        templates = tuple(dict.fromkeys(prompts.of(role) for prompts in every for role in Role))
        base = Embedder.base(
            config.model, files=self.files, device=self.device, dtype=self.dtype(config), templates=templates
        )
        for prompts in every:
            base.with_prompts(prompts)  # one that leaves no room for texts is refused before anything is scored
        if self.adapter is None:
            return base
        embedder = attach(base, self.adapter, lora=config.lora if trainable else None, any_base=config.adapter_any_base)
        _log_prompt(self.adapter, config.prompt)
        return embedder


def _log_prompt(adapter: Adapter, prompt: PromptSettings) -> None:
    """Report a prompt that the adapter was saved with, and how to keep it if this job drops it."""
    saved = adapter.contract.prompts if adapter.contract else Prompts()
    if saved == Prompts():
        return
    dropped = saved not in (prompt.in_training, prompt.in_evaluation, prompt.saved)
    advice = "; this job drops it (prompt.template='...' prompt.use=both or after keeps it)" if dropped else ""
    log.info("the adapter was saved with the prompt %s%s", saved, advice)


def find_starting_point(config: Config, files: ModelFiles | None = None) -> StartingPoint:
    """Fetch what a job starts from, without loading it.

    Args:
        config: the job. files: of the base model, if they were fetched already.

    Raises:
        UserError: if model, adapter or device cannot be had.
    """
    device = device_of_rank(choose_device(config.device))
    adapter = fetch_adapter(config.adapter, config.adapter_revision) if config.adapter else None
    if adapter is not None:
        require_named_base(adapter, config.model.path, any_base=config.adapter_any_base)
    return StartingPoint(
        files=files or fetch(config.model),
        adapter=adapter,
        device=device,
        bf16=wants_bf16(config.train.precision, device),
    )


def choose_device(name: str) -> torch.device:
    """The device that `device=` names.

    Raises:
        UserError: if there is no such device, or not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name}: must be auto, cpu, cuda or mps")
    if name == "mps":
        return torch_device(name)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; set device=cpu, or install a CUDA build of torch")
    return torch.device(name)


def wants_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether the model runs in bfloat16: if configured, or by `auto` on a GPU that has it.

    Raises:
        UserError: if it is configured on a GPU without it.
    """
    if precision is Precision.auto:
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision is Precision.bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name(device)
        raise UserError(f"train.precision=bf16: {name} has no bfloat16; set train.precision=fp32, or auto")
    return precision is Precision.bf16
