"""A training within the memory that there is: chosen once, held for every batch, kept with the training."""

import json
import os

import numpy as np
import pytest
import torch
from batches import WORDS, gradients, triplets, tuned
from conftest import make_tiny
from jobs import adapter_bytes, history, run_folder, settings
from safetensors.torch import load

from cft.config.schema import LossSettings
from cft.data import training_data
from cft.data.records import Triplet
from cft.job import runner
from cft.job.run_folder import RunFolder
from cft.model.embedder import Embedder
from cft.system import distributed
from cft.system.distributed import World
from cft.system.errors import UserError
from cft.training import chunking, contrastive, memory, trainer
from cft.training.contrastive import texts_of

QUIET = ["train.eval_every=0", "data.holdout=0", "train.steps=4", "eval=none"]


def with_free_memory(monkeypatch, size: int) -> None:
    monkeypatch.setattr(chunking, "available_bytes", lambda device: size)


def budgets(outputs) -> list[int]:
    return [row["chunk_tokens"] for row in history(run_folder(outputs)) if row["event"] == "step"]


def losses_of(outputs) -> list[float]:
    return [row["loss"] for row in history(run_folder(outputs)) if row["event"] == "step"]


def assert_equal_to_rounding(outputs, expected) -> None:
    one, other = load(adapter_bytes(outputs)), load(adapter_bytes(expected))
    for name in other:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


class Ended(Exception):
    """The end of a process."""


def stop_after(step: int):
    def on_row(row: dict) -> None:
        if row["step"] == step:
            raise Ended

    return on_row


LITTLE, MUCH = 2 * 2**20, 2**40


# The choice.


@pytest.mark.parametrize("more", [[], ["train.accumulation=2"], ["train.gradient_checkpointing=true"]], ids=str)
def test_a_training_with_little_memory_gives_what_one_with_much_gives(tmp_path, monkeypatch, more):
    for name, size in (("much", MUCH), ("little", LITTLE)):
        with_free_memory(monkeypatch, size)
        runner.run(settings(tmp_path / name, *QUIET, *more))
    assert run_folder(tmp_path / "much").name == run_folder(tmp_path / "little").name
    assert len(set(budgets(tmp_path / "little"))) == 1 and budgets(tmp_path / "little") < budgets(tmp_path / "much")
    assert_equal_to_rounding(tmp_path / "little", tmp_path / "much")


@pytest.mark.parametrize("first, then", [(LITTLE, MUCH), (MUCH, 2**30)])
def test_a_training_that_goes_on_keeps_its_budget_and_ends_with_the_same_bytes(tmp_path, monkeypatch, first, then):
    with_free_memory(monkeypatch, first)
    runner.run(settings(tmp_path / "undisturbed", *QUIET))
    with pytest.raises(Ended):
        runner.run(settings(tmp_path / "disturbed", *QUIET), on_row=stop_after(3))
    with_free_memory(monkeypatch, then)
    runner.run(settings(tmp_path / "disturbed", *QUIET))
    assert budgets(tmp_path / "disturbed") == budgets(tmp_path / "undisturbed")
    assert adapter_bytes(tmp_path / "disturbed") == adapter_bytes(tmp_path / "undisturbed")


def test_a_budget_that_does_not_fit_any_more_is_lowered_told_and_recorded(tmp_path, monkeypatch, caplog):
    with_free_memory(monkeypatch, MUCH)
    runner.run(settings(tmp_path / "undisturbed", *QUIET))
    with pytest.raises(Ended):
        runner.run(settings(tmp_path / "disturbed", *QUIET), on_row=stop_after(3))
    with_free_memory(monkeypatch, LITTLE)
    runner.run(settings(tmp_path / "disturbed", *QUIET))
    found = budgets(tmp_path / "disturbed")
    assert found[0] == found[1] > found[2] == found[3]
    assert f"so from step 3 on it is {found[2]:,}" in caplog.text
    assert "equals an undisturbed training's up to rounding, not byte for byte" in caplog.text
    assert_equal_to_rounding(tmp_path / "disturbed", tmp_path / "undisturbed")
    record = json.loads((run_folder(tmp_path / "disturbed") / RunFolder.FINISHED).read_text())
    assert record["chunk_tokens"] == [found[0], found[2]]


