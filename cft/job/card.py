"""The model card of a training: README.md with metadata that the Hugging Face hub reads, rewritten at every score."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard

from cft import __version__
from cft.config.schema import PLACEHOLDER, Config, DataSource, Prompts, Role
from cft.data.sts import NINE_SETS
from cft.data.training_data import NLI_REPOSITORY
from cft.evaluation import pairs
from cft.evaluation.bootstrap import LEAST_PAIRS, MEAN, TOO_FEW, Interval, resample, resample_means
from cft.evaluation.retrieval import HEADLINE
from cft.evaluation.scores import METRICS, load_evaluation
from cft.job.run_folder import RunFolder, evaluation_name
from cft.model.contract import Contract
from cft.model.sources import ADAPTER_CONFIG, ADAPTER_FOLDER
from cft.system.errors import UserError, first_line
from cft.system.files import read_json, write_text
from cft.system.hub import may_be_repository
from cft.system.tables import Row, as_markdown

FILE_NAME = "README.md"
HUB = "hub"  # the source, in an evaluation's record, of sets that came from the hub
# Libraries that do without cft.
SENTENCE_TRANSFORMERS, ONNX = "sentence-transformers", "onnx"

# Enough for an interval's ends to a few hundredths; reports of studies take ten times as many.
_RESAMPLES = 1000
_ROW_OF_PROMPTS = "| prompt of the embedder | "
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def write_card(folder: Path, config: Config, data: dict) -> None:
    """Write a run's card, out of what lies in its folder.

    Args:
        folder: with contract, metrics and evaluations. config: of the training. data: the training's data.json.
    """
    contract = Contract.load(folder)
    scores: list[tuple[str, str, str]] = []  # of each evaluation, title, table and verdict
    found: set[str] = set()  # what was measured
    hub_results: dict[str, EvalResult] = {}  # by set: the hub takes one score a set, of several prompts the last one's
    for name, entry in sorted(read_json(folder / METRICS).items()):
        table = _scores(entry, _intervals(folder / RunFolder.EVALUATIONS / name))
        scores.append((f"{evaluation_name(name)}, {_prompt(entry['prompt'])}", as_markdown(table), _verdict(entry)))
        found |= {kind for kind in ("sets", "retrieval") if entry["after"].get(kind)}
        of_hub = entry.get("source") == HUB
        for set_name, score in entry["after"]["sets"].items():
            hub_results[set_name] = _result(set_name, score["spearman"], of_hub=of_hub)
        for set_name, measures in entry["after"].get("retrieval", {}).items():
            hub_results[f"{name}/{set_name}"] = _retrieval_result(set_name, measures[HEADLINE])
    card = ModelCard.from_template(
        _metadata(
            folder.name,
            contract,
            is_adapter=bool(config.lora.rank),
            datasets=[NLI_REPOSITORY] if config.data.source is DataSource.hub else None,
            eval_results=list(hub_results.values()),
        ),
        template_path=str(_TEMPLATE),
        base=contract.model if may_be_repository(contract.model) else config.model.name,
        rows=_noun(config),
        licence=config.model.license,
        version=__version__,
        library="cft",
        config=config,
        contract=contract,
        prompts_in_training=_words_of(config.prompt.in_training),
        prompts_of_embedder=_words_of(contract.prompts),
        data=data,
        scores=scores,
        found=found,
        steps=_steps(folder, config),
    )
    write_text(folder / FILE_NAME, card.content)


def write_merged_card(folder: Path, name: str, runs: Sequence[Path], record: dict) -> None:
    """Write the card of an embedder that was merged; it has no scores.

    Args:
        folder: with contract and weights. name: what the folder will be called. runs: that were merged. record: how.
    """
    contract = Contract.load(folder)
    paths = [RunFolder(run).file(RunFolder.CONFIG) for run in runs]
    model: dict[str, Any] = next((read_json(path)["model"] for path in paths if path.exists()), {})
    # Where this machine has the base model is nobody's business.
    base = contract.model if may_be_repository(contract.model) else model.get("name") or Path(contract.model).name
    card = ModelCard.from_template(
        _metadata(name, contract, is_adapter=(folder / ADAPTER_FOLDER / ADAPTER_CONFIG).exists()),
        template_path=str(_TEMPLATE),
        base=base,
        licence=model.get("license"),
        version=__version__,
        library="cft",
        contract=contract,
        prompts_of_embedder=_words_of(contract.prompts),
        merge=record,
    )
    write_text(folder / FILE_NAME, card.content)


def for_reader(card: str, *, library: str, place: str | None = None, prompts: Prompts | None = None) -> str:
    """A run's card for those who load it elsewhere: its section "Use" is written anew.

    Args:
        card: as it stands beside a run; other sections may have been edited.
        library: that the example is for, "sentence-transformers", "onnx" or "cft".
        place: the repository on the hub that it loads from; None for a folder.
        prompts: that the embedder has there; None for those of the run.

    Raises:
        UserError: if the card's metadata cannot be read.
    """
    before, heading, after = card.partition("## Use\n")
    next_heading = after.find("\n## ")
    if heading and next_heading >= 0:
        template = jinja2.Template(_TEMPLATE.read_text(encoding="utf-8"))
        usage = template.blocks["use"](template.new_context({"library": library, "place": place}))
        card = f"{before}{''.join(usage)}{after[next_heading + 1 :]}"
    if prompts:
        row = f"{_ROW_OF_PROMPTS}{_words_of(prompts)} |"
        card = re.sub(rf"^{re.escape(_ROW_OF_PROMPTS)}.*$", lambda _: row, card, flags=re.MULTILINE)
    if library not in (SENTENCE_TRANSFORMERS, ONNX):
        return card
    try:
        parsed = RepoCard(card)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"the metadata of the model card cannot be read ({first_line(error)})") from error
    parsed.data["library_name"] = library
    return parsed.content


def _verdict(entry: dict) -> str:
    """What may be said of the change, in a sentence; nothing where no score was compared."""
    change = entry.get("change")
    if not change:
        return ""
    interval = "" if change["verdict"] == TOO_FEW else f" [{change['low']:+.1f}, {change['high']:+.1f}]"
    return f"Change: {change['value']:+.2f}{interval}, {change['verdict']}."


def _words_of(prompts: Prompts) -> str:
    """The words around a text, by its role where that counts, in a table's cell."""
    cells = {role: "none" if prompts.of(role) == PLACEHOLDER else f"`{_in_cell(prompts.of(role))}`" for role in Role}
    if not prompts.differ:
        return cells[Role.text]
    return f"{cells[Role.query]} for queries, {cells[Role.document]} for documents, {cells[Role.text]} for other texts"


