"""What tests share: tiny models, reference encodings, a private cache."""

import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# W&B must not look for a network, nor anything for a hub; the hub's client looks at this once, when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes; torch's threads would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Neither these tests nor what they start may reach a network; importing it guards this process.
GUARD = Path(__file__).parent / "guard"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(GUARD))
if getattr(sys.modules.get("sitecustomize"), "__file__", None) != str(GUARD / "sitecustomize.py"):
    sys.modules.pop("sitecustomize", None)  # the system may have one of its own
import sitecustomize  # noqa: E402, F401

# isort: split
import cft  # noqa: F401  before torch: it says how OpenMP's threads wait, which matters where processes share cores

# isort: split
import pytest
import torch
from forked import Commands, server
from jobs import CAPTIONS, DEV, SCORED, TRIPLETS, settings
from pictures import draw_small
from transformers import AutoConfig

from cft.config.schema import Attention, ModelSettings
from cft.job import figures
from cft.model.embedder import Embedder
from cft.model.tokenizer import byte_tokenizer
from cft.system.files import cache_folder


def _private_cache() -> str:
    """A cache for these tests alone, but for models and docstrings, which are slow to come by."""
    private = Path(tempfile.mkdtemp(prefix="cft-tests-"))
    for name in ("converted", "wheels", "docstrings"):
        (cache_folder() / name).mkdir(parents=True, exist_ok=True)
        (private / name).symlink_to((cache_folder() / name).resolve())
    atexit.register(shutil.rmtree, private, ignore_errors=True)  # the links in it are removed, not what they lead to
    return str(private)


os.environ["CFT_CACHE"] = _private_cache()

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


# Tests draw small pictures, and so do commands that they start; `drawn_in_full` gives those that users get.
_draw_in_full, figures.save = figures.save, draw_small


@pytest.fixture
def drawn_in_full(monkeypatch) -> None:
    """Pictures as users get them."""
    monkeypatch.setattr(figures, "save", _draw_in_full)


# Files that take longest, the longest first. They begin: who is given one at the end works alone.
LONGEST = (
    "promises/test_crash",
    "promises/test_fuzz_config",
    "promises/test_failures",
    "paper",
    "promises/test_fuzz_data",
    "training/test_distributed",
    "promises/test_wheel",
    "promises/test_load",
    "job/test_runner",
    "model/test_families",
    "study/test_search",
    "deploy/test_onnx_file",
    "deploy/test_export",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have each file tried by one process, and all that look at the paper's tables by the same one."""
    of_paper = {item.path for item in items if "paper" in getattr(item, "fixturenames", ())}
    groups = {item: "paper" if item.path in of_paper else f"{item.path.parent.name}/{item.path.stem}" for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="module")
def _collect_only_what_is_new() -> None:
    """Have collections, of which a job makes two, not look at all that was imported: a quarter of a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the nine STS sets and NLI triplets, where a machine has it."""
    folder = Path(os.environ.get("CFT_REAL_DATA", REAL_DATA))
    if not (folder / "sts" / "STS12.jsonl.gz").exists():
        pytest.skip("the real STS and NLI files are not here; set CFT_REAL_DATA to their folder to run this test")
    return folder


@pytest.fixture(scope="session")
def beir() -> Path:
    """The folder with SciFact and ArguAna in BEIR's layout, where a machine has it."""
    folder = Path(os.environ.get("CFT_BEIR", REAL_DATA / "retrieval"))
    if not all((folder / name / "qrels" / "test.tsv").exists() for name in ("SciFact", "ArguAna")):
        pytest.skip("SciFact and ArguAna are not here in BEIR's layout; set CFT_BEIR to their folder to run this test")
    return folder


@pytest.fixture
def tiny() -> Embedder:
    """A Llama of 2 layers with random weights."""
    return make_tiny("llama")


def make_tiny(architecture: str, **settings: object) -> Embedder:
    """A tiny random model as an embedder, in float32 on the CPU."""
    return Embedder.base(ModelSettings(name="tiny", path=f"random:{architecture}", **settings))


def write_model(folder: Path, architecture: str, **config: object) -> Path:
    """A tiny random model in a folder as transformers writes it, its configuration changed."""
    from transformers import AutoModel

    told = make_tiny(architecture, attention=_direction(architecture)).model.config.to_dict() | config
    if "num_hidden_layers" in config:
        told.pop("layer_types", None)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**told)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _direction(architecture: str) -> Attention:
    return Attention.bidirectional if "bert" in architecture else Attention.causal


