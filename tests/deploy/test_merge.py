"""Merged trainings: the weighted sum of their changes, or one readable refusal before a model is loaded."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import write_model
from exports import exported, train
from huggingface_hub import ModelCard
from peft import PeftModel

from cft.deploy import merge, push
from cft.deploy.merge import MergeOptions, merge_runs
from cft.deploy.push import PushOptions
from cft.job.runs import find_run, list_runs
from cft.merge import COMMAND
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.system.errors import UserError

TEXTS = ["A man is playing a flute.", "Nobody is at home.", "x"]


def weights_of(embedder: Embedder) -> dict[str, torch.Tensor]:
    """All weights, an adapter merged into them."""
    model = embedder.model
    return (model.merge_and_unload() if isinstance(model, PeftModel) else model).state_dict()


def runs_of(tmp_path, *overrides: str, seeds=(1, 2, 3)) -> list:
    return [train(tmp_path / f"seed{seed}", "model=tiny", f"seed={seed}", *overrides) for seed in seeds]


def options(runs, tmp_path, **more) -> MergeOptions:
    return MergeOptions(runs=[str(run) for run in runs], **({"weights": [], "out": str(tmp_path / "merged")} | more))


@pytest.mark.parametrize("choice", ["lora.variant=plain", "lora.variant=rslora", "lora.init=pissa"])
def test_the_sum_of_the_changes_is_weighted(tmp_path, choice):
    runs = runs_of(tmp_path, choice)
    said = merge_runs(options(runs, tmp_path, weights=[2, 1, 1]))
    merged = weights_of(Embedder.load(tmp_path / "merged"))
    parts = [weights_of(Embedder.load(run)) for run in runs]
    for name, weight in merged.items():
        wanted = sum(share * part[name] for share, part in zip([0.5, 0.25, 0.25], parts, strict=True))
        assert (weight - wanted).abs().max() < 1e-6, name
    assert any((merged[name] - parts[0][name]).abs().max() > 1e-4 for name in merged)
    assert "0.500" in said and "next: score it" in said


def test_weights_of_layers_are_averaged_too(tmp_path):
    runs = runs_of(tmp_path, "model.layer_weights=true", seeds=(1, 2))
    merge_runs(options(runs, tmp_path, weights=[3, 1]))
    found, *parts = (weights_of(Embedder.load(run))["layer_weights.logits"] for run in (tmp_path / "merged", *runs))
    assert torch.allclose(found, parts[0] * 0.75 + parts[1] * 0.25, atol=1e-6)
    assert (parts[0] - parts[1]).abs().max() > 1e-4 and found.abs().max() > 1e-4


def test_changes_that_are_small_beside_their_factors_are_merged(tmp_path):
    runs = runs_of(tmp_path, "lora.init=pissa", "lr=1e-6", seeds=[1, 2])
    embedders = [Embedder.load(run) for run in runs]
    merge_runs(options(runs, tmp_path))
    change = np.abs(embedders[0].encode(TEXTS) - embedders[1].encode(TEXTS)).max()
    assert 0 < change < 1e-3
    np.testing.assert_allclose(
        Embedder.load(tmp_path / "merged").encode(TEXTS), embedders[0].encode(TEXTS), atol=max(change, 1e-6)
    )


def test_runs_of_different_ranks_are_summed_too(tmp_path):
    runs = [*runs_of(tmp_path, "lora.rank=4", seeds=[1]), *runs_of(tmp_path, "lora.rank=2", seeds=[2])]
    merge_runs(options(runs, tmp_path))
    config = json.loads((tmp_path / "merged/adapter/adapter_config.json").read_text())
    assert config["r"] == 6
    merged, one, other = (weights_of(Embedder.load(each)) for each in (tmp_path / "merged", *runs))
    assert all((merged[name] - (one[name] + other[name]) / 2).abs().max() < 1e-6 for name in merged)


@pytest.mark.parametrize(("method", "more"), [("linear", {}), ("ties", {"density": 0.4})])
def test_peft_s_other_methods_keep_the_rank_and_are_what_peft_gives(tmp_path, method, more):
    runs = runs_of(tmp_path)
    merge_runs(options(runs, tmp_path, method=method, **more))
    config = json.loads((tmp_path / "merged/adapter/adapter_config.json").read_text())
    assert config["r"] == 8
    model = Embedder.load(runs[0]).model
    for number, run in enumerate(runs):
        model.load_adapter(str(run / "adapter"), adapter_name=f"p{number}")
    model.add_weighted_adapter(["p0", "p1", "p2"], [1 / 3] * 3, "sum", combination_type=method, **more)
    model.set_adapter("sum")
    base = Embedder.load(runs[0])
    expected = Embedder(model, base.backbone, base.contract).encode(TEXTS)
    np.testing.assert_allclose(Embedder.load(tmp_path / "merged").encode(TEXTS), expected, atol=1e-5)


def test_whole_weights_are_averaged(tmp_path):
    runs = runs_of(tmp_path, "lora=none", "lr=1e-3", seeds=[1, 2])
    with pytest.raises(UserError, match="method=cat: these runs were trained whole .* only method=linear"):
        merge_runs(options(runs, tmp_path))
    merge_runs(options(runs, tmp_path, method="linear"))
    merged, one, other = (weights_of(Embedder.load(each)) for each in (tmp_path / "merged", *runs))
    assert all((merged[name] - (one[name] + other[name]) / 2).abs().max() < 1e-6 for name in merged)


def test_the_result_is_an_embedder_like_any_other(tmp_path, monkeypatch):
    runs = runs_of(tmp_path, seeds=[1, 2])
    monkeypatch.chdir(tmp_path)
    said = merge_runs(COMMAND.read([f"runs=[{runs[0]},{runs[1]}]"]))
    (folder,) = (tmp_path / "outputs").glob("merged-*")
    assert folder.name in said
    record = json.loads((folder / "merge.json").read_text())
    assert [parent["run"] for parent in record["parents"]] == [run.name for run in runs]
    assert [parent["share"] for parent in record["parents"]] == [0.5, 0.5] and record["method"] == "cat"
    assert Embedder.load(folder).contract.adapter not in (None, *(Embedder.load(run).contract.adapter for run in runs))
    again = train(
        tmp_path / "scored", "model=tiny", f"adapter={folder}", "train.steps=2", "lora.rank=16", "lora.alpha=16"
    )
    assert Embedder.load(again).encode(TEXTS).shape == (3, 32)
    with pytest.raises(UserError, match="exists; name another folder by out="):
        merge_runs(COMMAND.read([f"runs=[{runs[0]},{runs[1]}]"]))


@pytest.mark.parametrize("choice", ["lora.variant=plain", "lora=none"])
def test_it_has_a_card_by_which_it_is_sent_to_the_hub(tmp_path, monkeypatch, choice):
    runs = runs_of(tmp_path, choice, seeds=[1, 2])
    whole = choice == "lora=none"
    merge_runs(options(runs, tmp_path, weights=[3, 1], method="linear" if whole else "ties"))
    folder, form = tmp_path / "merged", "sentence-transformers" if whole else "peft"
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "merged" and card.data.library_name == ("transformers" if whole else "peft")
    assert "# A text embedder out of tiny\n\nTrainings of it, merged by cft" in card.content
    rows = [f"| share of {run.name} | {share} |" for run, share in zip(runs, ["0.750", "0.250"], strict=True)]
    assert "\n".join([f"| merged by | method={'linear' if whole else 'ties, density=0.5'} |", *rows]) in card.content
    assert "| embedding | the last token's state" in card.content and "## Scores" not in card.content
    assert "|\n\n|" not in card.content and str(tmp_path) not in card.content
    sent = []
    monkeypatch.setattr(push, "_send", lambda staged, *_, **__: sent.append((staged / "README.md").read_text()))
    push.push(PushOptions(run=str(folder), repo="me/it", format=form))
    assert '("me/it")' in sent[0] and all(row in sent[0] for row in rows)


def test_it_is_listed_and_found_among_the_runs(tmp_path):
    runs = runs_of(tmp_path, seeds=[1, 2])
    merge_runs(options(runs, tmp_path, out=str(tmp_path / "all/merged-1")))
    header, row = list_runs(tmp_path / "all", [])
    assert dict(zip(header, row, strict=True)) == dict.fromkeys(header, "") | {
        "run": "merged-1", "state": "merged of 2 runs"
    }  # fmt: skip
    assert list_runs(tmp_path / "all", ["lr=1"]) == [header]
    assert find_run(tmp_path / "all", "ed-1") == tmp_path / "all/merged-1"


def test_what_cannot_be_merged_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    one = train(tmp_path / "one", "model=tiny")
    others = {
        "different base models": train(tmp_path / "base", "model=tiny", "model.path=random:qwen2"),
        "do not embed alike.*pooling: .*last.* and .*mean": train(
            tmp_path / "mean", "model=tiny", "model.pooling=mean"
        ),
        "do not embed alike.*template": train(tmp_path / "p", "model=tiny", "prompt=prompt1", "prompt.use=both"),
        "is an adapter, .* a whole": train(tmp_path / "whole", "model=tiny", "lora=none"),
        "lora.variant=dora": train(tmp_path / "dora", "model=tiny", "lora.variant=dora"),
        "changed different layers": train(tmp_path / "keys", "model=tiny", "lora.targets=[key]"),
        "is named twice": one,
    }
    rank = train(tmp_path / "rank", "model=tiny", "lora.rank=2")
    pissa = [train(tmp_path / f"pissa{seed}", "model=tiny", "lora.init=pissa", f"seed={seed}") for seed in (1, 2)]
    monkeypatch.setattr(Embedder, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    for message, other in others.items():
        with pytest.raises(UserError, match=f"(?s){message}"):
            merge_runs(options([one, other], tmp_path))
    with pytest.raises(UserError, match="method=ties: ranks are 8, 2; take method=cat"):
        merge_runs(options([one, rank], tmp_path, method="ties"))
    for method in ("linear", "ties"):
        with pytest.raises(UserError, match=f"method={method}: .* was trained with lora.init=pissa.*take method=cat"):
            merge_runs(options(pissa, tmp_path, method=method))
    with pytest.raises(UserError, match="no such folder, nor does a finished embedder end so"):
        merge_runs(options([one, tmp_path / "none"], tmp_path))
    assert not (tmp_path / "merged").exists()


def forget(folder):
    """As an older cft wrote an embedder's contract, which did not say how its update began."""
    record = json.loads((folder / "contract.json").read_text())
    assert record.pop("pissa")
    del record["checksum"]
    (folder / "contract.json").write_text(json.dumps(record))