@pytest.mark.parametrize("mixing", ["rows", "files"])
def test_the_budget_is_that_of_the_file_with_the_most_negatives(tmp_path, monkeypatch, mixing):
    monkeypatch.setattr(training_data, "_COUNTED", 10)
    files = {"pairs.jsonl": (40, 0), "triplets.jsonl": (20, 5)}
    for name, (rows, negatives) in files.items():
        words = [{"sent0": f"{name} {n}", "sent1": f"its {n}", "hard_neg": ["no"] * negatives} for n in range(rows)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in words))
    pairs, others = (
        f"{{file: {tmp_path / name}, negative_columns: {columns}}}"
        for name, columns in zip(files, ("[]", "[hard_neg]"), strict=True)
    )
    job = [*QUIET, "data=files", f"data.train=[{pairs},{others}]", "train.batch_size=4", "model.max_length=32"]
    runner.run(settings(tmp_path / "out", *job, *([f"data.mixing={mixing}"] if mixing == "files" else [])))
    assert budgets(tmp_path / "out") == [4 * (2 + 5) * 32] * 4


def test_a_configured_budget_is_taken_and_one_that_was_lowered_stays(tmp_path):
    embedder = tuned()
    choose = {"texts": 120, "bf16": False}
    assert chunking.choose_chunking(embedder, **choose, chunk_tokens=500).tokens == 500
    assert chunking.choose_chunking(embedder, **choose, chunk_tokens=500, kept=250, step=3).tokens == 250
    assert chunking.choose_chunking(embedder, **choose, chunk_tokens=500, kept=900, step=3).tokens == 500


