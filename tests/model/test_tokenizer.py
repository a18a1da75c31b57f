"""Texts to tokens, for each family's kind of tokenizer: EOS exactly once, prompts that stay whole, words that stay words."""

import pytest
import transformers
from byte_tokenizers import byte_level
from conftest import make_tiny, write_model

from cft.config.schema import Attention, ModelSettings
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.model.tokenizer import byte_tokenizer, prompted_ids, tokenizer_digest
from cft.system.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?!'<>/|_[]"


def sentence_piece(kind, specials, **more):
    """Llama's and Gemma's kind: blanks as ▁, bytes for what has no token."""
    words = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, "▁t", "in"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return kind(vocab=vocabulary, merges=[("▁", "t"), ("i", "n")], add_bos_token=True, **more)


def word_piece():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS.lower(), *(f"##{letter}" for letter in LETTERS)]
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(dict.fromkeys(words))})


def added(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


LLAMA = ["<unk>", "<s>", "</s>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>"]
# Tokenizer, what it puts before a text by itself, its EOS.
KINDS = {
    "llama": (lambda: sentence_piece(transformers.LlamaTokenizer, LLAMA), ["<s>"], "</s>"),
    "llama with its own EOS": (
        lambda: sentence_piece(transformers.LlamaTokenizer, LLAMA, add_eos_token=True),
        ["<s>"],
        "</s>",
    ),
    "gemma": (lambda: sentence_piece(transformers.GemmaTokenizer, GEMMA), ["<bos>"], "<eos>"),
    "gpt2": (lambda: byte_level(transformers.GPT2Tokenizer), [], "<|endoftext|>"),
    "phi (CodeGen)": (lambda: byte_level(transformers.CodeGenTokenizer), [], "<|endoftext|>"),
    "gpt_neox": (lambda: byte_level(transformers.GPTNeoXTokenizer), [], "<|endoftext|>"),
    "qwen2": (lambda: added(byte_level(transformers.Qwen2Tokenizer)), [], "<|endoftext|>"),
    "opt (EOS is BOS)": (
        lambda: byte_level(transformers.GPT2Tokenizer, bos_token="</s>", eos_token="</s>", add_bos_token=True),
        ["</s>"],
        "</s>",
    ),
    "byt5 (in Python)": (transformers.ByT5Tokenizer, [], "</s>"),
}
TEXTS = ["in the inn", "A man, playing.", "thé 漢字 🙂", "x"]


@pytest.fixture(params=KINDS)
def family(request, tmp_path):
    """A tiny model with one family's kind of tokenizer, loaded from its folder, and what its tokenizer is to do."""
    make, before, eos = KINDS[request.param]
    return load(tmp_path, make()), before, eos


def load(folder, tokenizer, **settings):
    write_model(folder, "llama", vocab_size=2 * len(tokenizer) + 300)
    tokenizer.save_pretrained(folder)
    return Embedder.base(ModelSettings(path=str(folder), **settings))


def test_a_text_has_its_familys_beginning_and_its_eos_once(family):
    embedder, before, eos = family
    tokenizer = embedder.backbone.tokenizer
    assert tokenizer.convert_ids_to_tokens(list(embedder.contract.prefix_ids)) == before
    for text, ids in zip(TEXTS, embedder.tokenize(TEXTS), strict=True):
        words = tokenizer.convert_ids_to_tokens(list(ids))
        assert words[: len(before)] == before and words[-1] == eos
        assert words[len(before) :].count(eos) == 1
        assert tokenizer.decode(ids[len(before) : -1]).strip() == text


def test_truncation_keeps_beginning_and_eos(family, tmp_path):
    embedder, before, _ = family
    short = Embedder.base(ModelSettings(path=embedder.contract.model, max_length=6))
    whole, cut = embedder.tokenize(["A man playing in the inn"])[0], short.tokenize(["A man playing in the inn"])[0]
    assert len(cut) == 6 and cut[-1] == whole[-1]
    assert cut[:-1] == whole[:5]


def test_a_prompt_is_tokenised_with_its_text_and_keeps_its_blanks(family):
    embedder, before, _ = family
    for template in ("This sentence: {text} means in one word: ", " {text}", "{text} is: "):
        (ids,) = embedder.with_template(template).tokenize(["the inn"])
        joined = embedder.backbone.tokenizer(template.replace("{text}", "the inn"), add_special_tokens=False)
        assert list(ids[len(before) : -1]) == joined["input_ids"]


def test_a_text_that_is_too_long_is_cut_before_the_prompts_end(family):
    embedder, before, _ = family
    tokenizer = embedder.backbone.tokenizer
    short = Embedder.base(ModelSettings(path=embedder.contract.model, max_length=24)).with_template("a {text} is: ")
    (ids,) = short.tokenize(["the inn, " * 30])
    assert len(ids) == 24
    assert tokenizer.decode(ids[len(before) : -1]).strip().startswith("a the inn, ")
    assert tokenizer.decode(ids[:-1]).endswith(" is: ") or tokenizer.decode(ids[:-1]).endswith(" is:")


def test_a_prompt_longer_than_all_room_is_refused(family):
    embedder, _, _ = family
    short = Embedder.base(ModelSettings(path=embedder.contract.model, max_length=12))
    with pytest.raises(UserError, match=r"the prompt '\{text\} means .*' alone has .* no room left"):
        short.with_template("{text} means in one word, said plainly: ").tokenize(["the inn"])


def test_special_tokens_written_in_a_text_are_words(family):
    embedder, before, eos = family
    (ids,) = embedder.tokenize([f"a {eos} b"])
    special = embedder.backbone.tokenizer.convert_tokens_to_ids(eos)
    assert list(ids[len(before) :]).count(special) == 1 and ids[-1] == special
    assert len(ids) > len(before) + 4


def test_special_tokens_written_in_a_prompt_are_special(tmp_path):
    embedder = load(tmp_path, added(byte_level(transformers.Qwen2Tokenizer)))
    tokenizer = embedder.backbone.tokenizer
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    chat = embedder.with_template("<|im_start|>user {text}")
    plain, tricky = chat.tokenize(["a b", "a <|im_start|> b"])
    assert plain[0] == start and plain.count(start) == 1
    assert tricky[0] == start and tricky.count(start) == 1, "the text's own stays words"
    assert tokenizer.decode(tricky[:-1]) == "<|im_start|>user a <|im_start|> b"


def test_special_tokens_without_a_use_of_their_own_are_words_in_a_text_too(tmp_path):
    tokenizer = added(byte_level(transformers.Qwen2Tokenizer))
    tokenizer.add_tokens([transformers.AddedToken("<file_sep>", special=True)], special_tokens=True)
    chat = load(tmp_path, tokenizer).with_template("<|im_start|>user {text}")
    assert "<file_sep>" not in chat.backbone.tokenizer.all_special_tokens
    alone, beside = chat.tokenize(["<file_sep>", "<file_sep><|im_end|>"])
    separator = chat.backbone.tokenizer.convert_tokens_to_ids("<file_sep>")
    assert separator not in alone and separator not in beside
    assert alone[:-1] == beside[: len(alone) - 1], "what else stands in a text does not change how it is read"


def test_special_tokens_without_a_use_of_their_own_are_special_in_a_prompt_too(tmp_path):
    tokenizer = added(byte_level(transformers.Qwen2Tokenizer))
    tokenizer.add_tokens([transformers.AddedToken("<start_of_turn>", special=True)], special_tokens=True)
    embedder = load(tmp_path, tokenizer)
    start = embedder.backbone.tokenizer.convert_tokens_to_ids("<start_of_turn>")
    alone, beside = (
        embedder.with_template(template).tokenize(["a b", "a <start_of_turn> b"])
        for template in ("<start_of_turn>user {text}", "<start_of_turn>user {text}<|im_end|>")
    )
    for (plain, tricky), end in ((alone, -1), (beside, -2)):
        assert plain[0] == tricky[0] == start and plain.count(start) == tricky.count(start) == 1
        assert embedder.backbone.tokenizer.decode(tricky[1:end]) == "user a <start_of_turn> b"
    assert [ids[:-1] for ids in alone] == [ids[:-2] for ids in beside], "what else stands in a prompt changes nothing"


def test_an_encoders_tokenizer_keeps_its_own_suffix(tmp_path):
    write_model(tmp_path, "bert", vocab_size=400)
    word_piece().save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path), attention=Attention.bidirectional, append_eos=False)
    embedder = Embedder.base(settings)
    (ids,) = embedder.tokenize(["ab [SEP] c"])
    words = embedder.backbone.tokenizer.convert_ids_to_tokens(list(ids))
    assert words[0] == "[CLS]" and words[-1] == "[SEP]" and words.count("[SEP]") == 1
    assert words[1:3] == ["a", "##b"]