def test_factors_that_began_by_pissa_are_known_wherever_they_went(tmp_path, monkeypatch):
    runs = runs_of(tmp_path, "lora.init=pissa", "train.keep=[2]", seeds=[1, 2])
    plain = train(tmp_path / "plain", "model=tiny", "lora.rank=16")
    kept = [run / "steps" / "000002" for run in runs]
    export, copy, merged = tmp_path / "exported", tmp_path / "copy", tmp_path / "merged"
    exported(runs[0], tmp_path, "format=peft")
    Embedder.load(export).save(copy)
    merge_runs(options(runs, tmp_path))
    on = train(
        *(tmp_path / "on", "model=tiny", f"adapter={runs[0] / 'adapter'}", "lora.rank=16"),
        *(f"lora.alpha={Embedder.load(runs[0]).model.peft_config['default'].lora_alpha}", "lora.init=gaussian"),
    )
    assert all(Contract.load(folder).pissa for folder in (*runs, *kept, export, copy, merged, on))
    assert "pissa" not in json.loads((plain / "contract.json").read_text())
    monkeypatch.setattr(Embedder, "load", lambda *_, **__: pytest.fail("a model was loaded"))

    def refused(folder, other=plain, method="linear"):
        with pytest.raises(UserError, match=f"(?s)^method={method}: .*lora.init=pissa.*take method=cat"):
            merge_runs(
                options([other, folder], tmp_path, method=method, out=str(tmp_path / "new"), outputs=runs[0].parent)
            )

    for folder in (kept[0], export, copy, on):
        refused(folder)
    refused(*kept, method="ties")
    refused(merged, merged_again(tmp_path, merged))
    for folder in (*runs, kept[0], merged, on):
        forget(folder)
    for folder in (runs[1], kept[0], on):
        refused(folder)
    refused(merged, merged_again(tmp_path, merged, "once more"))


