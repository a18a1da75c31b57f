"""Whole files, names by content, one process a folder."""

import multiprocessing
import os

import pytest

from cft.config.schema import Pooling
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import (
    atomic_write,
    cache_folder,
    exclusive_lock,
    read_json,
    user_path,
    write_json,
    write_record,
)


def test_a_digest_depends_on_content_and_not_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1.5, Pooling.last]}) == digest({"b": (1.5, "last"), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as part:
        part.write_text('{"ne')
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_the_home_folder_of_a_cache_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CFT_CACHE", "~/cache")  # as a file of variables has it, which no shell reads
    assert cache_folder() == tmp_path / "home" / "cache"


def test_a_damaged_json_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a":')
    with pytest.raises(UserError, match=r"cannot read .*x\.json"):
        read_json(tmp_path / "x.json")


def _hold(folder, taken, done):
    with exclusive_lock(folder):
        taken.set()
        done.wait(20)


def test_what_a_user_has_called_checksum_is_no_checksum(tmp_path):
    record = {"sets": {"checksum": {"spearman": 1.0}, "A": {"spearman": 2.0}}, "cells": {"checksum": ["run"]}}
    write_record(tmp_path / "x.json", record)
    assert read_json(tmp_path / "x.json") == record
    (tmp_path / "x.json").write_text((tmp_path / "x.json").read_text().replace("2.0", "3.0"))
    with pytest.raises(UserError, match="was changed after cft wrote it"):
        read_json(tmp_path / "x.json")


def test_a_second_process_is_told_who_is_at_work(tmp_path):
    context = multiprocessing.get_context("spawn")
    taken, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, taken, done))
    process.start()
    try:
        assert taken.wait(20)
        with pytest.raises(UserError, match=f"process {process.pid} is at work in"), exclusive_lock(tmp_path):
            pass
    finally:
        done.set()
        process.join()
    with exclusive_lock(tmp_path):  # and when it has ended, the folder is free
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "nul", "[" * 100_000])
def test_a_record_that_holds_something_else_is_named(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"record\.json.*remove its folder and run again to make it anew"):
        read_json(path)


def test_a_key_that_a_record_lacks_is_named_with_the_record(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"outer": {"inner": 1}})
    found = read_json(path)
    assert found == {"outer": {"inner": 1}} and found["outer"]["inner"] == 1 and found.get("other") is None
    with pytest.raises(UserError, match=r"record\.json lacks 'other'"):
        found["outer"]["other"]


def test_a_name_that_begins_with_a_tilde_is_a_file_or_a_home_or_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(user_path("~/a.csv")) == "/home/me/a.csv"
    assert str(user_path("~nobody-is-called-so/a.csv")) == "~nobody-is-called-so/a.csv"
    (tmp_path / "~pairs.csv").touch()
    assert str(user_path("~pairs.csv")) == str(user_path("./~pairs.csv")) == "~pairs.csv"
    assert str(user_path("a.csv")) == "a.csv"
