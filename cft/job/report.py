"""A job's report: tables and pictures of its scores, the run's summary, and what to do next."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.schema import Config, EvalSource
from cft.data.retrieval import RetrievalSet
from cft.evaluation import pairs
from cft.evaluation.bootstrap import TOO_FEW, Difference
from cft.evaluation.retrieval import MEASURE_NAMES, MEASURES, RetrievalScores
from cft.evaluation.scores import Evaluation
from cft.job.card import HUB, write_card
from cft.job.plan import Plan
from cft.job.run_folder import RunFolder
from cft.job.tracking import Result
from cft.job.verdicts import MEAN_ROW, Baseline, Comparison, Shortened, compare, shortened_table
from cft.system.files import read_json, sealed, write_json, write_text
from cft.system.overrides import shell_word
from cft.system.tables import Row, as_markdown, as_text
from cft.system.text import counted, shorten

log = logging.getLogger(__name__)

# A training that ends above this share of the loss of guessing has learned next to nothing.
_GUESSED = 0.95
# One whose loss, the mean of so many steps at least, rises by this share of that of guessing has lost what was known;
# by less if it ends at guessing.
_RISING_STEPS, _RISEN, _RISEN_TO_GUESSING = 5, 0.5, 0.2

# Queries that find their documents this well without a training can hardly show one's gain.
_NEARLY_ALL = 95.0

_NOT_SCORED = "nothing was scored (eval=none)"

# Queries that are shown, and characters of each text.
_EXAMPLES, _EXAMPLE_LENGTH = 3, 100

# Beside the scores of eval=docstrings: all documents, a line each, to be searched by cft.similar.
DOCUMENTS = "documents.txt"
_QUESTION = "how do I copy a file"


def report_base(plan: Plan, before: Evaluation) -> None:
    """Print and write the scores of what a training would start from."""
    folder = plan.scores_folder(plan.base_folder)
    name = plan.start_name
    table = scores(before)
    _log_table(plan, table, f"{name} alone (train.steps=0)")
    sentences = _circumstances(plan, before)
    for sentence in sentences:
        log.info("%s\n", sentence)
    parts = [f"# {name} on {plan.config.eval.name}", as_markdown(table), *sentences]
    write_text(folder / "table.md", "\n\n".join(parts) + "\n")
    _log_files(folder, [])


def report_training(
    plan: Plan, before: Evaluation, after: Evaluation, baseline: Baseline | None, shortened: Shortened
) -> Result:
    """Print and write the before/after table, its pictures, the run's summary and its model card."""
    config, folder = plan.config, plan.scores_folder(plan.result)
    data = pairs.read(folder)
    compared = compare(before, after, data, plan.retrieval, baseline)
    title = f"{config.model.name} on {config.data.name}, before and after {_steps(plan)} steps"
    scored = len(compared.table) > 1
    if scored:
        _log_table(plan, compared.table, title)
    else:
        log.info("\n%s: %s\n", title, _NOT_SCORED)
    sentences = [*compared.sentences, *_circumstances(plan, before), *_odd_losses(plan)]
    for sentence in sentences:
        log.info("%s\n", sentence)
    parts = [f"# {title}", as_markdown(compared.table) if scored else _NOT_SCORED, *sentences]
    if plan.retrieval:
        shown = examples(plan.retrieval, before, after)
        log.info("%s\n", shown)
        parts += [as_markdown(all_measures(before, after)), "\n".join(f"    {line}" for line in shown.splitlines())]
    if shortened.after:
        of_first = shortened_table(before, after, shortened, data, plan.retrieval)
        log.info("the first numbers of vectors alone (dimensions)\n\n%s\n", as_text(of_first))
        parts += ["The first numbers of vectors alone:", as_markdown(of_first)]
    write_text(folder / "table.md", "\n\n".join(parts) + "\n")
    if config.eval.source is EvalSource.docstrings:
        documents = (text for each in plan.retrieval.values() for text in each.documents)
        write_text(folder / DOCUMENTS, "".join(f"{text}\n" for text in documents))
    _write_summary(plan, before, after, compared, shortened)
    write_card(plan.result, config, read_json(plan.training.file(RunFolder.DATA)))
    from cft.job import figures  # here, as the import of its library would keep the first step waiting

    pictures = figures.save(figures.scores(before, after), folder, "scores") if before.scores else []
    if plan.retrieval:
        pictures += figures.save(figures.recall(before, after, baseline), folder, "recall")
    if shortened.after:
        pictures += figures.save(figures.dimensions(before, after, shortened), folder, "dimensions")
    if len(after.negatives):
        pictures += figures.save(figures.similarities(before, after), folder, "similarities")
    if plan.training.is_finished:
        pictures.append(plan.training.file(RunFolder.CURVE))
    _log_files(folder, pictures)
    log.info("  embedder  %s (adapter/, contract.json; README.md is its model card)", plan.result)
    return Result(
        scores=_by_name(before, after, baseline)
        | {f"after/mean/{width}": found.headline for width, found in shortened.after.items()},
        table=compared.table,
        pictures={path.stem: path for path in pictures if path.suffix == ".png"},
        step=_steps(plan),
        adapter=plan.scored.adapter,
        outcome=_outcome(plan, before, after, compared),
    )