def without_eos():
    tokenizer = byte_level(transformers.GPT2Tokenizer)
    tokenizer.eos_token = None
    return tokenizer


def test_a_tokenizer_without_eos_is_refused_with_the_token_that_the_model_names(tmp_path):
    message = r"no EOS token to embed; name one by \"model\.eos_token='<\|endoftext\|>'\", which the model's own"
    write_model(tmp_path, "llama", vocab_size=400, eos_token_id=len(byte_level(transformers.GPT2Tokenizer)) - 1)
    without_eos().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        Embedder.base(ModelSettings(path=str(tmp_path)))
    named = Embedder.base(ModelSettings(path=str(tmp_path), eos_token="<|endoftext|>"))
    (ids,) = named.tokenize(["ab"])
    assert named.backbone.tokenizer.convert_ids_to_tokens(list(ids)) == ["a", "b", "<|endoftext|>"]
    bare = Embedder.base(ModelSettings(path=str(tmp_path), append_eos=False))
    assert bare.tokenize(["ab"]) == [ids[:2]]


def test_an_eos_that_is_no_token_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"model\.eos_token='<\|im_ent\|>'\" is no token .*Did you mean '<\|im_end\|>'"):
        load(tmp_path, added(byte_level(transformers.Qwen2Tokenizer)), eos_token="<|im_ent|>")