def _in_cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _prompt(template: str) -> str:
    return "no prompt" if template == PLACEHOLDER else f"prompt `{template}`"


def _steps(folder: Path, config: Config) -> str:
    """How long it was trained, in words; a folder of the weights of an earlier step has no record of the end."""
    finished = RunFolder(folder).finished()
    if finished is None:
        return f"{config.train.steps:,} at most"
    best = finished.best_step
    return f"{finished.steps:,}" + (f", the weights of step {best:,}" if best not in (None, finished.steps) else "")


def _noun(config: Config) -> str:
    """What the rows that were trained on are called."""
    if config.data.is_scored_alone:
        return "scored pairs"
    return "triplets" if config.data.source is not DataSource.files or config.data.negative_columns else "pairs"


def _metadata(
    name: str,
    contract: Contract,
    *,
    is_adapter: bool,
    datasets: list[str] | None = None,
    eval_results: list[EvalResult] | None = None,
) -> ModelCardData:
    on_hub = may_be_repository(contract.model) and contract.weights.startswith("commit:")
    return ModelCardData(
        model_name=name,
        library_name="peft" if is_adapter else "transformers",
        base_model=contract.model if on_hub else None,
        datasets=datasets,
        pipeline_tag="sentence-similarity",
        tags=["feature-extraction", "sentence-similarity", "text-embeddings", "cft"],
        eval_results=eval_results or None,
    )


def _result(name: str, score: float, *, of_hub: bool) -> EvalResult:
    hub_set = NINE_SETS.get(name) if of_hub else None
    return EvalResult(
        task_type="STS",
        dataset_type=hub_set.repository if hub_set else "other",
        dataset_name=name,
        dataset_config=(hub_set.subset or "default") if hub_set else None,
        dataset_split=hub_set.split if hub_set else None,
        dataset_revision=hub_set.revision if hub_set else None,
        metric_type="cosine_spearman",
        metric_value=round(score, 4),
    )


def _retrieval_result(name: str, score: float) -> EvalResult:
    return EvalResult(
        task_type="Retrieval",
        dataset_type="other",
        dataset_name=name,
        metric_type="ndcg_at_10",
        metric_value=round(score / 100, 6),
    )


def _intervals(folder: Path) -> dict[str, Interval]:
    """95% intervals of the scores, by set and over all; none for sets that are too small."""
    evaluation = load_evaluation(folder)
    if evaluation is None:
        return {}
    if evaluation.retrieval:
        by_set = evaluation.by_query
        drawn = resample_means([by_set], resamples=_RESAMPLES)
        return {name: drawn.interval(0, name) for name in drawn.names if len(by_set.get(name, ())) >= LEAST_PAIRS}
    large = [name for name in evaluation.scores if len(evaluation.cosines[name]) >= LEAST_PAIRS]
    if not large:
        return {}
    of_data = pairs.read(folder)
    samples = resample(
        [[{name: evaluation.cosines[name] for name in large}]],
        {name: of_data.scores[name] for name in large},
        {name: of_data.identity[name] for name in large},
        resamples=_RESAMPLES,
    )
    # The mean is over all sets: without the small ones it is another, whose interval is none of its.
    known = samples.names if len(large) == len(evaluation.scores) else large
    return {name: samples.interval(0, name) for name in known}


def _scores(entry: dict, intervals: dict[str, Interval]) -> list[Row]:
    """An evaluation of metrics.json as a table."""
    before, after = entry["before"], entry["after"]
    table: list[Row] = [("set", "pairs" if after["sets"] else "queries", "before", "after", "95% interval")]
    texts = {name: f"{interval.low:.1f} to {interval.high:.1f}" for name, interval in intervals.items()}
    for name, score in after["sets"].items():
        points = (f"{before['sets'][name]['spearman']:.2f}", f"{score['spearman']:.2f}")
        table.append((name, f"{score['pairs']:,}", *points, texts.get(name, "")))
    for name, found in after.get("retrieval", {}).items():
        points = (f"{before['retrieval'][name][HEADLINE]:.2f}", f"{found[HEADLINE]:.2f}")
        table.append((f"{name}, nDCG@10", f"{found['queries']:,}", *points, texts.get(name, "")))
    if len(after["sets"]) > 1:
        table.append(("mean over sets", "", f"{before['mean']:.2f}", f"{after['mean']:.2f}", texts.get(MEAN, "")))
    return table
