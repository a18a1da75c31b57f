"""The doctor: what it says of a model, that its estimates hold, and that its checks can fail."""

import re

import pytest
import torch
import transformers
from batches import TEACHER
from byte_tokenizers import byte_level
from conftest import make_tiny, write_model
from jobs import CAPTIONS, DEV, composed

from cft.config.schema import Attention, LoraSettings
from cft.job import doctor
from cft.model.embedder import Embedder
from cft.model.lora import add_lora
from cft.system.errors import UserError
from cft.training import memory
from cft.training.losses import info_nce

TINY = ["model=tiny", *CAPTIONS, DEV, "data.rows=100", "train.batch_size=8"]


def examined(*overrides: str) -> str:
    text, healthy = doctor.examine(composed(*TINY, *overrides))
    assert healthy, text
    return text


def test_a_file_that_cannot_be_trained_on_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("question,answer\na,b\n")
    for name, what in (("none.csv", "no such file"), ("other.csv", "its columns are 'question', 'answer'")):
        with pytest.raises(UserError, match=what):
            doctor.examine(composed("model=tiny", "data=files", f"data.train={tmp_path / name}", "logger=none"))


def test_it_says_how_a_text_becomes_an_embedding():
    text = examined("prompt=prompt3", "model.layer=1", "model.pooling=weighted_mean")
    assert re.search(r"held by +LlamaModel: 1 layers, hidden size 32", text)
    assert re.search(r"batches +prefix trees, exact by trial", text)
    assert re.search(r"before a text +nothing", text) and re.search(r"after a text +<eos> \(our EOS\)", text)
    assert re.search(r"prompt +'\{text\} is: '", text)
    assert re.search(r"embedding +the mean of all tokens' states, later ones weighing more of layer 1", text)
    assert re.search(r"trained +LoRA of rank 8 on q_proj, v_proj: 896 of", text)
    assert re.search(r"^token +A +Ġ +m .* Ġ +<eos>$", text, re.MULTILINE)
    assert len(re.findall(" holds$", text, re.MULTILINE)) == 4


def test_it_says_that_a_text_goes_in_twice_and_how_it_looks_then():
    text = examined("model.echo=true", "model.pooling=mean", "model.max_length=120", "prompt.template='<eos>{text}'")
    assert re.search(r"echo +the text goes in twice, and is pooled the second time", text)
    assert re.search(r"^token +<eos> +A +Ġ +m .*<eos> +A +Ġ +m .* <eos>$", text, re.MULTILINE)
    assert re.search(r"a long text is cut to max_length +119 tokens +119 tokens +holds", text)


def test_it_says_that_all_layers_are_summed_by_weights_that_are_trained():
    text = examined("model.layer_weights=true")
    assert re.search(r"embedding +the last token's state of all layers, summed by trained weights", text)
    assert re.search(r"trained +LoRA of rank 8 on q_proj, v_proj and a weight for each layer: 1,794 of", text)


def test_it_says_which_rows_of_a_fused_layer_are_trained():
    assert "on c_attn (only the rows of query and value)" in examined("model.path=random:gpt2")


def test_a_model_that_must_be_padded_says_why_and_what_it_runs_on():
    text = examined("model.path=random:bloom")
    assert re.search(r"batches +padded: BloomModel has no exchangeable attention", text)
    assert re.search(r"device +cpu, \d+ threads, eager attention", text)


def test_without_training_nothing_is_said_of_training():
    text = examined("train.steps=0", "model.attention=bidirectional")
    assert "trained" not in text and "training" not in text
    assert re.search(r"batches +one row without padding", text) and re.search(r"attention +both ways", text)


def figures(text: str, row: str) -> list[float]:
    """Sizes of a row of the doctor's table of memory, in MiB."""
    return [float(size) for size in re.findall(r"(\S+) MiB", re.search(rf"^{row} .*$", text, re.MULTILINE)[0])]


def test_a_first_stage_is_said_as_nothing_counts_it():
    more = ["first=docstrings", "first.steps=7", "first.data.packages=[click]"]
    assert "first stage  7 steps on docstrings before all this, which nothing here counts" in examined(*more)
    assert "first stage" not in examined()


def test_a_teachers_memory_is_counted_where_it_is_there():
    taught = examined(*TEACHER)
    alone, with_teacher = (figures(text, "training, the first 8 of captions") for text in (examined(), taught))
    teacher = memory.weight_bytes(make_tiny("bert", attention=Attention.bidirectional).model) / 2**20
    assert with_teacher[0] - alone[0] == pytest.approx(teacher, abs=0.1) and with_teacher[1:3] == alone[1:3]
    assert figures(taught, "training, a full batch of the teacher")[0] == with_teacher[0]
    assert figures(taught, "evaluation, a full batch")[0] == alone[0]
    assert "a teacher's weights stay beside the model's" in taught


