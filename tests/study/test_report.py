"""Reports of the smoke studies: the paper's numbers beside ours, gaps and stale cells, all the formats, the page."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cft.evaluation import pairs
from cft.evaluation.bootstrap import MEAN, resample
from cft.evaluation.scores import COSINES, METRICS, load_evaluation
from cft.study import findings, pack, plan, report, sections, spec
from cft.study.document import Document, Heading, Picture, Table, Text, to_html, to_markdown, to_text
from cft.study.findings import collect
from cft.system.errors import UserError
from cft.system.files import read_arrays, read_json, write_arrays, write_record


def test_table_1_says_the_papers_configuration(tmp_path):
    document, _ = report.write(["table1"], "paper", [f"outputs={tmp_path}"])
    (table,) = document.tables()
    differing = [row[1] for row in table.rows[1:] if row[-1] != "same"]
    # the precision is left open, and is bf16 on a GPU that has it
    assert differing == ["train.precision"]
    assert len(table.rows) == 19


def test_a_report_is_written_in_every_format_and_holds_the_papers_numbers(drawn_in_full, paper, tmp_path):
    document, page = report.write(["table4"], "smoke", [f"outputs={paper.outputs}"])
    folder = page.parent
    with (folder / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["cell"] for row in rows] == ["lr 5e-3", "lr 5e-4", "lr 5e-5"]
    assert rows[1]["paper"] == "82.41 ± 5.01"
    here = float(rows[1]["mean over sets"].split()[0])
    assert float(rows[1]["difference"]) == pytest.approx(here - 82.41, abs=0.011)
    assert r"82.41 $\pm$ 5.01" in (folder / "scores.tex").read_text()
    assert "| lr 5e-4 |" in (folder / "report.md").read_text()
    assert (folder / "rates.svg").exists() and (folder / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert "not distinguishable" in report.render(document, "text")
    assert list(csv.reader(io.StringIO(report.render(document, "csv"))))[0][0] == "cell"


def test_all_reports_make_one_page_that_needs_nothing_else(drawn_in_full, paper):
    names = ["table1", *paper.studies]
    _, page = report.write(names, "smoke", [f"outputs={paper.outputs}"])
    text = page.read_text()
    assert page == paper.outputs / "studies" / "report-smoke.html"
    for name in ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 1"):
        assert f"<h2>{name}: " in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text), "nothing is fetched"
    assert "<script" not in text
    assert text.count("data:image/svg+xml;base64,") == 11  # sets 3, sphere 2, similarities 3, rates, overall, curve


def test_the_verdict_on_a_cell_is_about_its_cosines(paper):
    found = collect(paper.studies["table6"], [], resamples=50)
    eq2, eq1 = found.cells
    (comparison,) = found.comparisons
    assert comparison.differences["captions"].value == pytest.approx(eq1.overall[0] - eq2.overall[0], abs=1e-4)
    assert eq1.intervals[MEAN].value == pytest.approx(eq1.overall[0], abs=1e-4)
    assert eq1.intervals[MEAN].low < eq1.overall[0] < eq1.intervals[MEAN].high
    told = json.loads((plan.study_folder(paper.outputs, "table6-smoke") / findings.FILE_NAME).read_text())
    assert told["resamples"] == 50
    collect(paper.studies["table6"], [])  # leave the usual number behind


def copied(paper, name: str, outputs):
    """A study and its results in a folder of their own."""
    shutil.copytree(paper.outputs, outputs)
    study = pack.moved(paper.studies[name], outputs)
    study.save(plan.study_folder(outputs, study.name))
    return study


def test_verdicts_are_made_anew_when_any_file_or_the_method_behind_them_changes(paper, tmp_path, monkeypatch):
    study = copied(paper, "table6", tmp_path / "copy")
    made = []
    monkeypatch.setattr(findings, "resample", lambda *a, **k: made.append(1) or resample(*a, **k))

    def times_made() -> int:
        made.clear()
        collect(study, [], resamples=20)
        return len(made)

    assert (times_made(), times_made()) == (1, 0)
    folders = {folder for cell in collect(study, [], resamples=20).cells for folder in cell.folders}
    assert len(folders) == 2
    for folder in folders:
        arrays = read_arrays(folder / COSINES)
        write_arrays(folder / COSINES, {name: array[::-1] for name, array in arrays.items()})
        assert (times_made(), times_made()) == (1, 0), "the cosines are others"
        record = read_json(folder / METRICS)
        write_record(folder / METRICS, record | {"seconds": 1e6})
        assert (times_made(), times_made()) == (1, 0), "the scores' record is another"
    for folder in folders:
        kept = read_arrays(folder / pairs.FILE_NAME)
        write_arrays(folder / pairs.FILE_NAME, {name: array + 0 * array for name, array in kept.items()} | {
            name: array[::-1] for name, array in kept.items() if name.startswith("scores/")
        })  # fmt: skip
    assert (times_made(), times_made()) == (1, 0), "the human scores are others"
    for constant in ("METHOD", "LEVEL", "LEAST_PAIRS"):
        monkeypatch.setattr(findings, constant, getattr(findings, constant) * 1.01)
        assert (times_made(), times_made()) == (1, 0), f"{constant} is another"


def test_verdicts_that_were_changed_or_damaged_are_worked_out_again(paper, tmp_path, caplog):
    study = copied(paper, "table6", tmp_path / "copy")
    right = collect(study, [], resamples=20)
    path = plan.study_folder(study.outputs, study.name) / findings.FILE_NAME
    kept = path.read_text()
    flattered = json.loads(kept)
    flattered["comparisons"][0]["differences"]["captions"] |= {"value": 9.9, "corrected": 0.0}
    for changed in (json.dumps(flattered), kept[:-40], ""):
        path.write_text(changed)
        again = collect(study, [], resamples=20)
        assert (again.comparisons, again.cells[0].intervals) == (right.comparisons, right.cells[0].intervals)
        assert f"{path} is damaged, or was changed after cft wrote it" in caplog.text and path.read_text() == kept
        caplog.clear()


def test_a_report_says_on_how_few_pairs_and_trainings_its_verdicts_stand(paper, tmp_path):
    found = collect(paper.studies["table6"], [], resamples=20)
    text = to_text(Document("t", sections.blocks(found, tmp_path)))
    assert "Differences are the first minus the second." in text
    assert f"The verdicts stand on {found.distinct} different pairs" in text
    assert "one training a cell" in text and "Below 10 different pairs there is no verdict" in text
    few = {name: replace(each, pairs=3) for name, each in found.comparisons[0].differences.items()}
    found = replace(found, comparisons=[replace(found.comparisons[0], differences=few)])
    text = to_text(Document("t", sections.blocks(found, tmp_path)))
    assert "no verdict (fewer than 10 pairs) on the mean over sets" in text
    assert "scores higher" not in text and "scores lower" not in text
    collect(paper.studies["table6"], [])  # leave the usual number behind


def test_missing_failed_and_stale_cells_are_marked(paper, tmp_path):
    outputs = tmp_path / "copy"
    shutil.copytree(paper.outputs, outputs)
    study = replace(paper.studies["table4"], runs={
        name: replace(config, outputs=str(outputs)) for name, config in paper.studies["table4"].runs.items()
    })  # fmt: skip
    study.save(plan.study_folder(outputs, study.name))
    first, second, third = (names[0] for names in study.cells.values())
    plan.state_file(outputs, first).unlink()
    plan.note_failed(outputs, second, "the disk is full")
    found = collect(study, ["lr 5e-5"], resamples=20)
    table = sections.scores_by_cell(found)
    assert [row[1].split(" [")[0].split()[0] for row in table[1:3]] == ["missing", "failed"]
    assert table[3][1].endswith("(stale)")
    text = to_text(Document("t", sections.blocks(found, tmp_path)))
    assert "failed: the disk is full" in text and "lr 5e-5: stale" in text
    shutil.rmtree(outputs / plan.state_of(outputs, third).scores)
    assert [cell.status for cell in collect(study, []).cells][2] == "missing", "the results are gone"


def test_a_study_that_was_never_started_is_all_missing(tmp_path):
    document, _ = report.write(["table5"], "smoke", [f"outputs={tmp_path}"])
    (table,) = document.tables()
    assert {row[1] for row in table.rows[1:]} == {"missing"}
    document, _ = report.write(["table6"], "smoke", [f"outputs={tmp_path}"])
    (table,) = document.tables()
    assert table.rows[1] == ("STS12", "", "missing", "75.49", "—", "missing", "76.38", "—")
    assert len(table.rows) == 11, "the paper's nine sets and their mean"


def evaluation_folder(folder, cosines, scores, texts):
    from cft.data.records import ScoredPair
    from cft.evaluation.scores import Evaluation

    sets = {name: [ScoredPair(*texts[name][i], s) for i, s in enumerate(values)] for name, values in scores.items()}
    pairs.write_once(folder, sets, None)
    return Evaluation({}, cosines, np.empty(0), np.empty(0)), sets


def test_equal_pairs_have_one_number_whatever_their_order_case_and_blanks():
    from cft.data.records import ScoredPair, Triplet
    from cft.data.training_data import TrainingData

    sets = {
        "a": [ScoredPair("A man runs.", "He sits", 1), ScoredPair("x", "y", 2)],
        "b": [ScoredPair("he sits", "a man  runs", 3), ScoredPair("x", "z", 2)],
    }
    data = TrainingData([Triplet("He SITS!", "something", ("X",))], [Triplet("y", "y", ())], [], content="", skipped=0)
    found = pairs.describe(sets, data)
    assert found.identity["a"][0] == found.identity["b"][0]
    assert len({*found.identity["a"].tolist(), *found.identity["b"].tolist()}) == 3
    assert found.seen["a"].tolist() == [1, 1] and found.seen["b"].tolist() == [1, 1]
    assert pairs.describe(sets, None).seen is None


def test_the_overlap_audit_counts_and_scores_without_what_overlaps(paper):
    scores = {"a": np.array([1.0, 2.0, 3.0, 4.0]), "b": np.array([1.0, 2.0, 3.0])}
    identity = {"a": np.array([0, 1, 2, 3]), "b": np.array([0, 4, 5])}
    seen = {"a": np.array([0, 0, 1, 0]), "b": np.array([2, 0, 0])}
    cosines = {"a": np.array([0.1, 0.2, 0.0, 0.4]), "b": np.array([0.9, 0.2, 0.3])}
    cell = collect(paper.studies["table6"], []).cells[0]
    cell = replace(cell, by_seed=[replace(cell.by_seed[0], cosines=cosines, scores={"a": 40.0, "b": -50.0})])
    data = pairs.Pairs(scores, identity, seen)
    audit = findings._overlap([cell], {"x": data}, data)
    assert audit.sets["a"] == findings.SetOverlap(pairs=4, shared=1, one_seen=1, both_seen=0)
    assert audit.sets["b"] == findings.SetOverlap(pairs=3, shared=1, one_seen=0, both_seen=1)
    mean, unseen, once = audit.scores[cell.cell.name]
    # without seen pairs both sets are in perfect order; once: "a" whole (Spearman 0.4), "b" without its first pair
    assert (mean, unseen, once) == pytest.approx((-5.0, 100.0, 70.0))


def test_each_cell_is_audited_by_what_it_was_itself_trained_on(paper):
    scores = {"a": np.array([1.0, 2.0, 3.0, 4.0])}
    identity = {"a": np.arange(4)}
    cosines = {"a": np.array([0.1, 0.2, 0.0, 0.4])}  # without the third pair in perfect order
    found = collect(paper.studies["table6"], []).cells[0]
    cells = [
        replace(
            found,
            cell=replace(found.cell, name=name),
            by_seed=[replace(found.by_seed[0], cosines=cosines, scores={"a": 40.0})],
        )
        for name in ("third", "first", "untrained")
    ]
    third, first = ({"a": np.array(seen)} for seen in ([0, 0, 1, 0], [2, 0, 0, 0]))
    data = {
        name: pairs.Pairs(scores, identity, seen)
        for name, seen in (("third", third), ("first", first), ("untrained", None))
    }
    for order in (cells, cells[::-1]):
        audit = findings._overlap(order, data, data["third"])
        by_cell = {name: unseen for name, (_, unseen, _) in audit.scores.items()}
        assert by_cell == {"third": pytest.approx(100), "first": pytest.approx(50), "untrained": pytest.approx(100)}
        assert audit.sets["a"] == findings.SetOverlap(pairs=4, shared=0, one_seen=1, both_seen=1) and audit.differs
    alike = findings._overlap(cells[:1], {"third": data["third"]}, data["third"])
    assert not alike.differs and alike.sets["a"].both_seen == 0


def test_a_mean_that_lacks_sets_says_over_how_many_it_is(paper):
    scores, identity = {name: np.arange(4.0) for name in "ab"}, {"a": np.arange(4), "b": np.arange(4, 8)}
    found = collect(paper.studies["table6"], []).cells[0]
    of_both = replace(
        found.by_seed[0], cosines={"a": np.arange(4.0), "b": -np.arange(4.0)}, scores={"a": 100.0, "b": -100.0}
    )
    cells = [replace(found, cell=replace(found.cell, name=name), by_seed=[of_both]) for name in ("none", "all of b")]
    seen = [{"a": np.zeros(4), "b": np.full(4, of_b)} for of_b in (0, 2)]
    data = {cell.name: pairs.Pairs(scores, identity, of_cell) for cell, of_cell in zip(cells, seen, strict=True)}
    audit = findings._overlap(cells, data, data["none"])
    rows = sections.overlap_by_cell(findings.Findings(paper.studies["table6"], cells, {"a": 4, "b": 4}, overlap=audit))
    assert rows[1:] == [("none", "0.00", "0.00", "0.00"), ("all of b", "0.00", "100.00 (1 of 2 sets)", "0.00")]


def test_a_mean_without_any_pair_is_none():
    cell = SimpleNamespace(by_seed=[SimpleNamespace(cosines={"a": np.arange(4.0)})])
    scores, nothing = {"a": np.arange(4.0)}, {"a": np.zeros(4, dtype=bool)}
    assert findings._mean_on(cell, scores, {"a": ~nothing["a"]}) == pytest.approx(100)
    assert findings._mean_on(cell, scores, nothing) is None


def test_cells_scored_on_different_pairs_are_not_compared(paper):
    study = paper.studies["table6"]
    other = pairs.Pairs({"x": np.ones(3)}, {"x": np.arange(3)}, None)
    with pytest.raises(UserError, match="'one' and 'two' were scored on different pairs"):
        findings._require_same_pairs({"one": other, "two": replace(other, scores={"x": np.zeros(3)})}, other)
    assert study.runs


def test_text_is_escaped_on_the_page_and_in_latex(tmp_path):
    (tmp_path / "x.svg").write_text("<svg/>")
    nasty = "<script>alert(1)</script> & 50%_$"
    document = Document(nasty, [
        Heading(nasty), Text([nasty]), Table("t", nasty, [("a", "b"), (nasty, "higher")]), Picture(nasty, tmp_path / "x.svg")
    ])  # fmt: skip
    page = to_html(document)
    assert "<script" not in page and page.count("&lt;script&gt;") == 7
    assert '<td class="higher">higher</td>' in page
    assert r"\& 50\%\_\$" in report.render(document, "latex")
    assert "![" in to_markdown(document, tmp_path) and "(x.png)" in to_markdown(document, tmp_path)


def test_seeds_give_a_mean_with_their_spread(paper):
    found = collect(paper.studies["table6"], [], resamples=20)
    one, other = found.cells[0].by_seed[0], found.cells[1].by_seed[0]
    cell = replace(found.cells[0], by_seed=[one, other])
    assert cell.overall == [one.mean, other.mean]
    spread = np.std([one.mean, other.mean], ddof=1)
    assert f"(seeds ± {spread:.2f})" in sections._score(cell, MEAN)
    assert "seeds" not in sections._scores_caption(found)
    assert "over 2 seeds" in sections._scores_caption(replace(found, cells=[cell, found.cells[1]]))


@pytest.mark.parametrize("name", spec.available())
@pytest.mark.parametrize("scale", spec.scales())
def test_every_experiment_can_be_laid_out_at_every_scale(name, scale):
    from cft.config.compose import check_overrides

    wanted = dict.fromkeys(("small", "study"), ["data.train", "data.dev", "eval.folder"])
    wanted |= {"nli": ["data.train", "eval.file"], "questions": ["eval.folder"], "questions_sts": ["eval.folder"]}
    given = [f"{key}=a.csv" for key in wanted.get(scale, [])]
    told = spec.load(name, scale, given)
    assert told.title and told.question and (told.cells or told.rows)
    for cell in told.cells:
        check_overrides(cell.overrides)
    names = {cell.name for cell in told.cells}
    assert all(one in names and other in names for one, other in told.comparisons)


def test_a_scale_that_is_like_another_differs_in_what_it_says(tmp_path):
    questions, sts = (
        {cell.name: cell.overrides for cell in spec.load("study/roles", scale, ["eval.folder=a"]).cells}
        for scale in ("questions", "questions_sts")
    )
    swapped = {
        name: ["eval=sts" if each == "eval=retrieval" else each for each in of] for name, of in questions.items()
    }
    assert sts == swapped and sts != questions
    path = tmp_path / "mine.yaml"
    path.write_text("like: questions_sts\n")
    with pytest.raises(UserError, match="questions_sts.yaml: knows no key 'like'"):
        spec.load("study/roles", str(path), ["eval.folder=a"])


FILE = "title: t\nquestion: q\ncells:\n  - {name: a, overrides: [lr=1e-4]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cells: [", "is not a YAML file that can be read"),
        ("- 1", "must be keys and values"),
        (FILE + "colour: red", "knows no key 'colour'"),
        (FILE.replace("title: t\n", ""), "title is missing"),
        (FILE + "layout: pie", "layout 'pie' is not one of config, sets, overall, curve, time"),
        (FILE + "  - {name: a}", "two cells are called 'a'"),
        (FILE + "  - {name: b, lr: 1}", "the cell 'b' knows no key 'lr'"),
        (FILE + "  - {overrides: []}", "has no name"),
        (FILE + "baseline: b", "baseline 'b' is not a cell; cells: a"),
        (FILE.replace("1e-4", "$rate"), "asks for a value 'rate' that the scale does not give"),
        (FILE + "  - {name: b, each: {x: 3}}", "each: 3 is not a list"),
        ("title: t\nquestion: q", "no cells at scale smoke"),
        (FILE + "comparisons: [[a, aa]]", "comparisons: 'aa' is not a cell; cells: a; did you mean a?"),
        (FILE + "comparisons: [a, a]", "comparisons: 'a' (str) is not one row of a list of pairs of names"),
        (FILE + "comparisons: [[a]]", "comparisons: ['a'] (list) is not one row of a list of pairs of names"),
        (FILE + "paper: {b: {overall: 1}}", "paper: 'b' is not a cell; cells: a"),
        (FILE + "paper: {a: 5}", "paper: a: 5 (int) is not scores by set"),
        (FILE + "paper: {a: {overall: x}}", "paper: a: overall: 'x' (str) is neither a score nor [mean, deviation]"),
        (FILE + "paper:\n  a: {}\n  a: {}", "line 7: 'a' stands there twice"),
        (FILE + "cells: []", "line 5: 'cells' stands there twice"),
        (FILE + "  - b", "the cell 'b' (str) is not a name with overrides"),
        (FILE + "  - {name: b, base: 'no'}", "the cell 'b': base: 'no' (str) is not true or false"),
        (FILE + "  - {name: b, overrides: lr=1}", "the cell 'b': overrides: 'lr=1' (str) is not a list of settings"),
        (FILE + "  - {name: b, each: [1]}", "the cell 'b': each: [1] (list) is not names with lists of values"),
        (FILE + "layout: [sets]", "layout: ['sets'] (list) is not a word"),
        (FILE + "layout: config\nrows: [lr]", "rows: 'lr' (str) is not one row of a list of [key, label, the paper's"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="mine.yaml.*" + re.escape(message).replace("\\ ", " ")):
        spec.load(str(path), "smoke", [])


def test_a_comparison_is_made_once_however_often_it_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE + "  - {name: b}\nbaseline: a\ncomparisons: [[b, a], [b, a], [a, b]]")
    assert spec.load(str(path), "smoke", []).comparisons == [("b", "a"), ("a", "b")]


def test_what_is_named_at_another_scale_or_in_a_combination_may_be_compared(tmp_path):
    path = tmp_path / "mine.yaml"
    cells = (
        '  - {name: "$other big", scales: [huge]}\n  - {name: "rate $x", each: {x: [1, null]}, overrides: [seed=$x]}\n'
    )
    path.write_text(FILE + cells + "comparisons: [[a, phi big], [rate 1, rate 7], [rate null, rate 1]]")
    told = spec.load(str(path), "smoke", [])
    assert told.comparisons == [("rate null", "rate 1")]
    assert "seed=null" in told.cells[-1].overrides, "as Hydra writes it"


@pytest.mark.parametrize("name", spec.available_beside())
def test_experiments_beside_the_papers_go_by_their_folder_and_name(name):
    told, same = (spec.load(entry, "smoke", []) for entry in (name, str(spec.folder() / f"{name}.yaml")))
    assert told == same and told.name == name.split("/")[1] and told.cells


def test_an_unknown_experiment_or_scale_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="experiment table9: unknown; choose among table1, table2"):
        spec.load("table9", "smoke", [])
    with pytest.raises(UserError, match="experiment study/table9: unknown; choose among .*, study/ablation, "):
        spec.load("study/table9", "smoke", [])
    with pytest.raises(UserError, match=r"experiment study/recipee: unknown.*; did you mean study/recipe\?$"):
        spec.load("study/recipee", "smoke", [])
    with pytest.raises(
        UserError,
        match="scale huge: unknown; choose among choices, encoder, nli, paper, questions, questions_sts, small",
    ):
        spec.load("table2", "huge", [])
    with pytest.raises(UserError, match=r"scale small needs to be told:\n  data.train=\.\.\."):
        spec.load("table2", "small", [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], ""),
        (["outputs=elsewhere", "logger=csv", "logger.group=one", "data.train=rows.csv"], ""),
        (["lr=3e-4"], "; but with lr=3e-4"),
        (["model=minilm", "lr=1e-3", "outputs=elsewhere", "lr=3e-4"], "; but with model=minilm lr=3e-4"),
    ],
    ids=str,
)
def test_what_a_report_says_of_its_scale_holds_for_what_was_given(given, said):
    files = ["data.train=rows.csv", "eval.file=pairs.csv"]
    scale = "SmolLM2-135M-Instruct, 30 steps of 60 triplets at learning rate 2e-3, scored on development pairs"
    assert spec.load("study/scored", "nli", [*files, *given]).about_scale == scale + said


def test_each_makes_a_cell_for_every_combination(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        FILE.replace(
            "{name: a, overrides: [lr=1e-4]}",
            '{name: "$x, $y", each: {x: [1e-4, 2e-4], y: [3]}, overrides: [lr=$x, seed=$y]}',
        )
    )
    told = spec.load(str(path), "smoke", ["seed=7"])
    assert [cell.name for cell in told.cells] == ["1e-4, 3", "2e-4, 3"]
    assert "lr=1e-4" in told.cells[0].overrides and "seed=7" in told.cells[0].overrides, "the command line wins"


def test_stored_results_know_uniformity(paper):
    found = [load_evaluation(path.parent) for path in paper.outputs.glob("*/evaluations/triplets-*/metrics.json")]
    assert found and all(evaluation.uniformity < 0 and evaluation.alignment > 0 for evaluation in found)


def test_only_trainings_at_rates_of_their_own_are_a_line_over_rates(paper):
    from cft.study.figures import figures_for

    found = collect(paper.studies["table4"], [], resamples=20)
    drawn = [*found.cells]
    untrained = [*drawn, replace(drawn[0], step=0, lr=1.0)]
    alike = [*drawn, replace(drawn[0], step=1)]
    for cells, name in ((drawn, "rates"), (untrained, "overall"), (alike, "overall"), (drawn[:2], "overall")):
        assert list(figures_for(replace(found, cells=cells))) == [name]


def test_a_picture_without_the_papers_numbers_does_not_name_them_and_cuts_no_point(paper):
    from cft.job import figures
    from cft.study import figures as study_figures

    found = collect(paper.studies["table6"], [], resamples=20)
    assert all(cell.cell.paper for cell in found.done) and "captions" in found.rows, "the paper has other sets"
    figure = study_figures.by_set(found)
    (axes,) = figure.axes
    shown = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    low, high = axes.get_ylim()
    places = axes.get_yticks()
    figures.plt.close(figure)
    assert ("paper" in shown) == any(name in cell.cell.paper for cell in found.done for name in found.rows)
    assert low < min(places) - 0.4 and max(places) + 0.4 < high, "cells lie up to 0.22 beside their set"


def test_cells_of_two_precisions_are_named(paper):
    found = collect(paper.studies["table6"], [], resamples=20)
    assert {name for cell in found.done for name in cell.precisions} == {"float32"}
    assert not sections._of_precisions(found)
    one, other = found.done
    mixed = replace(found, cells=[one, replace(other, precisions=["bfloat16", "float32"])])
    assert sections._of_precisions(mixed) == (
        f"Computed in float32 {one.name}, {other.name}; in bfloat16 {other.name}. Differences between the two are of "
        "rounding too."
    )


def test_of_many_cells_no_two_look_alike(paper):
    from cft.job import figures
    from cft.study import figures as study_figures

    found = collect(paper.studies["table6"], [], resamples=20)
    cells = [replace(found.done[0], cell=replace(found.done[0].cell, name=f"cell {n}")) for n in range(20)]
    figure = study_figures.by_set(replace(found, cells=cells))
    drawn = [dots for dots in figure.axes[0].collections if str(dots.get_label()).startswith("cell ")]
    looks = {(dots.get_facecolor().tobytes(), dots.get_paths()[0].vertices.tobytes()) for dots in drawn}
    figures.plt.close(figure)
    assert len(drawn) == 20 == len(looks)


def test_the_papers_claim_is_drawn_only_beside_the_papers_numbers(paper):
    from cft.job import figures
    from cft.study import figures as study_figures

    found = collect(paper.studies["figure1"], [], resamples=20)
    own = replace(found, cells=[replace(cell, cell=replace(cell.cell, paper={})) for cell in found.cells])
    told = {}
    for name, findings_ in (("paper", found), ("own", own)):
        figure = study_figures.curve(findings_)
        told[name] = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
        figures.plt.close(figure)
    assert "paper's claim" in told["paper"] and "development pairs" in told["paper"]
    assert "paper" not in told["own"]
    assert sections._caption("curve", found).endswith("Hollow diamonds are the paper's numbers.")
    assert sections._caption("curve", own).endswith("with 95% intervals.")
    collect(paper.studies["figure1"], [])


def test_a_cell_whose_file_says_something_else_by_now_is_stale(tmp_path):
    from cft.config.compose import compose_config

    path = tmp_path / "mine.yaml"
    path.write_text(FILE + "  - {name: b, overrides: [lr=2e-4]}\n")
    given = [f"outputs={tmp_path}", "train.weight_decay=0"]
    study = plan.compose_study(spec.load(str(path), "smoke", given), given, [], compose_config)
    study.save(plan.study_folder(tmp_path, study.name))
    stale = "b: stale, the files now say something else"
    document, _ = report.write([str(path)], "smoke", [f"outputs={tmp_path}"])
    assert "stale" not in report.render(document, "text"), "the overrides it was started with are kept"
    path.write_text(path.read_text().replace("2e-4", "3e-4"))
    document, _ = report.write([str(path)], "smoke", [f"outputs={tmp_path}"])
    assert stale in report.render(document, "text") and "a: stale" not in report.render(document, "text")


def test_a_comparison_that_is_added_when_all_is_done_is_in_the_next_report(tmp_path):
    from cft.config.compose import compose_config
    from cft.study import runner

    path, given = tmp_path / "mine.yaml", [f"outputs={tmp_path}"]
    cells = "  - {{name: a, base: true}}\n  - {{name: b, base: true, overrides: [prompt=prompt1]}}\n"
    told = f"title: {{}}\nquestion: q\ncells:\n{cells}"
    path.write_text(told.format("before"))
    study = plan.compose_study(spec.load(str(path), "smoke", given), given, [], compose_config)
    study.save(plan.study_folder(study.outputs, study.name))
    assert runner.run([study], only_failed=False, dry_run=False, launcher=None, launcher_overrides=[]) == 0
    assert "verdicts" not in [table.name for table in report.write([str(path)], "smoke", given)[0].tables()]
    path.write_text(told.format("after") + "baseline: a\n")
    document, _ = report.write([str(path)], "smoke", given)
    assert document.title == "after" and "verdicts" in [table.name for table in document.tables()]


def test_a_cost_is_of_the_steps_up_to_the_scored_one(paper):
    found = {cell.cell.name: cell for cell in collect(paper.studies["figure1"], [], resamples=20).cells}
    assert found["step 0"].costs == []
    (early,), (late,) = found["step 4"].costs, found["step 6"].costs
    assert (early.triplets, late.triplets) == (4 * 8, 6 * 8)
    assert 0 < early.seconds < late.seconds and 0 < early.nodes <= early.tokens < late.tokens
    assert late.peak_memory is None or late.peak_memory > 50 * 2**20, "a process with torch is no smaller"
    assert late.device.endswith(" threads")


def test_time_is_drawn_a_line_a_training(paper):
    from cft.job import figures
    from cft.study import figures as study_figures

    found = collect(paper.studies["figure1"], [], resamples=20)
    names = {"step 2": "paper, step 2", "step 6": "paper", "step 4": "other"}
    cells = [
        replace(cell, cell=replace(cell.cell, name=names[cell.cell.name]))
        for cell in found.cells
        if cell.cell.name in names
    ]
    figure = study_figures.time(replace(found, cells=cells))
    (axes,) = figure.axes
    lines = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    figures.plt.close(figure)
    assert {name: len(at) for name, at in lines.items()} == {"paper": 2, "other": 1}
    assert lines["paper"][0] < lines["paper"][1], "minutes, not steps"
    assert "minutes of training" in axes.get_xlabel() and "threads" in axes.get_xlabel()
