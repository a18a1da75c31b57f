"""The library's door: public functions take what their types say, and refuse the rest by its place in what was given."""

import collections
import dataclasses
import inspect
import io
import itertools
import typing
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny

import cft
from cft import Embedder, MtebEncoder
from cft.config.schema import Prompts, Role
from cft.data.files import BadRows
from cft.data.texts import checked_texts
from cft.deploy.encode import EncodeOptions
from cft.deploy.export import ExportOptions
from cft.deploy.load import find_embedder, load_embedder
from cft.deploy.merge import MergeOptions
from cft.deploy.mine import MineOptions
from cft.deploy.push import PushOptions
from cft.deploy.similar import SimilarOptions, search_file
from cft.evaluation.vector_cache import CachedEncoder
from cft.job.start import choose_device
from cft.system.errors import UserError

TEXTS = ["A man is playing.", "No.", "A man is playing.", "x"]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return make_tiny("llama")


@pytest.fixture(scope="module")
def expected(embedder) -> np.ndarray:
    return embedder.encode(TEXTS)


class Column:
    """What pandas calls a Series: one dimension, texts in order."""

    ndim = 1

    def __iter__(self):
        return iter(TEXTS)


class Table(Column):
    """What pandas calls a DataFrame: it iterates over the names of its columns."""

    ndim = 2


ITERABLES = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "map": lambda: map(str, TEXTS),
    "iterator": lambda: iter(TEXTS),
    "deque": lambda: collections.deque(TEXTS),
    "array of str": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, dtype=object),
    "column": Column,
    "islice": lambda: itertools.islice(itertools.cycle(TEXTS[:2]), 2),
}


@pytest.mark.parametrize("kind", ITERABLES)
def test_every_iterable_with_an_order_gives_all_its_vectors(kind, embedder, expected):
    vectors = embedder.encode(ITERABLES[kind]())
    assert np.array_equal(vectors, expected[: len(vectors)]) and len(vectors) == (2 if kind == "islice" else 4)


@pytest.mark.parametrize(
    "empty", [[], (), iter([]), np.array([], dtype=str)], ids=["list", "tuple", "iterator", "array"]
)
def test_no_texts_give_no_vectors_of_the_models_width(empty, embedder):
    assert embedder.encode(empty).shape == (0, 32)


REFUSED = {
    "str": ("one text", "not one str: put the one text into a list"),
    "bytes": (b"one text", "not one bytes"),
    "None": (None, "not None"),
    "int": (7, r"not 7 \(int\)"),
    "open file": (io.StringIO("a\nb\n"), "not an open file"),
    "binary file": (io.BytesIO(b"a\nb\n"), "not an open file"),
    "dict": ({"text": "a"}, "not a dict, which has no order"),
    "set": ({"a", "b"}, "not a set, which has no order"),
    "table": (Table(), "not a Table of 2 dimensions: give one column"),
    "matrix": (np.array([["a", "b"]]), "not a ndarray of 2 dimensions"),
    "scalar array": (np.array("a"), "not a ndarray of 0 dimensions"),
    "pairs": ([("a", "b"), ("c", "d")], r"text 1 of 2 is no text but \('a', 'b'\) \(tuple\)"),
    "lists": ([["a"], ["b"]], r"text 1 of 2 is no text but \['a'\] \(list\)"),
    "dicts": ([{"text": "a"}], "text 1 of 1 is no text but"),
    "None among equals": (["a"] * 5 + [None], "text 6 of 6 is no text but None"),
    "NaN": (["a", "b", float("nan")], r"text 3 of 3 is no text but nan \(float\)"),
    "number": (np.array([1.0, 2.0]), "text 1 of 2 is no text but"),
    "bytes among texts": (["a", "a", b"b"], "text 3 of 3 is no text but b'b'"),
    "empty": (["a", "a", ""], "text 3 of 3 is empty"),
    "blank": (["a", " \n\t"], "text 2 of 2 is empty"),
    "surrogate": (["a", "a", "a", "\ud800"], "text 4 of 4 holds half a character"),
    "NUL": (["a", "b\0"], "text 2 of 2 holds a NUL byte"),
}


def doors(embedder: Embedder) -> dict:
    """Every public function that takes texts."""
    cached = CachedEncoder(embedder, gigabytes=0, version=1)
    return {
        "encode": embedder.encode,
        "count": embedder.count_cut,
        "tokenize": embedder.tokenize,
        "cached": cached.encode,
        "texts": checked_texts,
    }


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("door", ["encode", "count", "tokenize", "cached", "texts"])
def test_what_is_no_list_of_texts_is_refused_by_its_place(door, case, embedder):
    given, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        doors(embedder)[door](given)


@pytest.mark.parametrize("case", [case for case in REFUSED if isinstance(REFUSED[case][0], list)])
def test_mteb_batches_are_checked_too(case, embedder):
    given, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        MtebEncoder(embedder).encode([{"text": given}])


