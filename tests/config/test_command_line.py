"""The dialect of all commands: KEY=VALUE or dashes, into typed options; what is wrong is named."""

import importlib
import subprocess
import sys
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest

from cft import doctor, encode, export, probe, push, report, runs, search, similar
from cft.config.command_line import CommandLine, Rules
from cft.study.__main__ import RunOptions
from cft.system.errors import UserError


@dataclass(frozen=True)
class Example:
    """Do something."""

    query: Annotated[str, "a text"]
    _: KW_ONLY
    run: Annotated[str, "which"]
    top: Annotated[int, "how many"] = 10
    mode: Annotated[Literal["a", "b"], "how"] = "a"


EXAMPLE = CommandLine("cft.example", Example)


class Kind(Enum):
    SMALL = "small-one"
    LARGE = "large-one"


@dataclass(frozen=True)
class Leading:
    """Look for something."""

    place: Annotated[Path, "where"]
    query: Annotated[str, "a text", Rules(leads=True)] = ""
    _: KW_ONLY
    top: Annotated[int, "how many"] = 10


@dataclass(frozen=True)
class Many:
    """Do many things."""

    names: Annotated[list[str], "of things"]
    command: Annotated[Literal["run", "plan"], "what to do"]
    _: KW_ONLY
    overrides: Annotated[list[str], "settings of all"]
    seeds: Annotated[list[int], "each is tried"] = field(default_factory=list)
    scale: Annotated[str, "how large"] = "paper"
    proposal_seed: Annotated[int, "of proposals", Rules(least=0, dashed="seed")] = 0
    kind: Annotated[Kind, "which"] = Kind.SMALL
    into: Annotated[Path | None, "a page"] = None
    pruning: Annotated[bool, "give up"] = True
    dry_run: Annotated[bool, "only say"] = False


MANY = CommandLine("cft.many", Many, example="run a scale=small", notes="that is all")


def test_keys_and_places_come_in_any_order():
    expected = Example(query="x = y", run="r", top=10, mode="b")
    assert EXAMPLE.read(["mode=b", "x = y", "run=r"]) == expected
    assert EXAMPLE.read(["x = y", "run=r", "mode=b"]) == expected
    assert EXAMPLE.read(["E=mc2", "run=r"]).query == "E=mc2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["q"], r"run= is missing \(which\); usage: python -m cft.example run=... QUERY \[KEY=VALUE ...\]"),
        (["run=r"], r"query is missing \(a text\)"),
        (["run=r", "q", "more"], "'more' is one argument too many"),
        (["run=r", "q", "run=s"], "run= is given twice"),
        (["run=r", "q", "tpo=3"], "has no key 'tpo'; did you mean top="),
        (["run=r", "q", "mode=c"], "mode=c: must be a or b"),
        (["run=r", "q", "--tpo", "3"], r"has no key 'tpo'; did you mean top=\?"),
        (["run=r", "q", "--top", "3", "top=4"], "top= is given twice"),
        (["run=r", "q", "--top"], "top=: must be a whole number, 1 or more"),
    ],
)
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(UserError, match=message):
        EXAMPLE.read(given)


def test_a_leading_place_is_left_out_where_a_word_is_missing():
    command = CommandLine("cft.leading", Leading)
    place = Path("a.txt")
    assert command.read(["a query", "top=3", "a.txt"]) == Leading(place, "a query", top=3)
    assert command.read(["a.txt", "top=3"]) == Leading(place, top=3)
    assert (
        command.read(["a query", "place=a.txt"])
        == command.read(["query=a query", "a.txt"])
        == Leading(place, "a query")
    )
    assert "usage: python -m cft.leading [QUERY] PLACE [KEY=VALUE ...]" in command.help()
    with pytest.raises(UserError, match="place is missing"):
        command.read([])
    with pytest.raises(UserError, match="'more' is one argument too many"):
        command.read(["a", "b", "more"])
    with pytest.raises(UserError, match="query is empty"):
        command.read(["", "a.txt"])


