"""Settings that messages name can be pasted into a shell and mean the same there."""

import ast
import re
import shlex
import typing
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises.test_architecture import SOURCES, name_of

from cft.config.compose import all_groups, all_keys, compose_config, parse_overrides
from cft.config.schema import Config, Pooling
from cft.system.overrides import override, overrides, shell_word

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
# Composing takes a tenth of a second, so settings of one kind are tried together.
SETTINGS_OF_TEXT = ("logger.project", "logger.group", "model.eos_token", "outputs")
SETTINGS_OF_TEXTS = ("logger.tags", "lora.targets")
FRACTIONS = ("lr", "loss.temperature", "train.max_grad_norm")
WHOLE_NUMBERS = ("seed", "train.eval_every", "data.holdout")


def tried(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


AWKWARD = (
    "<|im_end|>", "</s>", "it's", 'say "no"', "C:\\", "\\", "\\'", "a\\\\'b", "${HOME}", "\\${HOME}", "$HOME", "$(ls)",
    "`ls`", "!!", "null", "True", "007", "1e5", "nan", ".5", "-1", "a,b", "[a]", "{a: b}", "(a)", " a ", "", "~/x", "*",
    "a=b", "#a", "a;b", "a\nb", "a\tb", "wheel:p==1/f", "é🎻", "a:b", "key='a b'", "&", "1_000", "0x10",
)  # fmt: skip


def pasted(line: str) -> list[str]:
    """The words that a shell hands to a command."""
    return shlex.split(line)


def come_back(values: dict[str, object]) -> None:
    for key, value in values.items():
        assert len(pasted(override(key, value))) == 1
    config = compose_config(pasted(overrides(values)))
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        assert getattr(getattr(config, section) if section else config, name) == value, key


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_come_back(text):
    come_back({"model.eos_token": text, "lora.targets": [text, "query"]})


@tried(15)
@given(st.tuples(*[TEXTS] * len(SETTINGS_OF_TEXT)))
def test_any_text_comes_back(texts):
    come_back(dict(zip(SETTINGS_OF_TEXT, texts, strict=True)))


@tried(30)
@given(st.tuples(*[st.lists(TEXTS, min_size=1, max_size=3)] * len(SETTINGS_OF_TEXTS)))
def test_any_list_of_texts_comes_back(lists):
    come_back(dict(zip(SETTINGS_OF_TEXTS, lists, strict=True)))


@tried(20)
@given(
    st.tuples(*[st.floats(min_value=1e-12, max_value=1.0)] * len(FRACTIONS)),
    st.tuples(*[st.integers(0, 2**32 - 1)] * len(WHOLE_NUMBERS)),
    st.booleans(),
)
def test_numbers_come_back(numbers, whole, flag):
    values = dict(zip(FRACTIONS, numbers, strict=True)) | dict(zip(WHOLE_NUMBERS, whole, strict=True))
    come_back(values | {"loss.hard_negatives": flag, "data.rows": None})


def test_a_choice_is_its_value_and_infinity_is_one():
    assert override("model.pooling", Pooling.mean) == "model.pooling=mean"
    config = compose_config([override("train.max_grad_norm", float("inf"))])
    assert config.train.max_grad_norm == float("inf")


@pytest.mark.parametrize("word", ["plain", "a b", "it's", "$x", "`x`", 'a"b', "a!b'", "\\"])
def test_a_shell_reads_a_word_as_it_was(word):
    assert pasted(shell_word(word)) == [word]


def free_keys(kind: type = Config, prefix: str = "") -> set[str]:
    """Settings that may hold any text, or a list of texts."""
    found = set()
    for field in fields(kind):
        types = {field.type, *typing.get_args(field.type)}
        if types & {str, list[str]}:
            found.add(f"{prefix}{field.name}")
        for section in types:
            if isinstance(section, type) and is_dataclass(section):
                found |= free_keys(section, f"{prefix}{field.name}.")
    return found


# Of a few words each, as a rule says beside them.
FEW_WORDS = {"data.on_bad_row", "lora.init", "device"}
# They make overrides for Hydra or files, not messages, or show what a user typed.
MAKES_OTHERS = {
    "config/advice.py": "a value in the user's own words",
    "config/compose.py": "values of a sweep, in the user's own words",
    "config/sweeps.py": "overrides that are composed at once",
    "config/reference.py": "the page of settings, in YAML's words",
    "study/plan.py": "overrides that are composed at once",
    "study/search.py": "values of a search, in the user's own words",
    "study/runner.py": "the command line of the launcher",
    "system/overrides.py": "the one place",
}


def strings(path):
    """Every text of a module with its line, each value that is filled in as %s."""
    tree = ast.parse(path.read_text())
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(each) for each in ast.walk(node) if isinstance(each, ast.Constant)}
            values = [each.value if isinstance(each, ast.Constant) else "%s" for each in node.values]
            yield node.lineno, "".join(map(str, values))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_message_shows_a_text_of_the_users_by_the_one_function(path):
    if name_of(path) in MAKES_OTHERS:
        return
    free = free_keys() - FEW_WORDS
    for line, text in strings(path):
        for key in re.findall(r"(?<![\w.@])([a-z_.]+)=['\"]?%[sr]", text):
            assert key not in free, f"{name_of(path)}:{line}: {key}= is shown without override(): {text[:80]}"
        assert not re.search(r"(?<![\w])%[sr]=%[sr]", text), f"{name_of(path)}:{line}: {text[:80]}"


def mentions() -> dict[str, str]:
    """Every KEY=VALUE that a text of the package names with a value of its own, with its place."""
    names = {*all_keys(), *all_groups()}
    found = {}
    for path in SOURCES:
        if name_of(path).startswith("deploy/") or name_of(path) == "system/errors.py":
            continue  # keys of other commands, which read them themselves; and a pattern
        for line, text in strings(path):
            for word in re.findall(r"(?<![\w.@'\"])[a-z_.@]+=(?:'[^']*'|\"[^\"]*\"|(?:\(\S*\)|[^\s,;)'\"`])+)", text):
                if word.split("=")[0] in names and "%s" not in word:
                    found[word.rstrip(".:")] = f"{name_of(path)}:{line}"
    assert len(found) > 40
    return found


@pytest.mark.parametrize(("word", "place"), mentions().items())
def test_advice_can_be_pasted(word, place):
    words = pasted(word)
    assert len(words) == 1, place
    parse_overrides(words)


def test_advice_of_a_model_without_eos_can_be_pasted():
    from types import SimpleNamespace

    from cft.config.schema import ModelSettings
    from cft.model.tokenizer import _eos
    from cft.system.errors import UserError

    tokenizer = SimpleNamespace(eos_token_id=None, convert_ids_to_tokens=lambda ids: ["<|im_end|>"])
    with pytest.raises(UserError) as error:
        _eos(ModelSettings(path="x"), tokenizer, 7)
    (line,) = re.findall(r"name one by (.*?), which", str(error.value))
    assert compose_config(pasted(line)).model.eos_token == "<|im_end|>"