@pytest.mark.parametrize("inputs", [["a", "b"], [{"body": ["a"]}], None, 3, [None]])
def test_what_is_no_batch_of_mtebs_is_refused(inputs, embedder):
    with pytest.raises(UserError, match='batches that hold texts under the key "text"'):
        MtebEncoder(embedder).encode(inputs)


@pytest.mark.parametrize("thing", [None, "outputs/run", 7])
def test_mteb_wraps_embedders_alone(thing):
    with pytest.raises(UserError, match="MtebEncoder takes an Embedder"):
        MtebEncoder(thing)


@pytest.mark.parametrize("budget", [0, -1, 1.5, "many", True])
def test_a_token_budget_is_a_number_above_0(budget, embedder):
    with pytest.raises(UserError, match="token_budget="):
        embedder.encode(["a"], token_budget=budget)


@pytest.mark.parametrize("template", ["query:", "{text} {text}", "", None, 3, ["{text}"]])
def test_a_prompt_has_one_place_for_the_text(template, embedder):
    with pytest.raises(UserError, match="must hold {text} exactly once"):
        embedder.with_template(template)


@pytest.mark.parametrize("prompts", [("a{text}", None, None), "{text}", None, ["{text}"], {"text": "{text}"}])
def test_prompts_are_prompts(prompts, embedder):
    with pytest.raises(UserError, match=r"^prompts=.*: must be Prompts of cft.config.schema, .* takes one text$"):
        embedder.with_prompts(prompts)


@pytest.mark.parametrize("role", ["qurey", "", None, 3, ["query"], np.array(["query", "text"])])
def test_a_role_is_one_of_three(role, embedder):
    differing = embedder.with_prompts(Prompts("{text}", "q: {text}"))
    for each in (embedder, differing):
        with pytest.raises(UserError, match=r"^role=.*: must be text, query or document"):
            each.in_role(role)
    assert differing.in_role("query").contract == differing.in_role(Role.query).contract != differing.contract
    with pytest.raises(UserError, match="did you mean query"):
        embedder.in_role("qurey")


@pytest.mark.parametrize("progress", [True, False, 1, ["embedding"]])
def test_progress_is_a_caption(progress, embedder):
    for encode in (embedder.encode, embedder.encode_query, embedder.encode_document):
        with pytest.raises(UserError, match=r"^progress=.*: must be a caption such as 'embedding', or None"):
            encode(["a"], progress=progress)


