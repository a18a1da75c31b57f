"""Shuffling, holding out, and where data comes from."""

import json

import numpy as np
import pytest

from cft.config.schema import DataSettings, DataSource, EvalSettings, EvalSource
from cft.data import sts
from cft.data import training_data as data_module
from cft.data.records import ScoredPair
from cft.data.sampling import batches
from cft.data.sts import NINE_SETS, load_eval_sets, thin_out
from cft.data.training_data import load_training_data
from cft.system.errors import UserError


def triplet_file(folder, count: int):
    path = folder / "triplets.jsonl"
    rows = [{"sent0": f"anchor {n}", "sent1": f"positive {n}", "hard_neg": f"negative {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def from_file(path, **settings):
    return DataSettings(name="files", source=DataSource.files, train=str(path), **settings)


def test_batches_go_through_every_row_once_an_epoch_and_differ_between_epochs():
    found = list(batches(10, 3, seed=0, start=0, stop=6))
    assert all(len(batch) == 3 for batch in found)
    first, second = np.concatenate(found[:3]), np.concatenate(found[3:])
    assert len(set(first)) == 9 and len(set(second)) == 9
    assert first.tolist() != second.tolist()


def test_batches_depend_on_the_seed_and_the_step_alone():
    whole = [batch.tolist() for batch in batches(50, 4, seed=3, start=0, stop=30)]
    assert [batch.tolist() for batch in batches(50, 4, seed=3, start=17, stop=30)] == whole[17:]
    assert [batch.tolist() for batch in batches(50, 4, seed=4, start=0, stop=30)] != whole


def test_held_out_rows_are_not_trained_on_and_are_at_most_a_tenth(tmp_path):
    found = load_training_data(from_file(triplet_file(tmp_path, 100), holdout=500), seed=0)
    assert len(found.holdout) == 10 and len(found.triplets) == 90
    assert not {row.anchor for row in found.holdout} & {row.anchor for row in found.triplets}
    assert load_training_data(from_file(triplet_file(tmp_path, 100), holdout=0), seed=0).holdout == []


def test_content_names_the_data_and_not_the_file(tmp_path):
    one = load_training_data(from_file(triplet_file(tmp_path, 20)), seed=0).content
    (tmp_path / "copy").mkdir()
    assert load_training_data(from_file(triplet_file(tmp_path / "copy", 20)), seed=0).content == one
    assert load_training_data(from_file(triplet_file(tmp_path, 21)), seed=0).content != one


def test_development_pairs_come_from_their_file(tmp_path):
    (tmp_path / "dev.csv").write_text("sentence1,sentence2,score\na b,c d,1.5\ne,f,2\n")
    found = load_training_data(from_file(triplet_file(tmp_path, 20), dev=str(tmp_path / "dev.csv")), seed=0)
    assert [tuple(row) for row in found.dev] == [("a b", "c d", 1.5), ("e", "f", 2.0)]


UNRANKED = {
    "one pair": ("a,b,1\n", "the set {} has 1 pairs: a rank correlation needs at least 2"),
    "equal scores": ("a,b,3\nc,d,3.0\n", "all scores of the set {} are equal: no rank correlation is defined"),
}


@pytest.mark.parametrize(("rows", "message"), UNRANKED.values(), ids=UNRANKED)
def test_pairs_that_cannot_be_scored_are_refused_as_soon_as_they_are_read(tmp_path, rows, message):
    path = tmp_path / "mine.csv"
    path.write_text("sentence1,sentence2,score\n" + rows)
    with pytest.raises(UserError) as error:
        load_training_data(from_file(triplet_file(tmp_path, 20), dev=str(path)), seed=0)
    assert str(error.value) == message.format(f"data.dev={path}")
    with pytest.raises(UserError) as error:
        load_eval_sets(EvalSettings(name="sts", source=EvalSource.sts, folder=str(tmp_path), sets=["mine"]))
    assert str(error.value) == message.format(f"mine (eval.folder={path})")


def test_pairs_that_cannot_be_scored_once_thinned_out_are_refused_too(tmp_path):
    (tmp_path / "mine.csv").write_text("sentence1,sentence2,score\n" + "a,b,1\na,c,2\n" * 4)
    settings = EvalSettings(name="sts", source=EvalSource.sts, folder=str(tmp_path), sets=["mine"], rows=2)
    with pytest.raises(
        UserError, match="all scores of the set mine .*mine.csv, thinned out by eval.rows=2.* are equal"
    ):
        load_eval_sets(settings)


def test_a_set_whose_name_no_file_can_have_or_whose_link_leads_nowhere_is_named(tmp_path):
    settings = EvalSettings(name="sts", source=EvalSource.sts, folder=str(tmp_path), sets=["x" * 300])
    with pytest.raises(UserError, match=r"eval.folder=.*: xxx.* cannot be read \(File name too long\)"):
        load_eval_sets(settings)
    (tmp_path / "mine.tsv").symlink_to(tmp_path / "nowhere.tsv")
    settings.sets = ["mine"]
    with pytest.raises(UserError, match=r"eval.folder=.*mine.tsv: is a link to .*nowhere.tsv, which is not there"):
        load_eval_sets(settings)


def test_bad_rows_are_skipped_and_counted_on_request(tmp_path):
    path = triplet_file(tmp_path, 20)
    path.write_text(path.read_text() + '{"sent0": "", "sent1": "x", "hard_neg": "y"}\n')
    with pytest.raises(UserError, match=r"data row 21 \(triplets.jsonl:21\)"):
        load_training_data(from_file(path), seed=0)
    assert load_training_data(from_file(path, on_bad_row="skip"), seed=0).skipped == 1


def test_the_hubs_triplets_are_read_as_the_paper_read_them(tmp_path, monkeypatch):
    path = tmp_path / "nli_for_simcse.csv"
    path.write_text('sent0,sent1,hard_neg\n"One, two.",Three.,Four.\n' * 1 + "a,b,c\n" * 19)
    asked = {}

    def download(repository, file, **options):
        asked.update(repository=repository, file=file, **options)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    settings = DataSettings(name="nli", source=DataSource.hub, revision="abc", holdout=0)
    rows = load_training_data(settings, seed=0).triplets
    assert tuple(rows[0]) == ("One, two.", "Three.", ("Four.",)) and len(rows) == 20
    assert asked["repository"] == data_module.NLI_REPOSITORY and asked["revision"] == "abc"
    assert asked["repo_type"] == "dataset"


def test_hub_sets_are_asked_for_at_their_pinned_revisions(monkeypatch):
    asked = []

    def load(repository, subset, **options):
        asked.append((repository, subset, options["revision"], options["split"]))
        return [{"sentence1": "a", "sentence2": "b", "score": 3}]

    monkeypatch.setattr("datasets.load_dataset", load)
    settings = EvalSettings(name="sts", source=EvalSource.sts, sets=list(NINE_SETS))
    found = load_eval_sets(settings)
    assert list(found) == list(NINE_SETS)
    assert found["STS12"][0].score == 3.0
    assert ("mteb/sts17-crosslingual-sts", "en-en", NINE_SETS["STS17"].revision, "test") in asked
    assert all(len(revision) == 40 for _, _, revision, _ in asked)


def test_a_hub_that_does_not_answer_is_explained(monkeypatch):
    monkeypatch.setattr(sts, "hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match=r"the set BIOSSES .* is not on this machine and the hub does not answer"):
        load_eval_sets(EvalSettings(name="sts", source=EvalSource.sts, sets=["BIOSSES"]))


def test_an_unknown_set_of_the_hub_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="STS11 unknown on the hub; choose among STS12"):
        load_eval_sets(EvalSettings(name="sts", source=EvalSource.sts, sets=["STS11"]))


def test_a_folder_gives_any_sets_by_the_names_of_its_files(tmp_path):
    (tmp_path / "mine.csv").write_text("sentence1,sentence2,score\na,b,1\nc,d,2\n")
    settings = EvalSettings(name="sts", source=EvalSource.sts, folder=str(tmp_path), sets=["mine"])
    assert len(load_eval_sets(settings)["mine"]) == 2
    settings.sets = ["yours"]
    with pytest.raises(UserError, match="holds no file for yours"):
        load_eval_sets(settings)
    settings.folder = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such folder"):
        load_eval_sets(settings)


def test_a_set_is_thinned_out_at_even_distances():
    pairs = [ScoredPair(f"a {i}", f"b {i}", float(i)) for i in range(10)]
    assert [pair.score for pair in thin_out(pairs, 4)] == [0, 2, 5, 7]
    assert thin_out(pairs, None) == thin_out(pairs, 10) == thin_out(pairs, 11) == pairs
