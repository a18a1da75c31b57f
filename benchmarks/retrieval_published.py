"""all-MiniLM-L6-v2 on SciFact and ArguAna in three ways, beside the scores that MTEB publishes; all must agree.

    python benchmarks/retrieval_published.py --beir FOLDER      # FOLDER/SciFact/corpus.jsonl ... in BEIR's layout

live      the job: `cft.run model=minilm train.steps=0 eval=retrieval`
exported  `cft.export` writes a folder, sentence-transformers embeds with it, and cft searches
mteb      the `mteb` package joins titles and texts, searches and scores, with the live embedder in `MtebEncoder`

The status is 1 if any two of them are further apart than 0.02.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.compose import compose_config
from cft.config.schema import Config
from cft.data.retrieval import RetrievalSet
from cft.deploy.mteb import MtebEncoder
from cft.evaluation.retrieval import evaluate_retrieval, load_retrieval
from cft.evaluation.vector_cache import CachedEncoder
from cft.job import runner
from cft.job.plan import RECIPE, make_plan
from cft.model.embedder import Embedder
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import read_arrays, write_arrays
from cft.system.tables import as_markdown, as_text

# x 100, of all-MiniLM-L6-v2 at revision 8b3219a92973c328a8e22fadcfa821b5dc75636a by mteb 1.12.75, as the repository
# embeddings-benchmark/results holds them.
PUBLISHED = {
    "SciFact": {"ndcg@10": 64.508, "recall@100": 92.5, "map@10": 59.593},
    "ArguAna": {"ndcg@10": 50.167, "recall@100": 97.724, "map@10": 41.165},
}
MEASURES = ("ndcg@10", "recall@100", "map@10")
TOLERANCE = 0.02
WAYS = ("live", "exported", "mteb")
BLOCK = 500  # texts that are embedded at a time: a killed command goes on behind the last of them

Scores = dict[str, float]  # x 100, by measure


class KeptVectors(Embedder):
    """An embedder that looks for vectors where the job left them: texts that MTEB makes otherwise are run."""

    gigabytes = 2.0

    def encode(self, texts: Iterable[str], **_: Any) -> Any:
        """As `Embedder.encode`."""
        plain = Embedder(self.model, self.backbone, self.contract)
        return CachedEncoder(plain, gigabytes=self.gigabytes, version=RECIPE).encode(texts)


def fill_cache(config: Config, sets: dict[str, RetrievalSet], embedder: Embedder) -> None:
    """Embed all texts as the job does, into the cache where it looks for them, block by block."""
    encoder = CachedEncoder(embedder, gigabytes=config.vector_cache_gb, version=RECIPE)
    texts = sorted({text for data in sets.values() for text in (*data.queries, *data.documents)}, key=len)
    for start in range(0, len(texts), BLOCK):
        encoder.encode(texts[start : start + BLOCK])
        print(f"\r{min(start + BLOCK, len(texts)):,} of {len(texts):,} texts embedded", end="", file=sys.stderr)
    print(file=sys.stderr)


def live(config: Config) -> dict[str, Scores]:
    """What the job's own record says."""
    runner.run(config)
    plan = make_plan(config)
    found = load_retrieval(plan.scores_folder(plan.base_folder))
    return {name: scores.means for name, scores in found.items()}


def exported(sets: dict[str, RetrievalSet], embedder: Embedder, kept: Path) -> dict[str, Scores]:
    """With sentence-transformers' vectors, out of a folder that `cft.export` wrote; blocks of them stay in `kept`."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        saved, written = Path(folder) / "saved", Path(folder) / "exported"
        embedder.save(saved)
        command = [sys.executable, "-m", "cft.export", f"run={saved}", str(written)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        model = SentenceTransformer(str(written), device="cpu")

    def block(texts: Sequence[str]) -> np.ndarray:
        path = kept / f"{digest([embedder.contract.facts, texts])}.npz"
        if not path.exists():
            write_arrays(path, {"vectors": model.encode(list(texts), show_progress_bar=True)})
        return read_arrays(path)["vectors"]

    def vectors(texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([block(texts[start : start + BLOCK]) for start in range(0, len(texts), BLOCK)])

    return {name: evaluate_retrieval(data, vectors, vectors).means for name, data in sets.items()}


def by_mteb(config: Config, sets: dict[str, RetrievalSet], embedder: Embedder) -> dict[str, Scores]:
    """MTEB's own tasks of these names, their data read from the files as they are."""
    import mteb
    from mteb.cache import ResultCache

    kept = KeptVectors(embedder.model, embedder.backbone, embedder.contract)
    kept.gigabytes = config.vector_cache_gb
    assert config.eval.folder
    found: dict[str, Scores] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, data in sets.items():
            task = task_of(Path(config.eval.folder) / name, data, config.eval.split)
            result = mteb.evaluate(
                MtebEncoder(kept), tasks=[task], cache=ResultCache(cache), overwrite_strategy="always"
            )
            scores = result.task_results[0].scores["test"][0]
            found[name] = {measure: 100 * scores[measure.replace("@", "_at_")] for measure in MEASURES}
    return found


