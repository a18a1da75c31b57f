"""The model card of a training: README.md with metadata that the Hugging Face hub reads, rewritten at every score."""

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cft import __version__
from cft.config.schema import PLACEHOLDER, Config, DataSource, Pooling
from cft.data.sts import NINE_SETS
from cft.data.training_data import NLI_REPOSITORY
from cft.evaluation import pairs
from cft.evaluation.bootstrap import LEAST_PAIRS, MEAN, Interval, resample
from cft.evaluation.scores import METRICS, load_evaluation
from cft.model.contract import Contract
from cft.system.files import read_json, write_text
from cft.system.hub import last_part, may_be_repository
from cft.system.tables import Row, as_markdown

FILE_NAME = "README.md"

# What an evaluation's record calls sets that came from the hub.
HUB = "hub"

# Enough for an interval's ends to a few hundredths; reports of studies take ten times as many.
_RESAMPLES = 1000


def write_card(folder: Path, config: Config, data: dict) -> None:
    """Write a run's card, out of what lies in its folder.

    Args:
        folder: with contract, metrics and evaluations.
        config: of the training.
        data: what the training's data.json says.
    """
    contract = Contract.load(folder)
    summary = read_json(folder / METRICS)
    tables = []
    found: list[EvalResult] = []
    for name, entry in sorted(summary.items()):
        intervals = _intervals(folder / "evaluations" / name)
        title = f"### {name.rsplit('-', 1)[0]}, prompt `{entry['prompt']}`"
        tables.append(f"{title}\n\n{as_markdown(_table(entry, intervals))}")
        of_hub = entry.get("source") == HUB
        found += [_result(one, score["spearman"], of_hub=of_hub) for one, score in entry["after"]["sets"].items()]
    metadata = _metadata(folder, config, contract, found).to_yaml()
    card = ModelCard(f"---\n{metadata}\n---\n\n{_text(config, contract, data)}")
    write_text(folder / FILE_NAME, card.content.rstrip() + "\n\n" + "\n\n".join(tables) + "\n")


def for_library(card: str, form: str) -> str:
    """A card whose example is for another library.

    Args:
        card: as written beside a run. form: as `cft.export` calls it; the example of others than
            sentence-transformers stays.
    """
    if form != "sentence-transformers":
        return card
    card = card.replace("from cft import Embedder\n", "from sentence_transformers import SentenceTransformer\n", 1)
    card = card.replace('embedder = Embedder.load("FOLDER")', 'embedder = SentenceTransformer("FOLDER")', 1)
    before, _, rest = card.partition("`contract.json` holds all")
    card = before + rest.partition("\n\n")[2] if rest else card
    return re.sub(r"(?m)^library_name: .*$", "library_name: sentence-transformers", card, count=1)


def _metadata(folder: Path, config: Config, contract: Contract, found: list[EvalResult]) -> ModelCardData:
    hub = may_be_repository(contract.model) and contract.weights.startswith("commit:")
    return ModelCardData(
        model_name=folder.name,
        library_name="peft" if config.lora.rank else "transformers",
        base_model=contract.model if hub else None,
        datasets=[NLI_REPOSITORY] if config.data.source is DataSource.hub else None,
        pipeline_tag="sentence-similarity",
        tags=["feature-extraction", "sentence-similarity", "text-embeddings", "cft"],
        # the hub takes a set's score once: of several prompts, the last one's
        eval_results=list({one.dataset_name: one for one in found}.values()) or None,
    )


def _result(name: str, score: float, *, of_hub: bool) -> EvalResult:
    known = NINE_SETS.get(name) if of_hub else None
    return EvalResult(
        task_type="STS",
        dataset_type=known.repository if known else "other",
        dataset_name=name,
        dataset_config=(known.subset or "default") if known else None,
        dataset_split=known.split if known else None,
        dataset_revision=known.revision if known else None,
        metric_type="cosine_spearman",
        metric_value=round(score, 4),
    )