def _steps(plan: Plan) -> int:
    """The steps behind the weights that were scored, which a development score may have chosen."""
    finished = plan.training.finished() if plan.stop_at == plan.steps else None
    return (finished.best_step or finished.steps) if finished else plan.stop_at


def _outcome(plan: Plan, before: Evaluation, after: Evaluation, compared: Comparison) -> str:
    """What came out, in one line."""
    if compared.change is None:
        return f"trained, not scored ({plan.result})"
    change, unit = compared.change, "nDCG@10" if plan.retrieval else "mean"
    found = change.verdict_on("queries" if plan.retrieval else "pairs")
    verdict = found if change.verdict == TOO_FEW else f"{change} {found}"
    line = f"{unit} {before.headline:.2f} before, {after.headline:.2f} after, {verdict}"
    return f"{line} ({plan.result})"


def _odd_losses(plan: Plan) -> list[str]:
    """That the training lost what it had learned, or ended where it began, at the loss of guessing, if it did."""
    steps = [row for row in plan.training.history() if row["event"] == "step"][: plan.stop_at]
    if not steps or "candidates" not in steps[-1]:  # of scored pairs alone
        return []
    candidates = float(np.mean([row["candidates"] for row in steps[-max(1, len(steps) // 10) :]]))
    return odd_losses([row["loss"] for row in steps], candidates, plan.config)


def odd_losses(losses: Sequence[float], candidates: float, config: Config) -> list[str]:
    """What is odd about the losses of a training's steps, with what to do, in a sentence; none if nothing is.

    Args:
        losses: InfoNCE's, in nats, of every step. candidates: texts that an anchor chooses from. config: the job.
    """
    guessed, tenth = float(np.log(max(candidates, 1.0))), max(1, len(losses) // 10)
    loss = float(np.mean(losses[-tenth:]))
    of_guessing = f"guessing among its {candidates:.0f} candidates has {guessed:.2f}"
    size = max(tenth, _RISING_STEPS)
    if len(losses) >= 2 * size:
        means = np.convolve(losses, np.full(size, 1 / size), mode="valid")
        lowest = int(means.argmin())
        rise = (means[-1] - means[lowest]) / max(guessed, 1e-9)
        if rise > _RISEN or (loss >= _GUESSED * guessed and rise > _RISEN_TO_GUESSING):
            ratio = f", or lora.lr_ratio={config.lora.lr_ratio:g}" if config.lora.lr_ratio != 1 else ""
            return [
                f"the loss rose from {means[lowest]:.2f} (steps {lowest + 1} to {lowest + size}) to {loss:.2f} at the "
                f"end, and {of_guessing}: the training lost what was known, as steps were too large; lower "
                f"lr={config.lr:g}{ratio}"
            ]
    # A teacher that is sure of nothing leaves the loss near that of guessing even where all was learned.
    if loss < _GUESSED * guessed or config.distill.model is not None:
        return []
    return [
        f"the training ended at a loss of {loss:.2f}, and {of_guessing}: it has learned next to nothing; raise lr or "
        "train.steps"
    ]


def _by_name(before: Evaluation, after: Evaluation, baseline: Baseline | None) -> dict[str, float]:
    sides = {"before": before, "after": after, **({baseline.name: baseline.evaluation} if baseline else {})}
    scores = {f"{side}/{name}": score for side, result in sides.items() for name, score in result.scores.items()}
    for side, result in sides.items():
        for name, found in result.retrieval.items():
            scores |= {f"{side}/{name}/{measure}": value for measure, value in found.means.items()}
    for side, result in sides.items():
        if result.by_set:  # without sets there is no mean
            scores[f"{side}/mean"] = result.headline
        if result.triplet_accuracy is not None:
            scores[f"{side}/triplets_in_order"] = 100 * result.triplet_accuracy
    return scores


def scores(evaluation: Evaluation) -> list[Row]:
    """The table of one evaluation, its header first."""
    if evaluation.retrieval:
        found = evaluation.retrieval
        return [("set", "queries", *MEASURE_NAMES.values()), *(_row_of(name, each) for name, each in found.items())]
    table: list[Row] = [("set", "pairs", "score")]
    table += [(name, str(len(evaluation.cosines[name])), f"{score:.2f}") for name, score in evaluation.scores.items()]
    if len(evaluation.scores) > 1:
        table.append((MEAN_ROW, "", _overall(evaluation)))
    return table


def _row_of(name: str, found: RetrievalScores) -> Row:
    return name, f"{len(found.first):,}", *(f"{found.means[key]:.2f}" for key in MEASURES)


def all_measures(before: Evaluation, after: Evaluation) -> list[Row]:
    """Every measure of every set before and after, the header first."""
    table: list[Row] = [("set", "measure", "before", "after", "change")]
    for name, found in after.retrieval.items():
        for key, value in found.means.items():
            table.append((name, MEASURE_NAMES[key], *_change(before.retrieval[name].means[key], value)))
    return table


def examples(sets: Mapping[str, RetrievalSet], before: Evaluation, after: Evaluation) -> str:
    """Three queries with what came first before and what comes first now, those first for which that is another.

    Of several sets, the first three have one or more each.
    """
    shown = list(sets.values())[:_EXAMPLES]
    parts = [_examples(data, before, after, _EXAMPLES // len(shown), several=len(sets) > 1) for data in shown]
    return "\n\n".join(parts)


def _examples(data: RetrievalSet, before: Evaluation, after: Evaluation, count: int, *, several: bool) -> str:
    sides = {"before": before.retrieval[data.name], "now": after.retrieval[data.name]}
    changed = np.flatnonzero(sides["before"].first != sides["now"].first)
    rest = np.setdiff1d(np.arange(len(data.queries)), changed)
    places = [*changed[:: max(1, len(changed) // count)][:count], *rest][:count]
    finding = f"{counted(len(changed), 'query', 'queries')} of {len(data.queries):,}"
    where = f"{data.name}: " if several else ""
    lines = [f"{where}{finding} found another document first than before; examples, those first:", ""]
    for place in map(int, places):
        lines.append(f"query   {shorten(data.queries[place], _EXAMPLE_LENGTH)}")
        for side, found in sides.items():
            first = int(found.first[place])
            right = first >= 0 and data.judgements[place].get(data.document_ids[first], 0) > 0
            text = shorten(data.documents[first], _EXAMPLE_LENGTH) if first >= 0 else "nothing"
            lines.append(f"{side.ljust(7)} {'right' if right else 'wrong'}: {text}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _overall(evaluation: Evaluation) -> str:
    return f"{evaluation.mean:.2f} ± {evaluation.deviation:.2f}"


def _change(before: float, after: float) -> Row:
    return f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"


def _write_summary(
    plan: Plan, before: Evaluation, after: Evaluation, compared: Comparison, shortened: Shortened
) -> None:
    """Enter one evaluation into the run's summary, beside those under other prompts or on other data."""
    path = plan.scored.file(RunFolder.SCORES)
    summary = read_json(path) if path.exists() else {}
    prompts = plan.config.prompt.in_evaluation
    from_hub = plan.config.eval.source is EvalSource.sts and plan.config.eval.folder is None
    summary[plan.scores_folder(plan.result).name] = {
        "source": HUB if from_hub else "elsewhere",
        "prompt": str(prompts) if plan.retrieval and prompts.differ else prompts.text,  # scored pairs have no roles
        "before": before.record(),
        "after": after.record(),
        **({"change": _plain(compared.change)} if compared.change else {}),
        **({"dimensions": _of_first_numbers(shortened)} if shortened.after else {}),
        **({"beside": {compared.baseline: _plain(compared.lead)}} if compared.lead else {}),
    }
    write_json(path, {name: sealed(entry) for name, entry in summary.items()})


def _of_first_numbers(shortened: Shortened) -> dict[str, dict[str, float]]:
    """Mean scores before and after by how many numbers were taken."""
    return {
        str(width): {"before": shortened.before[width].headline, "after": found.headline}
        for width, found in shortened.after.items()
    }


def _plain(difference: Difference) -> dict[str, Any]:
    """A difference as plain data."""
    return {"value": difference.value, "low": difference.low, "high": difference.high, "verdict": difference.verdict}


def _circumstances(plan: Plan, before: Evaluation) -> list[str]:
    """What the numbers of queries and documents have to be read with."""
    found = []
    config = plan.config
    if config.train.steps and config.baseline.model == config.model and not plan.start.adapter and before.by_set:
        found.append(f"before is {config.model.name} as it was published, which is the baseline too")
    if plan.retrieval and before.headline >= _NEARLY_ALL:
        found.append(
            f"without this training queries nearly always find their documents ({before.headline:.2f} of 100): such "
            "rows can hardly show a gain; more documents (eval.documents) or harder questions could"
        )
    return found


def _among(plan: Plan) -> str:
    counts = ", ".join(f"{len(each.documents):,}" for each in plan.retrieval.values())
    return f", among {counts} documents" if counts else ""


def _log_table(plan: Plan, table: list[Row], title: str) -> None:
    unit = "nDCG@10" if plan.retrieval else "Spearman"
    log.info("\n%s (%s x 100, prompt %s%s)\n\n%s\n", title, unit, plan.config.prompt.in_evaluation,
             _among(plan), as_text(table))  # fmt: skip


def _log_files(folder: Path, pictures: list[Path]) -> None:
    """Name the table and pictures that were written."""
    lines = ["written:", f"  table     {folder / 'table.md'}"]
    lines += [f"  picture   {path}" for path in pictures if path.suffix == ".png"]
    log.info("\n".join(lines))


def say_next(plan: Plan) -> None:
    """Say what to do with the embedder or, after the demo, what to try on real text."""
    if plan.config.eval.source is EvalSource.docstrings:
        documents = plan.scores_folder(plan.result) / DOCUMENTS
        words = (f"run={plan.result}", _QUESTION, str(documents))
        log.info("next: search the standard library, python -m cft.similar %s", " ".join(map(shell_word, words)))
    else:
        words = (f"run={plan.result}", "a query", "TEXTS.txt")
        log.info("next: search texts of your own, python -m cft.similar %s", " ".join(map(shell_word, words)))
        log.info('      from cft import Embedder; Embedder.load("%s").encode(["a text"])', plan.result)
