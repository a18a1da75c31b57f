"""Tokenizers made for tests."""

from cft.model.tokenizer import byte_tokenizer


def byte_level(kind, **special):
    """GPT-2's kind: a token a byte, blanks as Ġ, and two words that start with a blank."""
    alphabet = sorted(set(byte_tokenizer().get_vocab()) - {"<pad>", "<eos>"})
    words = [*alphabet, "Ġt", "Ġth", "in"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return kind(vocab=vocabulary, merges=[("Ġ", "t"), ("Ġt", "h"), ("i", "n")], **special)