def test_numbers_are_checked():
    assert EXAMPLE.read(["run=r", "q", "top=3"]).top == 3
    for value in ("0", "-1", "1.5", "x", ""):
        with pytest.raises(UserError, match=f"top={value}: must be a whole number, 1 or more"):
            EXAMPLE.read(["run=r", "q", f"top={value}"])


def test_help_names_every_key(capsys):
    for command in (EXAMPLE, MANY, *(module.COMMAND for module in COMMANDS)):
        with pytest.raises(SystemExit) as done:
            command.read(["--help"])
        said = capsys.readouterr().out
        assert done.value.code == 0
        assert all(f"{name}=" in said for name in command.keys) and all(name.upper() in said for name in command.places)
        assert command.options.__doc__.splitlines()[0] in said


COMMANDS = (doctor, encode, export, probe, push, report, runs, search, similar)


def test_values_have_the_types_of_their_fields():
    words = ["plan", "scale=small", "seeds=3,1", "kind=large-one", "into=~/page.md", "dry_run=true", "pruning=false"]
    options = MANY.read(words)
    assert (options.command, options.scale, options.seeds, options.kind) == ("plan", "small", [3, 1], Kind.LARGE)
    assert options.into == Path.home() / "page.md" and options.dry_run is True and options.pruning is False
    assert MANY.read(["plan", "into=null"]).into is None


def test_dashes_say_the_same_as_key_and_value():
    dashed = "--scale small run --seeds 3,1 --dry-run --no-pruning --kind=large-one --seed 0 --into p=q.md"
    plain = "run scale=small seeds=3,1 dry_run=true pruning=false kind=large-one proposal_seed=0 into=p=q.md"
    assert MANY.read(dashed.split()) == MANY.read(plain.split())
    assert MANY.read(["run", "--pruning", "--dry-run=false"]) == MANY.read(["run"])


def test_what_is_no_key_of_the_command_is_a_name_or_an_override_of_its_jobs():
    options = MANY.read(["seed=5", "run", "lora.rank=4,8", "one", "scale=small", "two", "lr=tag(log,interval(1,2))"])
    assert options.names == ["one", "two"]
    assert options.overrides == ["seed=5", "lora.rank=4,8", "lr=tag(log,interval(1,2))"]
    assert options.proposal_seed == 0 and options.scale == "small"


def test_quotes_around_a_value_are_taken_off_as_hydra_does_and_a_text_keeps_its_own():
    options = EXAMPLE.read(["run='a, {text}'", '"quoted"'])
    assert options.run == "a, {text}" and options.query == '"quoted"'
    assert EXAMPLE.read(["run=${HOME}", "???"]) == Example(run="${HOME}", query="???")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"command is missing \(what to do\); usage: python -m cft.many COMMAND NAMES ... \[KEY=VALUE ...\]"),
        (["rnu"], r"command rnu: must be run or plan; did you mean run\?"),
        (["run", "seeds=1,x"], "seeds=1,x: must be whole numbers with commas between, as in 1,2,3"),
        (["run", "kind=large"], "kind=large: must be small-one or large-one; did you mean large-one"),
        (["run", "dry_run=yes"], "dry_run=yes: must be true or false"),
        (["run", "--seed=-1"], "proposal_seed=-1: must be a whole number, 0 or more"),
        (["run", "--scael", "small"], r"cft.many has no key 'scael'; did you mean scale=\?"),
    ],
)
def test_wrong_words_of_a_command_with_names_and_overrides_are_named(given, message):
    with pytest.raises(UserError, match=message):
        MANY.read(given)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("cft.doctor", "phi2"),
        ("cft.encode", "run=x a.txt"),
        ("cft.export", "fromat=peft run=x out"),
        ("cft.probe", "--layers 3"),
        ("cft.push", "run=x"),
        ("cft.report", "table4 format=pdf"),
        ("cft.runs", "lits"),
        ("cft.search", "lora.rank=4,8"),
        ("cft.similar", "run=x top=none query a.txt"),
        ("cft.study.__main__", "rnu table4"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_line(module, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, *words.split()])
    with pytest.raises(SystemExit) as done:
        importlib.import_module(module).main()
    said = capsys.readouterr()
    assert done.value.code == 2
    assert said.err.startswith("cft: ") and said.err.count("\n") == 1 and not said.out