def merged_again(tmp_path, merged, name="again"):
    return shutil.copytree(merged, tmp_path / name)


def test_sums_of_whole_changes_by_pissa_are_merged_with_others(tmp_path):
    runs = [*runs_of(tmp_path, "lora.init=pissa", "train.keep=[2]", seeds=[1]), *runs_of(tmp_path, seeds=[2])]
    folders = [runs[0] / "steps" / "000002", runs[1]]
    merge_runs(options(folders, tmp_path))
    merged, one, other = (weights_of(Embedder.load(each)) for each in (tmp_path / "merged", *folders))
    assert all((merged[name] - (one[name] + other[name]) / 2).abs().max() < 1e-6 for name in merged)
    assert Contract.load(tmp_path / "merged").pissa


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=[a]"], "name two runs or more"),
        ([], r"runs= is missing \(two or more runs"),
        (["runs=[a,b]", "weights=[1]"], "there are 1 weights for 2 runs"),
        (["runs=[a,b]", "weights=[0,0]"], "must be 0 or more, and not all 0"),
        (["runs=[a,b]", "weights=[1,-1]"], "must be 0 or more, and not all 0"),
        (["runs=[a,b]", "weights=[1e308,1e308]"], "weights=.*: are too large to be added up"),
        (["runs=[a,b]", "weights=[1,x]"], "weights=.*: must be numbers with commas between"),
        (["runs=[a,,b]"], "runs=.*: must be words with commas between"),
        (["runs=a,b", "method=mean"], "method=mean: must be cat or linear or ties"),
        (["runs=a,b", "method=ties", "density=0"], "density=0: must be above 0 and at most 1"),
        (["runs=a,b", "density=0.1"], "density=0.1 would not be read: add method=ties"),
        (["runs=a,b", "method=linear", "density=0.5"], "density=0.5 would not be read: add method=ties"),
    ],
)
def test_settings_that_mean_nothing_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        merge_runs(COMMAND.read(words))


