"""What a job starts from: a base model on its device, or an adapter on it."""

import logging
from dataclasses import dataclass

import torch

from cft.config.schema import Config, Precision, Prompts, PromptSettings, Role
from cft.model.adapters import Adapter, attach, fetch_adapter, require_named_base
from cft.model.contract import PRECISION_OF
from cft.model.embedder import Embedder, torch_device
from cft.model.precision import bfloat16_gain, wants_bf16
from cft.model.sources import ModelFiles, fetch
from cft.system.distributed import device_of_rank
from cft.system.errors import UserError
from cft.system.overrides import override

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """What a job starts from."""

    files: ModelFiles  # of the base model
    adapter: Adapter | None  # on the base model
    device: torch.device
    bf16: bool  # whether the model runs in bfloat16
    gain: float | None = None  # how many times as fast bfloat16 was by a trial, if that decided

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
        dtype = self.dtype(config)
        by_trial = f" ({self.gain:.1f} times as fast as float32 here, by a trial)" if self.gain is not None else ""
        rounded = f", in bfloat16{by_trial}" if dtype is torch.bfloat16 else ""
        log.info("loading %s (%s)%s", config.model.name, config.model.path, rounded)
        every = (config.prompt.in_evaluation, config.prompt.in_training, config.prompt.saved)
        templates = tuple(dict.fromkeys(prompts.of(role) for prompts in every for role in Role))
        base = Embedder.base(config.model, files=self.files, device=self.device, dtype=dtype, templates=templates)
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
    files = files or fetch(config.model)
    tried: list[float] = []

    def gain() -> float:
        tried.append(bfloat16_gain(config.model, files))
        return tried[-1]

    bf16 = wants_bf16(_precision(config, adapter), device, gain)
    return StartingPoint(files=files, adapter=adapter, device=device, bf16=bf16, gain=tried[-1] if tried else None)


def _precision(config: Config, adapter: Adapter | None) -> Precision:
    """What is configured, which on top of an adapter can only be its own: its contract holds in no other.

    Raises:
        UserError: if it is another.
    """
    configured = config.train.precision
    if adapter is None or adapter.contract is None or not config.lora.rank:
        return configured
    own = Precision(PRECISION_OF[adapter.contract.dtype])
    if configured not in (own, Precision.auto):
        raise UserError(
            f"{override('train.precision', configured.value)}: the adapter {adapter.name} was trained in "
            f"{adapter.contract.dtype} and goes on in it alone; leave train.precision out, or set "
            f"{override('train.precision', own.value)}"
        )
    return own


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