def test_a_list_of_names_comes_behind_the_command_of_a_study():
    options = CommandLine("cft.study", RunOptions).read(
        ["pack", "--scale", "smoke", "outputs=o", "table6", "--to", "x"]
    )
    assert (options.command, options.experiments, options.overrides) == ("pack", ["table6"], ["outputs=o"])
    assert options.to == Path("x")


def test_a_report_is_named_and_formatted_by_dashes_too():
    options = report.COMMAND.read(
        ["table4", "--scale", "smoke", "--format", "latex", "lr=1e-4", "--into", "page.md", "all"]
    )
    assert options.experiments == ["table4", "all"] and options.names[:2] == ["table4", "table1"]
    assert (options.scale, options.format, options.into) == ("smoke", "latex", Path("page.md"))
    assert options.overrides == ["lr=1e-4"]


def test_runs_are_filtered_by_any_setting_and_removed_without_asking():
    options = runs.COMMAND.read(["--outputs", "o", "list", "lr=5e-4", "model=smollm2"])
    assert (options.command, options.runs, options.outputs) == ("list", ["lr=5e-4", "model=smollm2"], Path("o"))
    assert runs.COMMAND.read(["remove", "a", "--yes"]).yes is True and options.yes is False


def test_a_search_has_a_seed_of_its_proposals_beside_the_trainings():
    options = search.COMMAND.read(["s", "--seed", "1", "seed=2", "lora.rank=2,4", "--no-pruning", "--trials", "3"])
    assert options.proposal_seed == 1 and options.overrides == ["seed=2", "lora.rank=2,4"]
    assert options.trials == 3 and options.pruning is False


@pytest.mark.parametrize(
    "module", ["doctor", "encode", "export", "probe", "push", "report", "runs", "search", "similar", "study"]
)
def test_help_does_not_wait_for_torch(module):
    code = f"import sys, runpy; sys.argv = ['x', '--help']; runpy.run_module('cft.{module}', run_name='__main__')"
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith(f"usage: python -m cft.{module}") and done.stdout.endswith("False\n")


@pytest.mark.parametrize("word", ["outputs=there", "lr=1e-4", "train.steps=5", "colour=", "x=y"])
def test_an_unknown_key_is_not_taken_for_a_text(word):
    """It would have been searched for, and the real query taken for the next word."""
    with pytest.raises(UserError, match=rf"cft.example has no key '.*name its place: query={word}$"):
        EXAMPLE.read([word, "run=r"])
    with pytest.raises(UserError, match="cft.similar has no key 'epochs'; there are .*run"):
        similar.COMMAND.read(["epochs=3", "run=r", "query", "file.txt"])


@pytest.mark.parametrize("text", ["is x = y ?", "a b=c", "= 5", "1=1", "A=B", "==", "what is e=mc2?", "x== y"])
def test_a_text_with_an_equals_sign_is_a_text(text):
    assert EXAMPLE.read([text, "run=r"]).query == text


def test_what_stands_at_a_place_may_be_named():
    assert EXAMPLE.read(["query=outputs=there", "run=r"]) == Example(query="outputs=there", run="r")
    options = similar.COMMAND.read(["run=r", "corpus=a=b.txt", "x"])
    assert (options.query, options.corpus) == ("x", Path("a=b.txt"))
    with pytest.raises(UserError, match="'more' is one argument too many"):
        EXAMPLE.read(["query=a", "run=r", "more"])
    with pytest.raises(UserError, match="query= is given twice"):
        EXAMPLE.read(["query=a", "run=r", "query=b"])