def test_a_base_model_that_was_moved_is_said(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    runs = runs_of(tmp_path, f"model.path={base}", seeds=[1, 2])
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is not there any more; say where it is now: .*model_path=FOLDER"):
        merge_runs(options(runs, tmp_path))
    merge_runs(options(runs, tmp_path, model_path=str(tmp_path / "moved")))
    assert Embedder.load(tmp_path / "merged").encode(TEXTS).shape == (3, 32)  # it knows where that is
    write_model(tmp_path / "other", "llama", initializer_range=0.5)
    with pytest.raises(UserError, match="weights"):
        merge_runs(options(runs, tmp_path, model_path=str(tmp_path / "other"), out=str(tmp_path / "new")))


def test_trained_biases_are_refused(tmp_path):
    runs = runs_of(tmp_path, "model.path=random:phi", "model.name=tiny", "lora.bias=lora_only", seeds=[1, 2])
    with pytest.raises(UserError, match="has trained biases, which PEFT does not merge"):
        merge_runs(options(runs, tmp_path))


def test_a_sum_that_is_none_is_not_kept(tmp_path, monkeypatch):
    runs = runs_of(tmp_path, seeds=[1, 2])
    true = merge._sum_of_changes
    monkeypatch.setattr(
        merge, "_sum_of_changes", lambda *of: {name: torch.randn_like(change) for name, change in true(*of).items()}
    )
    with pytest.raises(RuntimeError, match="is not the sum of the changes"):
        merge_runs(options(runs, tmp_path))
    assert not (tmp_path / "merged").exists()
