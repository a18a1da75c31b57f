"""Which texts count as the same where rows are held out, documents are told apart and test texts looked for."""

import unicodedata

import pytest

from cft.data.holdout import hold_out
from cft.data.records import Triplet
from cft.data.texts import normalized

ALIKE = [
    ("Hello, World!", "hello world"),
    ("it's", "its"),
    ("``A quote''", '"a quote"'),
    ("well-known", "well known"),
    ("snake_case", "snakecase"),
    ("in 2015.", "(in 2015)"),
    ("# Title", "title"),
    ("C#.", "c#"),
    ("\u22125 degrees", "-5 degrees"),
    ("a 5-3 win", "a 5 3 win"),
    ("Straße", "STRASSE"),
    ("caf\u00e9 zero\u200bwidth", unicodedata.normalize("NFD", "Caf\u00e9 zerowidth")),
]
DIFFERENT = [
    ("C++ 17", "C# 17"),
    ("C++ 17", "C 17"),
    ("-5", "5"),
    ("1.5", "15"),
    ("1/2", "12"),
    ("5%", "$5"),
    ("x<y", "x>y"),
    ("दिन", "दान"),
    ("\U0001f600", "\U0001f621"),
    ("pêche", "péché"),
    ("...", "!!!"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_case_blanks_and_punctuation_make_no_other_text(one, other):
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_signs_that_mean_something_do(one, other):
    assert normalized(one) != normalized(other)


def test_ascii_texts_are_reduced_alike_on_both_ways():
    for code in range(1, 128):
        word = f"a{chr(code)}b c"
        assert normalized(f"{word} \u00e9") == normalized(word) + "\u00e9", repr(word)


def test_rows_in_another_normal_form_are_held_out_with_theirs():
    rows = [Triplet(f"où est l'été {n} ?", f"réponse {n} étoilée", ()) for n in range(50)]
    rows += [Triplet(*(unicodedata.normalize("NFD", text) for text in row[:2]), ()) for row in rows]
    numbers, held = hold_out(rows, 10, 42)
    trained = {unicodedata.normalize("NFC", rows[number].anchor) for number in numbers}
    assert len(held) == 10 and trained.isdisjoint(unicodedata.normalize("NFC", row.anchor) for row in held)