def test_the_budget_follows_from_what_is_free(monkeypatch, caplog):
    caplog.set_level("INFO", logger="cft")
    embedder, choose = tuned(), {"texts": 120, "bf16": False, "chunk_tokens": None}
    longest = embedder.contract.max_length
    with_free_memory(monkeypatch, MUCH)
    assert chunking.choose_chunking(embedder, **choose).tokens == 120 * longest
    need = memory.estimate_longest(embedder, bf16=False)
    with_free_memory(monkeypatch, need.bytes_for(20 * longest))
    chosen = chunking.choose_chunking(embedder, **choose).tokens
    assert longest < chosen < 20 * longest
    assert f"at most {chosen:,} tokens go through the model at once, a larger batch by gradient caching" in caplog.text
    with_free_memory(monkeypatch, 0)
    assert chunking.choose_chunking(embedder, **choose).tokens == longest, "a text is the least"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with_free_memory(monkeypatch, 4 * need.bytes_for(20 * longest))
    assert chunking.choose_chunking(embedder, **choose).tokens == pytest.approx(chosen, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_a_batch_of_the_longest_texts_takes_no_more_than_estimated(family):
    embedder = tuned(family)
    need = memory.estimate_longest(embedder, bf16=False)
    texts = memory._texts(embedder, 12, embedder.contract.max_length)
    setup = contrastive.BatchSetup(LossSettings())
    monkey = [Triplet(" ", " ", (" ",))] * 4

    def step() -> None:
        contrastive.contrastive_backward(embedder, monkey, setup, sequences=texts)

    tokens = embedder.backbone.batching.tokens_in_memory(texts)
    assert tokens == sum(map(len, texts))
    assert memory.peak_bytes(step, embedder.device) < 1.1 * need.bytes_for(tokens)


# Every batch.


def test_a_long_batch_behind_short_ones_is_held_to_the_budget(tmp_path, monkeypatch):
    rows = [{"sent0": f"a {n}", "sent1": f"b {n}", "hard_neg": f"c {n}"} for n in range(40)]
    for row in rows[8:]:
        row["sent0"] = row["sent1"] = " ".join([row["sent0"], *WORDS * 10])
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    need = memory.estimate_longest(tuned(), bf16=False)
    with_free_memory(monkeypatch, need.bytes_for(1000))
    through = []
    forward = Embedder.forward

    def watched(embedder, layout):
        if embedder.model.training and layout.token_ids.numel() > 300:
            through.append(layout.nodes)
        return forward(embedder, layout)

    monkeypatch.setattr(Embedder, "forward", watched)
    own = ["data=files", f"data.train={data}", "model.max_length=150"]
    runner.run(settings(tmp_path / "out", *own, *QUIET))
    (budget,) = set(budgets(tmp_path / "out"))
    assert through and max(through) <= budget < 1000


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_batch_within_the_budget_goes_whole_and_no_chunk_is_beyond_it(family):
    embedder, batch = tuned(family), triplets(12)
    batching = embedder.backbone.batching
    sequences = embedder.tokenize(texts_of(batch, LossSettings()))
    size = batching.tokens_in_memory(sequences)
    assert embedder.layout(sequences).nodes <= size <= len(set(sequences)) * max(map(len, sequences))
    for tokens, chunks in ((size, 1), (size - 1, 2)):
        setup = contrastive.BatchSetup(LossSettings(), chunk_tokens=tokens)
        found = contrastive.contrastive_backward(embedder, batch, setup, sequences=sequences)
        assert (found.chunks == 1) == (chunks == 1)
    for rows in embedder.batches(sequences, 90):
        assert batching.tokens_in_memory([sequences[row] for row in rows]) <= 90
    gradients(embedder)


# Memory that runs out all the same.

ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "torch on a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 648. B for an array with shape (9, 9)"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


def runs_out_of_memory(monkeypatch, limit: int, error: Exception = ERRORS["CUDA"]) -> list[int]:
    """Let the model fail on batches of more nodes than `limit`; returns the sizes that went through."""
    through = []
    forward = Embedder.forward

    def small_memory(embedder, layout):
        if layout.nodes > limit:
            raise error
        through.append(layout.nodes)
        return forward(embedder, layout)

    monkeypatch.setattr(Embedder, "forward", small_memory)
    return through


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outputs of a training with all the memory that it needs."""
    outputs = tmp_path_factory.mktemp("whole")
    runner.run(settings(outputs, *QUIET))
    return outputs


@pytest.mark.parametrize("error", ERRORS)
def test_out_of_memory_leads_to_smaller_chunks_and_the_same_training(tmp_path, monkeypatch, caplog, error, whole):
    caplog.set_level("INFO", logger="cft")
    through = runs_out_of_memory(monkeypatch, 400, ERRORS[error])
    runner.run(settings(tmp_path / "small", *QUIET, "vector_cache_gb=0"))
    assert "out of memory: from here on at most" in caplog.text
    assert through and max(through) <= 400
    assert budgets(tmp_path / "small")[0] <= 400 < budgets(whole)[0]
    assert losses_of(tmp_path / "small") == pytest.approx(losses_of(whole), rel=1e-4)
    assert_equal_to_rounding(tmp_path / "small", whole)


def test_a_lowered_budget_goes_on_with_a_training(tmp_path, monkeypatch):
    runs_out_of_memory(monkeypatch, 400)
    runner.run(settings(tmp_path / "undisturbed", *QUIET))
    with pytest.raises(Ended):
        runner.run(settings(tmp_path / "disturbed", *QUIET), on_row=stop_after(3))
    monkeypatch.undo()
    runner.run(settings(tmp_path / "disturbed", *QUIET))
    assert adapter_bytes(tmp_path / "disturbed") == adapter_bytes(tmp_path / "undisturbed")


@pytest.mark.parametrize("error", ERRORS)
def test_an_evaluation_that_runs_out_of_memory_goes_on_in_halves(monkeypatch, error):
    embedder = make_tiny("llama")
    texts = [f"{word} {other}" for word in WORDS for other in WORDS]
    expected = embedder.encode(texts)
    through = runs_out_of_memory(monkeypatch, 100, ERRORS[error])
    assert abs(embedder.encode(texts) - expected).max() < 1e-6
    assert max(through) <= 100
    runs_out_of_memory(monkeypatch, 5, ERRORS[error])
    with pytest.raises(UserError, match=r"out of memory with a single text of \d+ tokens"):
        embedder.encode(texts)


def test_a_text_that_alone_is_too_large_is_said():
    state = chunking.Chunking(4000)
    seen = []
    with pytest.raises(UserError, match="out of memory with a single text of 30 tokens: lower model.max_length"):
        for _ in range(20):
            state.shrink(960, 30)
            seen.append(state.tokens)
    assert seen == [480, 240, 120, 60, 30]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("trial", ["estimate_longest", "estimate_training", "estimate_evaluation"])
def test_a_trial_that_runs_out_of_memory_says_so(tmp_path, monkeypatch, trial, error):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path))  # where nothing is kept of an earlier trial
    embedder = tuned()
    more = {"estimate_longest": {"bf16": False}, "estimate_evaluation": {"length": 20}}
    more["estimate_training"] = {"bf16": False, "length": 20, "negatives": 1}
    runs_out_of_memory(monkeypatch, 5, ERRORS[error])
    with pytest.raises(UserError, match=r"out of memory in a trial with \d+ texts of \d+ tokens: lower model.max_len"):
        getattr(memory, trial)(embedder, **more[trial])
    assert all(weight.grad is None for weight in embedder.model.parameters())


def test_an_update_that_runs_out_of_memory_says_so(tmp_path, monkeypatch):
    def no_room(*arguments, **keywords):
        raise ERRORS["CUDA"]

    monkeypatch.setattr(torch.optim.AdamW, "step", no_room)
    with pytest.raises(UserError, match="out of memory in the update of step 1, where every trained weight"):
        runner.run(settings(tmp_path, *QUIET))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", ["all_reduce", "all_gather", "broadcast", "barrier", "broadcast_object_list"])
def test_out_of_memory_in_a_collective_is_not_put_on_another_process(monkeypatch, name, error):
    def fails(*arguments, **keywords):
        raise ERRORS[error]

    monkeypatch.setattr(distributed.dist, name, fails)
    monkeypatch.setattr(distributed.dist, "get_backend", lambda: "gloo")
    world, weight = World(0, 2), torch.nn.Parameter(torch.ones(2))
    calls = {
        "all_reduce": [
            lambda: world.all_reduce_sum([1.0], torch.device("cpu")),
            lambda: world.all_reduce_max(1),
            lambda: world.all_reduce_gradients([weight]),
        ],
        "all_gather": [lambda: world.all_gather(torch.ones(2, 2), [2, 2])],
        "broadcast": [lambda: world.broadcast_tensors([torch.ones(2)])],
        "barrier": [world.barrier],
        "broadcast_object_list": [lambda: world.broadcast_object(1)],
    }
    for call in calls[name]:
        with pytest.raises(type(ERRORS[error])):
            call()


def test_with_several_processes_out_of_memory_says_what_to_set(monkeypatch):
    state = trainer._State(None, tuned(), None, chunking.Chunking(4000))
    state = trainer._State(
        type("Run", (), {"world": World(0, 2)})(), *(getattr(state, n) for n in ("embedder", "optimizer", "chunking"))
    )
    batch = trainer._Batch(np.arange(2), [], [[(1, 2, 3)]], 600)
    with pytest.raises(UserError, match="out of memory; with several processes, .*train.chunk_tokens=300"):
        trainer._shrink_chunks(state, batch)


# A process that the system kills.


def test_a_training_killed_for_want_of_memory_goes_on_with_half_as_much(tmp_path, monkeypatch, caplog):
    runner.run(settings(tmp_path / "undisturbed", *QUIET))
    kills = [3]
    monkeypatch.setattr(chunking, "kills_by_memory", lambda: kills[0])
    largest = []
    real = chunking.KillMark.begin

    def begin(mark, tokens):
        real(mark, tokens)
        largest.append(mark._tokens)

    monkeypatch.setattr(chunking.KillMark, "begin", begin)
    monkeypatch.setattr(chunking.KillMark, "__exit__", lambda *_: None)  # a killed process does nothing any more
    with pytest.raises(Ended):
        runner.run(settings(tmp_path / "killed", *QUIET), on_row=stop_after(3))
    monkeypatch.undo()
    monkeypatch.setattr(chunking, "kills_by_memory", lambda: 4)
    runner.run(settings(tmp_path / "killed", *QUIET))
    found = budgets(tmp_path / "killed")
    assert found[2] == found[3] == max(largest[-1] // 2, 1) < found[0] == found[1]
    assert f"killed this training for want of memory while {largest[-1]} tokens went through" in caplog.text
    assert_equal_to_rounding(tmp_path / "killed", tmp_path / "undisturbed")
    assert not (run_folder(tmp_path / "killed") / chunking.KillMark.NAME).exists()


def test_a_mark_says_nothing_without_a_kill_after_another_start_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "kills_by_memory", lambda: 3)
    mark = chunking.KillMark(tmp_path)
    mark.begin(500)
    before = os.stat(tmp_path / mark.NAME).st_mtime_ns
    mark.begin(400)
    assert os.stat(tmp_path / mark.NAME).st_mtime_ns == before and mark.killed_at() is None
    monkeypatch.setattr(chunking, "kills_by_memory", lambda: 4)
    assert mark.killed_at() == 500
    monkeypatch.setattr(chunking, "kills_by_memory", lambda: None)
    assert mark.killed_at() is None
    monkeypatch.setattr(chunking, "kills_by_memory", lambda: 4)
    monkeypatch.setattr(chunking, "_boot", lambda: "another")
    assert mark.killed_at() is None
    for damaged in ("", "{}", "[]", "null", '{"tokens": "x", "kills": 3, "boot": "another"}'):
        (tmp_path / mark.NAME).write_text(damaged)
        assert mark.killed_at() is None


def test_chunks_that_hold_no_text_are_refused(tmp_path):
    with pytest.raises(UserError, match="train.chunk_tokens=100: must hold a text of model.max_length=150 tokens"):
        settings(tmp_path, "train.chunk_tokens=100")