def test_another_eos_is_part_of_the_contract(tmp_path):
    embedder = load(tmp_path, added(byte_level(transformers.Qwen2Tokenizer)), eos_token="<|im_end|>")
    words = embedder.backbone.tokenizer.convert_ids_to_tokens(list(embedder.tokenize(["a"])[0]))
    assert words == ["a", "<|im_end|>"]
    embedder.contract.save(tmp_path / "kept")
    assert Contract.load(tmp_path / "kept").eos_token == "<|im_end|>"


def test_tokens_beyond_the_models_embeddings_are_refused(tmp_path):
    tokenizer = byte_level(transformers.GPT2Tokenizer)
    write_model(tmp_path, "llama", vocab_size=len(tokenizer))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path)
    embedder = Embedder.base(ModelSettings(path=str(tmp_path)))
    with pytest.raises(UserError, match=r"text 2 of 2, 'a zebra', holds token \d+, beyond the model's \d+ embeddings"):
        embedder.tokenize(["a horse", "a zebra"])
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"special token \d+ is beyond the model's \d+ embeddings"):
        Embedder.base(ModelSettings(path=str(tmp_path)))


def test_a_digest_names_what_a_tokenizer_does():
    kinds = [make() for make, _, _ in KINDS.values()]
    assert tokenizer_digest(kinds[0]) == tokenizer_digest(KINDS["llama"][0]())
    changed = transformers.ByT5Tokenizer(extra_ids=3)
    assert tokenizer_digest(changed) != tokenizer_digest(transformers.ByT5Tokenizer())
    assert len({tokenizer_digest(kind) for kind in kinds}) >= 7  # three are byte-level BPE of the same words


def test_the_space_for_a_text_is_counted_in_tokens_not_letters():
    tokenizer = byte_level(transformers.GPT2Tokenizer)
    assert [len(body) for body in prompted_ids(tokenizer, ["in the", "in the inn"], "{text}", 4).rows] == [3, 4]


def test_the_tiny_tokenizer_needs_no_file():
    assert make_tiny("llama").tokenize(["a"])[0][-1] == byte_tokenizer().eos_token_id