def padded_states(trunk: torch.nn.Module, sequences: list[tuple[int, ...]], side: str) -> torch.Tensor:
    """Reference: last-token states (B, D) of sequences padded to one length, by transformers' own attention.

    The padding side decides where position 0 is, so position ids are given for both.
    """
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        cells = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        ids[row, cells] = torch.tensor(sequence)
        mask[row, cells] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    states = trunk(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    last = torch.tensor([len(s) - 1 if side == "right" else width - 1 for s in sequences])
    return states[torch.arange(len(sequences)), last]


def one_by_one(embedder: Embedder, sequences: list[tuple[int, ...]]) -> torch.Tensor:
    """Reference: last-token states (B, D) of sequences on their own, by transformers' own attention.

    The embedder's attention is put back afterwards.
    """
    trunk, used = embedder.model, embedder.model.config._attn_implementation
    trunk.set_attn_implementation(embedder.backbone.batching.own_attention)
    with torch.no_grad():
        states = [trunk(input_ids=torch.tensor([s]), use_cache=False).last_hidden_state[0, -1] for s in sequences]
    trunk.set_attn_implementation(used)
    return torch.stack(states)


def with_own_attention(trunk: torch.nn.Module) -> torch.nn.Module:
    """The same model with transformers' own attention instead of the tree's."""
    trunk.set_attn_implementation("sdpa")
    return trunk


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished training of a tiny model; not to be changed."""
    from cft.config.compose import compose_config
    from cft.job import runner

    outputs = tmp_path_factory.mktemp("trained")
    quick = "model=tiny logger=none train.steps=4 train.batch_size=8 data.rows=100 data.holdout=10 eval.rows=20".split()
    runner.run(compose_config([*CAPTIONS, DEV, *quick, f"outputs={outputs}"]))
    (folder,) = (path for path in outputs.iterdir() if path.name.startswith("tiny-"))
    return folder


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """The package's commands as quick processes of their own."""
    with server() as found:
        yield found


@pytest.fixture(scope="session")
def paper(tmp_path_factory):
    """All the paper's tables and figures at the smoke scale, run once from an empty folder for all tests.

    outputs: their folder; not to be changed. studies: by experiment. missing: cells. steps: numbers of the training
    steps that were carried out. said: what was logged.
    """
    from types import SimpleNamespace

    from cft.config.compose import compose_config
    from cft.study import plan, spec
    from cft.study import runner as study_runner
    from cft.training import trainer

    outputs = tmp_path_factory.mktemp("paper")
    steps: list[int] = []
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger, step = logging.getLogger("cft"), trainer._step
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    trainer._step = lambda *a, **k: steps.append(k["step"]) or step(*a, **k)
    try:
        found = {}
        for name in spec.available():
            given = [f"outputs={outputs}", *TRIPLETS, *SCORED, DEV]
            told = spec.load(name, "smoke", given)
            if told.cells:
                found[name] = plan.compose_study(told, given, [], compose_config)
                found[name].save(plan.study_folder(outputs, found[name].name))
        missing = study_runner.run(
            list(found.values()), only_failed=False, dry_run=False, launcher=None, launcher_overrides=[]
        )
    finally:
        trainer._step = step
        logger.removeHandler(handler)
        logger.setLevel(level)
    return SimpleNamespace(outputs=outputs, studies=found, missing=missing, steps=steps, said="\n".join(said))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The outputs of an undisturbed job."""
    from cft.job import runner

    outputs = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", _draw_in_full)
        runner.run(settings(outputs))
    return outputs
