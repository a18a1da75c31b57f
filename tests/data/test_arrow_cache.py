"""Triplets on disk: the rows of the file, converted once, mapped and not loaded."""

import json
import os
import time

import numpy as np
import pyarrow
import pytest

from cft.config.schema import DataSettings, DataSource
from cft.data import arrow_cache, records
from cft.data.arrow_cache import Rows, open_corpus
from cft.data.files import TripletColumns, stream_triplet_rows
from cft.data.records import Triplet, content_digest
from cft.data.training_data import load_training_data
from cft.system.digest import digest
from cft.system.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "triplets"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(arrow_cache, "_BLOCK", 7)
    monkeypatch.setattr(records, "_BLOCK", 5)


def write(folder, count, *more: str):
    path = folder / "rows.jsonl"
    rows = [
        {"sent0": f"anchor {n}", "sent1": f"positive {n}", "hard_neg": [f"é{n}", "y"][: n % 2 + 1]}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "".join(more))
    return path


def expected(count):
    return [Triplet(f"anchor {n}", f"positive {n}", (f"é{n}", "y")[: n % 2 + 1]) for n in range(count)]


def from_file(path, **settings):
    return DataSettings(name="files", source=DataSource.files, train=str(path), **settings)


def opened(path):
    columns = TripletColumns("sent0", "sent1", ["hard_neg"])
    return open_corpus(path, [path.name], lambda note: stream_triplet_rows(path, columns, note=note))


@pytest.mark.parametrize("count", [1, 6, 7, 8, 50])
def test_rows_are_those_of_the_file_one_by_one_and_all_together(tmp_path, small_blocks, count):
    rows = opened(write(tmp_path, count)).rows
    assert len(rows) == count and list(rows) == expected(count)
    assert [rows[n] for n in range(count)] == expected(count)
    with pytest.raises(IndexError):
        rows[count]


def test_selections_of_selections_are_what_lists_give(tmp_path, small_blocks):
    rows, listed = opened(write(tmp_path, 50)).rows, expected(50)
    assert list(rows[3:40][::5]) == listed[3:40][::5]
    chosen = np.array([0, 6, 7, 20, 49])
    assert list(rows.select(chosen)) == [listed[n] for n in chosen]
    assert list(rows[10:10]) == [] and rows[-1] == listed[-1]


def test_a_file_is_converted_once_by_its_content(tmp_path, monkeypatch):
    path = write(tmp_path, 20)
    opened(path)
    reads = []
    with monkeypatch.context() as patch:
        patch.setattr("cft.data.formats.read_rows", lambda source: reads.append(source) or iter(()))
        assert list(opened(path).rows) == expected(20) and not reads
    path.write_text(path.read_text().replace("anchor 3", "other 3"))
    assert opened(path).rows[3].anchor == "other 3"


def test_rows_stay_on_disk(tmp_path):
    path = write(tmp_path, 30_000)
    before = pyarrow.total_allocated_bytes()
    rows = opened(path).rows
    assert pyarrow.total_allocated_bytes() - before < path.stat().st_size / 100
    assert rows[29_999] == expected(30_000)[-1]


def test_a_half_converted_file_is_never_read(tmp_path, cache):
    path = write(tmp_path, 50)

    def broken(note):
        yield from ([row] for row in expected(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_corpus(path, ["x"], broken)
    assert list(cache.glob("*.arrow")) == []


def test_content_is_named_as_if_it_were_in_memory(tmp_path, small_blocks):
    found = load_training_data(from_file(write(tmp_path, 53)), seed=0)
    assert isinstance(found.triplets, Rows) and len(found.holdout) == 5
    assert found.content == digest([list(found.triplets), found.holdout, found.dev])
    assert content_digest([], [("a", 1)], []) == digest([[], [("a", 1)], []])


def test_only_the_first_rows_and_bad_rows_are_told(tmp_path, small_blocks):
    path = write(tmp_path, 20, *['{"sent0": "", "sent1": "x", "hard_neg": "y"}\n'] * 12)
    for _ in range(2):  # the second time from the cache
        found = load_training_data(from_file(path, on_bad_row="skip", rows=10, holdout=0), seed=0)
        assert found.skipped == 12 and list(found.triplets) == expected(10)


def test_a_file_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_training_data(from_file(tmp_path / "nowhere.csv"), seed=0)
    with pytest.raises(UserError, match="is a folder"):
        load_training_data(from_file(tmp_path), seed=0)


def test_a_pipe_is_refused_before_it_is_hashed(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "rows.csv")
    monkeypatch.setattr(arrow_cache, "sha256_of_file", lambda path: pytest.fail("a pipe was read"))
    with pytest.raises(UserError, match="rows.csv: is a pipe or a device"):
        load_training_data(from_file(tmp_path / "rows.csv"), seed=0)


def test_a_file_that_only_its_hash_cannot_read_is_named(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(arrow_cache, "sha256_of_file", fail)
    with pytest.raises(UserError, match=r"rows.jsonl: cannot be read \(Input/output error\)"):
        opened(write(tmp_path, 20))


def test_skipped_rows_of_a_file_with_an_odd_name_are_kept(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    path.write_text("sent0,sent1,hard_neg\na,,c\n" + "d,e,f\n" * 20)
    assert load_training_data(from_file(path, on_bad_row="skip"), seed=0).skipped == 1


def test_a_cache_without_room_is_named(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrow_cache, "atomic_write", full)
    with pytest.raises(UserError, match="No space left on device.*CFT_CACHE"):
        opened(write(tmp_path, 20))


def test_a_damaged_conversion_is_made_again(tmp_path, cache):
    path = write(tmp_path, 50)
    opened(path)
    (table,) = cache.glob("*.arrow")
    table.write_bytes(table.read_bytes()[:200])
    assert list(opened(path).rows) == expected(50)
    next(cache.glob("*.json")).unlink()
    assert list(opened(path).rows) == expected(50)


def test_a_read_only_cache_is_read(tmp_path, monkeypatch):
    path = write(tmp_path, 20)
    opened(path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    monkeypatch.setattr(arrow_cache, "atomic_write", refuse)
    assert list(opened(path).rows) == expected(20)


def test_what_nobody_opened_for_a_month_goes(tmp_path, cache):
    opened(write(tmp_path, 20))
    (old,) = cache.glob("*.arrow")
    os.utime(old, (time.time() - 40 * 86_400,) * 2)
    opened(write(tmp_path, 21))
    assert not old.exists() and len(list(cache.iterdir())) == 2