@pytest.mark.parametrize("below", ["", "below/it"])
def test_an_embedder_is_not_saved_over_a_file(below, embedder, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(UserError, match=f"^folder={path / below}: {path} is a file; name a folder to write into"):
        embedder.save(path / below)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("folder", [None, 7, b"x", "a\0b", ["x"], ""])
def test_saving_takes_a_folder(folder, embedder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the folder of an embedder is a path, not "):
        embedder.save(folder)
    assert not list(tmp_path.iterdir())


def test_an_apple_gpu_is_taken_on_request_with_a_word_of_warning(monkeypatch, caplog):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match="device=mps: torch sees no Apple GPU here"):
        choose_device("mps")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert choose_device("mps").type == "mps" and "never been run on an Apple GPU" in caplog.text
    assert choose_device("auto").type != "mps"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu", "", None, 3.5])
def test_a_device_that_is_not_there_is_refused(device, tmp_path, embedder):
    embedder.save(tmp_path)
    with pytest.raises(UserError, match="device="):
        Embedder.load(tmp_path, device=device)


@pytest.mark.parametrize("folder", ["nosuch", "outputs/a/b", "./nosuch", "/nosuch/run", "~/nosuch"])
def test_a_folder_that_is_not_there_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        Embedder.load(folder)


def test_a_run_under_outputs_that_is_not_there_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for outputs in (False, True):
        if outputs:
            (tmp_path / "outputs").mkdir()
        with pytest.raises(UserError, match="outputs/nosuch: no such folder"):
            Embedder.load("outputs/nosuch")


def test_every_public_class_has_been_tried_here():
    """A class that joins the package's door joins this table."""
    assert set(cft.__all__) == {"Embedder", "MtebEncoder", "__version__", "quantize", "train"}
    public = {
        name
        for name, member in inspect.getmembers(Embedder, callable)
        if not name.startswith("_") and "texts" in inspect.signature(member).parameters
    }
    assert public == {"encode", "encode_query", "encode_document", "tokenize", "count_cut"}


OPTIONS = {
    "encode": (EncodeOptions, {"run": "r", "input": "a.txt", "output": "v.npy"}),
    "similar": (SimilarOptions, {"run": "r", "query": "q", "corpus": "a.txt"}),
    "export": (ExportOptions, {"run": "r", "output": "out"}),
    "merge": (MergeOptions, {"runs": ["r", "s"], "weights": []}),
    "mine": (MineOptions, {"run": "r", "train": "a.csv", "out": "b.jsonl"}),
    "push": (PushOptions, {"run": "r", "repo": "me/it"}),
}
HOSTILE = {
    "None": None, "bytes": b"x", "int": 7, "float": 1.5, "NaN": float("nan"), "list": ["x"], "dict": {"x": 1},
    "object": object(), "NUL": "a\0b", "array": np.array(["x"]), "bool": True, "generator": (x for x in "ab"),
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS)
def test_options_take_texts_for_paths_and_choices_and_paths_for_texts(command):
    kind, needed = OPTIONS[command]
    paths = {name: Path(text) for name, text in needed.items() if isinstance(text, str) and name != "repo"}
    assert kind(**needed) == kind(**(needed | paths))
    options = kind(**needed)
    assert not hasattr(options, "on_bad_row") or options.on_bad_row is BadRows.RAISE
    if hasattr(options, "on_bad_row"):
        assert kind(**needed, on_bad_row="skip").on_bad_row is BadRows.SKIP


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("command", OPTIONS)
def test_options_refuse_what_no_command_line_could_give(command, value):
    kind, needed = OPTIONS[command]
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        kinds = {hints[field.name], *typing.get_args(hints[field.name])} & {int, bool, float, type(None)}
        if isinstance(HOSTILE[value], (*kinds, *({int} if float in kinds else ()))) and value != "NaN":
            continue  # of the type
        if {int, bool} & kinds and value in ("int", "bool"):
            continue
        with pytest.raises(UserError, match=f"^'?(data\\.)?{field.name}="):
            kind(**(needed | {field.name: HOSTILE[value]}))


@pytest.mark.parametrize(
    ("command", "field", "value"),
    [
        ("similar", "top", 0), ("similar", "top", -1), ("similar", "top", "x"), ("similar", "vector_cache_gb", -1),
        ("similar", "device", "gpu"), ("encode", "on_bad_row", "ignore"), ("export", "format", "tflite"),
        ("mine", "range_min", -1), ("mine", "num_negatives", 0), ("mine", "sampling_strategy", "best"),
        ("encode", "dimensions", 0), ("export", "adapter", "drop"), ("push", "private", "yes"), ("push", "dry_run", 1), ("push", "format", "merged"),
    ],
)  # fmt: skip
def test_options_keep_the_rules_of_their_keys(command, field, value):
    kind, needed = OPTIONS[command]
    with pytest.raises(UserError, match=f"^{field}=.*: must be "):
        kind(**needed, **{field: value})


@pytest.mark.parametrize("value", [*HOSTILE, "ragged", "flat", "whole"])
def test_only_vectors_are_made_smaller(value):
    given = HOSTILE | {"ragged": [[1.0], [1.0, 2.0]], "flat": np.zeros(3), "whole": np.zeros((2, 3), dtype=np.int64)}
    with pytest.raises(UserError, match="^vectors must be"):
        cft.quantize(given[value], "int8")


@pytest.mark.parametrize("query", ["", " \n", "a\0b", "\ud800"])
def test_a_query_is_a_text(query, trained, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a\nb\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{query}\n"))  # where an empty one would be read from
    with pytest.raises(UserError, match="the query (on line 1 of stdin )?(is empty|holds)|^query=.*NUL"):
        search_file(SimilarOptions(run=trained, query=query, corpus=tmp_path / "a.txt"))


@pytest.mark.parametrize("name", [None, 7, b"x", "a\0b", ["x"]])
def test_an_embedder_is_found_by_a_name_or_a_path(name):
    with pytest.raises(UserError, match="^run="):
        find_embedder(name)
    with pytest.raises(UserError, match="^run="):
        load_embedder(name)


@pytest.mark.parametrize("name", [None, 7, b"x", "a\0b", ["x"]])
@pytest.mark.parametrize("key", ["model", "path"])
def test_an_embedder_is_named_by_texts(key, name):
    with pytest.raises(UserError, match=f"^{key}="):
        load_embedder(**{key: name})


@pytest.mark.parametrize("command", ["encode", "similar", "export", "mine"])
@pytest.mark.parametrize("named", [{}, {"run": "r", "model": "tiny"}, {"model": "tiny", "path": "p"}])
def test_options_name_one_embedder(command, named):
    kind, needed = OPTIONS[command]
    others = {name: value for name, value in needed.items() if name != "run"}
    with pytest.raises(UserError, match=r"give one of run=NAME .*model=CHOICE .*path=FOLDER"):
        kind(**others, **named)
    with pytest.raises(UserError, match=r"give one of run=NAME .*model=CHOICE .*path=FOLDER"):
        load_embedder(**named)


@pytest.mark.parametrize("folder", [None, 7, b"x", "a\0b", ["x"], ""])
def test_loading_takes_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        Embedder.load(folder)


@pytest.mark.parametrize("vectors", [None, "x", [["a"]], np.zeros((2, 3, 4)), np.zeros((2, 5))])
def test_similarities_are_of_vectors_of_one_width(vectors, embedder):
    good = np.zeros((2, 32), dtype=np.float32)
    for measure in (MtebEncoder(embedder).similarity, MtebEncoder(embedder).similarity_pairwise):
        with pytest.raises(UserError, match="vectors"):
            measure(vectors, good)
        with pytest.raises(UserError, match="vectors"):
            measure(good, vectors)
