"""A job that learns from packages and is judged by the standard library."""

import pytest
from jobs import composed, run_folder, settings

from cft.config.compose import compose_config
from cft.data import docstrings
from cft.deploy.similar import SimilarOptions, search_file
from cft.job import runner
from cft.job.plan import make_plan
from cft.job.report import DOCUMENTS
from cft.system.errors import UserError


@pytest.fixture
def packages(tmp_path, monkeypatch) -> None:
    """A package of forty functions, and a standard library of fifteen others."""
    for folder, verb, count in (("mine", "add", 40), ("library", "copy", 15)):
        source = "".join(
            f'def {verb}_{n}(path):\n    """Return what is left when we {verb} {n} files."""\n' for n in range(count)
        )
        (tmp_path / folder / "sample").mkdir(parents=True)
        (tmp_path / folder / "sample" / "files.py").write_text(source)
    (tmp_path / "mine" / "sample").rename(tmp_path / "mine" / "samplepackage")
    monkeypatch.syspath_prepend(tmp_path / "mine")
    monkeypatch.setattr(docstrings, "_library_folder", lambda: tmp_path / "library")


def test_a_job_learns_from_packages_and_finds_functions_of_the_library(packages, tmp_path, caplog, capsys):
    caplog.set_level("INFO", "cft")
    job = ["data=docstrings", "data.packages=[samplepackage]", "data.holdout=4", "eval=docstrings", "eval.rows=12"]
    config = settings(tmp_path / "o", *job, "lr=1e-2", "train.batch_size=8", "train.steps=4", "train.epochs=2")
    runner.run(config)
    folder = run_folder(tmp_path / "o")
    (place,) = folder.glob("evaluations/docstrings-*")
    assert "| standard library | 12 |" in (place / "table.md").read_text()
    documents = (place / DOCUMENTS).read_text().splitlines()
    assert documents == [f"sample.files.copy_{n}(path): copy {n}" for n in range(15)]
    assert f"cft.similar run={folder} 'how do I copy a file' {place / DOCUMENTS}" in caplog.text
    options = {"run": str(folder), "top": 2, "vector_cache_gb": 0}
    capsys.readouterr()
    search_file(SimilarOptions(place / DOCUMENTS, "copy 3 files", **options))
    found = capsys.readouterr().out.splitlines()[1:]
    assert len(found) == 2 and all(line.rsplit("  ", 1)[-1] in documents for line in found)
    assert make_plan(config).is_trained  # the same rows, and so the same name


def test_docstrings_bring_a_training_of_their_own_unless_another_is_asked_for():
    config = composed("data=docstrings")
    assert config.train.steps == composed("train=docstrings").train.steps < 100
    assert config.lr == composed("train=docstrings").lr > composed("train=paper").lr
    assert composed("data=docstrings", "train=paper").lr == 5e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=nli", "data.packages=[numpy]"], r"data.packages=\[numpy\]' would not be read: add data=docstrings"),
        (["data=docstrings", "data.packages=[]"], "data.packages is empty: name installed packages"),
        (["data=docstrings", "data.packages=numpy"], "data.packages=numpy: must be a list"),
        (["data=docstrings", "eval=docstrings", "eval.rows=0"], "eval.rows=0: must be 1 or more queries"),
    ],
)
def test_settings_that_go_with_nothing_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        make_plan(compose_config(["model=tiny", *overrides]))