def _intervals(folder: Path) -> dict[str, Interval]:
    """95% intervals of the scores, by set and over all; none for sets that are too small."""
    found = load_evaluation(folder)
    if found is None or not found.scores:
        return {}
    of_data = pairs.read(folder)
    large = [name for name in found.scores if len(found.cosines[name]) >= LEAST_PAIRS]
    if not large:
        return {}
    drawn = resample(
        [[{name: found.cosines[name] for name in large}]],
        {name: of_data.scores[name] for name in large},
        {name: of_data.identity[name] for name in large},
        resamples=_RESAMPLES,
    )
    return {name: drawn.interval(0, name) for name in drawn.names}


def _table(entry: dict, intervals: dict[str, Interval]) -> list[Row]:
    table: list[Row] = [("set", "pairs", "before", "after", "95% interval")]
    before, after = entry["before"], entry["after"]

    def interval(name: str) -> str:
        one = intervals.get(name)
        return f"{one.low:.1f} to {one.high:.1f}" if one else ""

    for name, one in after["sets"].items():
        scores = (f"{before['sets'][name]['spearman']:.2f}", f"{one['spearman']:.2f}")
        table.append((name, f"{one['pairs']:,}", *scores, interval(name)))
    if len(after["sets"]) > 1:
        table.append(("mean over sets", "", f"{before['mean']:.2f}", f"{after['mean']:.2f}", interval(MEAN)))
    return table


def _prompt(template: str) -> str:
    return "none" if template == PLACEHOLDER else f"`{template}`"


def _taught(config: Config) -> list[Row]:
    """Whose knowledge is in the result besides the base model's."""
    distill = config.distill
    if distill.model is None:
        return []
    how = f"{distill.share:g} of the target, temperature {distill.temperature:g}"
    return [("taught by", f"{distill.model.name} ({distill.model.path}), {how}")]


def _text(config: Config, contract: Contract, data: dict) -> str:
    base = contract.model if may_be_repository(contract.model) else last_part(contract.model)
    lora = config.lora
    trained = (
        f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g} on {', '.join(lora.targets)}"
        if lora.rank
        else "all weights"
    )
    negatives = "in-batch and hard negatives" if config.loss.hard_negatives else "in-batch negatives"
    negatives += ", other anchors among them" if config.loss.anchors_as_negatives else ""
    negatives += ", both directions" if config.loss.both_directions else ""
    length = f"at most {contract.max_length} tokens, special tokens counted in"
    state = f"the {contract.pooling.value} token's state"
    if contract.pooling in (Pooling.mean, Pooling.weighted_mean):
        state = f"the {contract.pooling.value.replace('_', ' ')} of all tokens' states"
    how: list[Row] = [
        ("setting", "value"),
        ("base model", f"{base} ({contract.weights})"),
        ("trained", trained),
        ("objective", f"InfoNCE, {negatives}, temperature {config.loss.temperature:g}"),
        *_taught(config),
        ("data", f"{config.data.name}: {data['triplets']:,} triplets (content {data['content']})"),
        ("steps", f"{config.train.steps:,} at most, of {config.train.batch_size} triplets"),
        ("learning rate", f"{config.lr:g}, {config.schedule.kind.value}, warm-up {config.schedule.warmup_ratio:g}"),
        ("seed", str(config.seed)),
        ("embedding", f"{state}, scaled to length 1"),
        ("texts", f"{length}; EOS appended" if contract.append_eos else length),
        ("prompt in training", _prompt(config.prompt.train_template)),
        ("prompt of the embedder", _prompt(contract.template)),
    ]
    return f"""# A text embedder out of {base}

Fine-tuned contrastively by cft {__version__}, after *Improving Text Embeddings for Smaller Language Models Using
Contrastive Fine-tuning* (arXiv 2408.00690). Give it texts, get vectors of length 1; similar meaning is a high cosine.

## Use

```python
from cft import Embedder

embedder = Embedder.load("FOLDER")  # this folder
vectors = embedder.encode(["A man is playing a flute.", "Someone makes music."])
print(vectors @ vectors.T)
```

`contract.json` holds all that turns a text into a vector, and loading enforces it. For Sentence Transformers:
`python -m cft.export run=FOLDER NEW_FOLDER`.

## How it was made

{as_markdown(how, left=True)}

## Scores

Spearman correlation of cosines with human scores, x 100, before and after this training. Intervals are 95% bootstrap
intervals over the pairs, of the score after.
"""