def test_a_guides_memory_and_that_of_scored_pairs_are_counted(tmp_path):
    guided = examined("loss.guide=tiny")
    alone, with_guide = (figures(text, "training, the first 8 of captions") for text in (examined(), guided))
    guide = memory.weight_bytes(make_tiny("llama").model) / 2**20
    assert with_guide[0] - alone[0] == pytest.approx(guide, abs=0.1)
    assert figures(guided, "training, a full batch of the guide")[0] == with_guide[0]
    assert "a guide's weights stay beside the model's" in guided
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2,score\n" + "".join(f"a {n},b {n},{n % 5}\n" for n in range(40)))
    text = examined(f"data.scored={pairs}", "loss.scored=cosent", "train.scored_batch=16")
    assert figures(text, "training, 8 triplets and 16 scored pairs of max_length")[2] > 2 * alone[2]
    row = "training, 8 triplets( and 16 scored pairs)? of max_length"
    counts = [
        int(re.search(rf"^{row} +([\d,]+)", each, re.MULTILINE)[2].replace(",", "")) for each in (examined(), text)
    ]
    assert counts == [8 * 3 * 150, (8 * 3 + 2 * 16) * 150]


def test_it_says_how_many_biases_are_trained():
    assert re.search(
        r"LoRA of rank 8 on q_proj, v_proj and 4 biases: ", examined("model.path=random:phi", "lora.bias=lora_only")
    )


def test_data_that_cannot_be_fetched_here_are_said_and_replaced_by_an_assumption(caplog):
    caplog.set_level("INFO", logger="cft.doctor")
    text, healthy = doctor.examine(composed("model=tiny", "data=nli", "train.batch_size=8", "logger=none"))
    assert healthy and "20 tokens a text are assumed: " in caplog.text
    assert "8 triplets of usual length" in text


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_a_batchs_memory_is_foretold_from_small_ones(family):
    base = make_tiny(family)
    embedder = Embedder(add_lora(base.model, LoraSettings(), seed=0), base.backbone, base.contract)
    layout = embedder.layout(memory._texts(embedder, 90, 20))

    def step():
        anchor, positive, negative = embedder.forward(layout).split([30, 30, 30])
        info_nce(anchor, positive, negative, temperature=0.05).loss.backward()

    foretold = memory.estimate_training(embedder, length=20, negatives=1, bf16=False).bytes_for(layout.nodes)
    embedder.model.train()
    assert memory.peak_bytes(step, embedder.device) == pytest.approx(foretold, rel=0.1)

    def batch():
        with torch.inference_mode():
            embedder.forward(layout)

    embedder.model.eval()
    foretold = memory.estimate_evaluation(embedder, length=20).bytes_for(layout.nodes)
    assert memory.peak_bytes(batch, embedder.device) == pytest.approx(foretold, rel=0.1)


def test_memory_is_counted_while_it_is_held():
    def work():
        one = torch.zeros(1000, 250)  # a megabyte
        other = one + 1
        del one
        other.mul_(2)
        torch.cat([other, other])

    assert memory.peak_bytes(work, torch.device("cpu")) == 3_000_000


def test_gradient_checkpointing_is_foretold_to_need_less():
    def need(text: str) -> float:
        return float(re.search(r"training, the first 8 of captions .* (\S+) MiB$", text, re.MULTILINE)[1])

    assert need(examined("train.gradient_checkpointing=true")) < 0.8 * need(examined())


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "available_bytes", lambda device: 1000)
    text = examined()
    assert "more than is free: training, the first 8 of captions; training" in text
    assert "train.gradient_checkpointing=true" in text


def test_a_batch_that_is_not_exact_fails_its_check(monkeypatch):
    from cft.batching import prefix_tree

    attend = prefix_tree.F.scaled_dot_product_attention

    def broken(query, key, value, **more):
        return attend(query, key, value, **more) + (query.shape[0] > 1)  # only batches of several texts are off

    embedder = make_tiny("llama")
    monkeypatch.setattr(prefix_tree.F, "scaled_dot_product_attention", broken)
    alone, padded = doctor._batch_checks(embedder)
    assert not alone.holds


def test_an_eos_that_stands_twice_fails_its_check(tmp_path):
    write_model(tmp_path, "llama", vocab_size=400)
    tokenizer = byte_level(transformers.GPT2Tokenizer)
    tokenizer.save_pretrained(tmp_path)
    embedder = Embedder.base(composed("model=tiny", f"model.path={tmp_path}").model)
    assert all(check.holds for check in doctor._token_checks(embedder))
    tokenize = Embedder.tokenize
    twice = Embedder(embedder.model, embedder.backbone, embedder.contract)
    twice.tokenize = lambda texts: [(*ids, ids[-1]) for ids in tokenize(embedder, texts)]
    assert not any(check.holds for check in doctor._token_checks(twice))


def test_the_command_ends_with_what_it_found(commands):
    done = commands.run("cft.doctor", *TINY)
    assert done.status == 0 and "the contract" in done.out
    wrong = commands.run("cft.doctor", *TINY, "model.layer=9")
    assert wrong.status == 2
    assert wrong.err == "cft: model.layer=9: this model has layers 1 to 2 (or -1 to -2)\n"