def task_of(folder: Path, data: RetrievalSet, split: str) -> Any:
    """MTEB's task of a set's name, with the files of its folder; `data` says which queries are asked, no more."""
    import mteb
    from datasets import Dataset

    task: Any = mteb.get_task(data.name)
    relevant: dict[str, dict[str, int]] = {}
    for query, document, grade in judgements(folder / "qrels", split):
        relevant.setdefault(query, {})[document] = grade
    judged = set(data.query_ids)
    corpus = [
        {"id": row["_id"], "title": row.get("title") or "", "text": row["text"]} for row in rows(folder, "corpus")
    ]
    queries = [{"id": row["_id"], "text": row["text"]} for row in rows(folder, "queries") if row["_id"] in judged]
    task.dataset = {
        "default": {
            "test": {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": {query: grades for query, grades in relevant.items() if query in judged},
                "top_ranked": None,
            }
        }
    }
    task.data_loaded = True
    return task


def lines(folder: Path, name: str) -> Iterator[str]:
    """Lines of a file, gzipped or not; read here once more, so that cft's readers are checked too."""
    path = folder / name
    if path.exists():
        yield from path.read_text(encoding="utf-8").splitlines()
        return
    with gzip.open(folder / f"{name}.gz", "rt", encoding="utf-8") as stream:
        yield from stream


def rows(folder: Path, stem: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file."""
    return (json.loads(line) for line in lines(folder, f"{stem}.jsonl") if line.strip())


def judgements(folder: Path, split: str) -> Iterator[tuple[str, str, int]]:
    """Query, document and grade of each row below the header."""
    every = lines(folder, f"{split}.tsv")
    next(every)
    for line in every:
        query, document, grade = line.rstrip("\n").split("\t")
        yield query, document, int(grade)


def table_of(found: dict[str, dict[str, Scores]], published: dict[str, Scores]) -> tuple[list[tuple[str, ...]], bool]:
    """A row for each set and measure, and whether all of them agree; `found` is by way, then by set."""
    table: list[tuple[str, ...]] = [("set", "measure", "published", *WAYS, "largest difference", "verdict")]
    agree = True
    for name in found["live"]:
        for measure in MEASURES:
            values = [found[way][name][measure] for way in WAYS]
            stated = published.get(name, {}).get(measure)
            every = [*values, *([] if stated is None else [stated])]
            apart = max(every) - min(every)
            within = apart <= TOLERANCE
            agree &= within
            shown = "" if stated is None else f"{stated:.3f}"
            verdict = "equal" if within else "NOT EQUAL"
            table.append((name, measure, shown, *(f"{value:.3f}" for value in values), f"{apart:.4f}", verdict))
    return table, agree


def compare(overrides: list[str], folder: Path) -> dict[str, dict[str, Scores]]:
    """Scores by way, set and measure."""
    config = compose_config(
        ["train.steps=0", "eval=retrieval", f"eval.folder={folder}", "logger=none", "train.precision=fp32", *overrides]
    )
    plan = make_plan(config)
    embedder = Embedder.base(config.model)
    fill_cache(config, plan.retrieval, embedder)
    found = {"live": live(config)}
    found["mteb"] = by_mteb(config, plan.retrieval, embedder)
    found["exported"] = exported(plan.retrieval, embedder, plan.outputs / "retrieval-published")
    return found


def main() -> int:
    """Print the table; the status says whether all scores agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beir", required=True, type=Path, help="folder of the sets in BEIR's layout")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("overrides", nargs="*", help="further settings of the job, such as eval.sets='[SciFact]'")
    arguments = parser.parse_args()
    try:
        found = compare(["model=minilm", *arguments.overrides], arguments.beir.expanduser())
    except UserError as error:
        print(f"cft: {error}", file=sys.stderr)
        return 2
    table, agree = table_of(found, PUBLISHED)
    print(as_markdown(table) if arguments.markdown else as_text(table))
    print(f"all agree to {TOLERANCE}" if agree else f"NOT all agree to {TOLERANCE}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
