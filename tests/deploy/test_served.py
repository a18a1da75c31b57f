"""A server's vectors are compared with the embedder's own, and what else they may be is found out."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import make_tiny, write_model
from exports import train

from cft.config.schema import Pooling
from cft.deploy import served
from cft.doctor import COMMAND
from cft.model.embedder import Embedder
from cft.system.errors import UserError

TEMPLATE = "query: {text}"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return make_tiny("llama").with_template(TEMPLATE)


@pytest.fixture(scope="module")
def server():
    """A server whose `answer` takes a request's JSON, and whose `asked` keeps requests and their headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            http.asked.append((self.path, dict(self.headers), json.loads(body)))
            status, answer = http.answer(json.loads(body))
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status, http.reason)
            if status == 302:
                self.send_header("Location", "http://localhost:9/elsewhere")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # a client that did not wait is no news
    threading.Thread(target=http.serve_forever, daemon=True).start()
    http.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield http
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def fresh(server, monkeypatch):
    server.reason = None  # that of the status
    server.asked, server.answer = [], lambda body: (500, "no answer")
    monkeypatch.delenv(served.KEY, raising=False)


def answering(server, encode):
    """Let the server answer in OpenAI's form, the last text first."""

    def answer(body):
        data = [{"index": row, "embedding": vector.tolist()} for row, vector in enumerate(encode(body["input"]))]
        return 200, {"object": "list", "data": data[::-1]}

    server.answer = answer


def changed(embedder, **fields) -> Embedder:
    return Embedder(embedder.model, embedder.backbone, replace(embedder.contract, **fields))


def asked(server, *more, url=""):
    options = COMMAND.read([f"served={url or server.url}", "model=tiny", f"prompt='{TEMPLATE}'", *more])
    return served.check_served(options.served, options.embedder, served_model=options.served_model)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/embeddings", "/other/embed?x=1"])
def test_the_same_vectors_are_called_that(server, embedder, path):
    answering(server, embedder.encode)
    text, same = asked(server, url=server.url + path)
    assert same and "the same vectors (cosines of 0.999 or more)" in text
    assert len([line for line in text.splitlines() if line.endswith(" 1.000000")]) == 10
    assert {place for place, *_ in server.asked} == {path if path.startswith("/other") else "/v1/embeddings"}
    assert sum(len(body["input"]) for *_, body in server.asked) == 10
    assert all(body["model"] == "tiny" for *_, body in server.asked)


def test_lengths_other_than_one_are_no_difference_and_a_note(server, embedder):
    answering(server, lambda texts: embedder.encode(texts) * 3)
    text, same = asked(server, "served_model=mine")
    assert same and "vectors have lengths of 3 to 3 there: scale them to 1" in text
    assert server.asked[0][2]["model"] == "mine"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"template": "{text}"}, "without its prompt"),
        ({"suffix_ids": ()}, "without EOS"),
        ({"suffix_ids": (1, 1)}, "with EOS twice"),
        ({"pooling": Pooling.mean}, "with pooling=mean"),
        ({"template": "{text}", "suffix_ids": ()}, "without its prompt and without EOS"),
        ({"suffix_ids": (), "pooling": Pooling.mean}, "without EOS and with pooling=mean"),
    ],
)
def test_what_the_server_leaves_out_is_found_out(server, embedder, fields, name):
    answering(server, changed(embedder, **fields).encode)
    text, same = asked(server)
    assert not same and f"other vectors: they are those of this embedder {name} (cosines of 1.0000 or more)" in text


def test_another_model_is_other_and_likely_reasons_are_named(server):
    answering(server, lambda texts: np.random.default_rng(0).normal(size=(len(texts), 32)))
    text, same = asked(server)
    assert not same and "other vectors (a cosine of " in text
    assert all(cause in text for cause in ("no EOS", "another pooling", "no prompt", "another model"))


def test_low_precision_is_told_from_other_vectors(server, embedder):
    noise = np.random.default_rng(0).normal(size=(32,)) * 0.02
    answering(server, lambda texts: embedder.encode(texts) + noise)
    text, same = asked(server)
    assert same and "the same vectors at low precision (cosines of 0.99" in text


def test_long_texts_that_are_cut_elsewhere_or_refused_are_noted(server, embedder):
    longest = max(map(len, served.TEXTS))
    answering(server, lambda texts: embedder.encode([text if len(text) <= longest else text[:3] for text in texts]))
    text, same = asked(server)
    assert not same and "other vectors of long texts" in text and "is cut elsewhere there, or not" in text
    answering(server, embedder.encode)
    whole = server.answer
    server.answer = lambda body: whole(body) if len(body["input"]) > 1 else (400, {"error": "too long"})
    text, same = asked(server)
    assert same and "refused" in text and "answers HTTP 400 Bad Request" in text and "too long" in text


def vectors(*rows, **more):
    return {"data": [{"index": place, "embedding": row} | more for place, row in enumerate(rows)]}


GOOD = [0.5] * 32


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (404, {"error": "no such model"}, r'answers HTTP 404 Not Found: \{"error": "no such model"\}'),
        (401, b"", "answers HTTP 401 Unauthorized; its key goes into the variable CFT_SERVED_KEY"),
        (302, b"", "answers HTTP 302 Found"),
        (200, b"<html>hello", "does not answer in JSON: is it the right path"),
        (200, b"\xff\xfe", "does not answer in JSON"),
        (200, b"[" * 100_000, "does not answer in JSON"),
        (200, [1, 2], "answers without a list `data`"),
        (200, {"data": [1] * 9}, "answers without a list `data`"),
        (200, vectors(GOOD), "answers with 1 vectors for 9 texts"),
        (200, vectors(*[GOOD] * 9, index=0), "numbers its 9 vectors otherwise than from 0 to 8"),
        (200, vectors(*[GOOD] * 9, index="0"), "numbers its 9 vectors otherwise"),
        (200, vectors(*[[0.5] * 31] * 9), "gives vectors of 31 numbers, and this embedder's have 32"),
        (200, vectors(*[GOOD] * 8, "AAAA"), "gives text 9 of 9 an `embedding` that is no list of numbers"),
        (200, vectors(*[GOOD] * 8, [True] * 32), "gives text 9 of 9 an `embedding` that is no list of numbers"),
        (
            200,
            vectors(*[GOOD] * 4, [float("nan")] * 32, *[GOOD] * 4),
            "gives text 5 of 9 a vector with NaN or infinity",
        ),
        (200, vectors(*[GOOD] * 8, [10**400] * 32), "gives text 9 of 9 a vector with NaN or infinity"),
        (200, vectors(*[GOOD] * 8, [0] * 32), "gives text 9 of 9 a vector with NaN or infinity, or of zeros"),
    ],
)
def test_every_other_answer_is_one_message_with_the_address(server, status, answer, message):
    server.answer = lambda body: (status, answer)
    with pytest.raises(UserError, match=rf"^{server.url}/v1/embeddings {message}"):
        asked(server)


def test_too_much_and_no_answer_are_named(server, monkeypatch):
    monkeypatch.setattr(served, "_MOST_BYTES", 10)
    server.answer = lambda body: (200, vectors(*[GOOD] * 9))
    with pytest.raises(UserError, match="answers with more than 0 MiB for 9 texts"):
        asked(server)
    with pytest.raises(UserError, match=r"^http://127.0.0.1:1/v1/embeddings cannot be reached \(.*refused"):
        asked(server, url="http://127.0.0.1:1")
    monkeypatch.setattr(served, "_TIMEOUT", 0.1)
    waiting = threading.Event()
    server.answer = lambda body: (200, str(waiting.wait(1)))
    with pytest.raises(UserError, match=r"cannot be reached \(timed out\)"):
        asked(server)
    waiting.set()


def test_a_key_is_sent_and_never_shown(server, embedder, monkeypatch):
    monkeypatch.setenv(served.KEY, "secret-key")
    answering(server, embedder.encode)
    text, same = asked(server)
    assert same and "secret-key" not in text
    assert {headers["Authorization"] for _, headers, _ in server.asked} == {"Bearer secret-key"}
    server.answer = lambda body: (403, {"error": "secret-key is not known"})
    with pytest.raises(UserError, match=r"\*\*\* is not known") as caught:
        asked(server)
    assert "secret-key" not in str(caught.value)
    server.reason = "secret-key is not known"
    with pytest.raises(UserError, match=r"answers HTTP 403 \*\*\* is not known") as caught:
        asked(server)
    assert "secret-key" not in str(caught.value)
    monkeypatch.setenv(served.KEY, "secret\nkey")
    with pytest.raises(UserError, match="CFT_SERVED_KEY holds characters that no key has") as caught:
        asked(server)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8080", "served=localhost:8080: must be an address, as in served=http://localhost:8080"),
        ("ftp://localhost", "must be an address"),
        ("http://", "must be an address"),
        ("http://localhost:x", "is no address"),
        ("http://[::1", "is no address"),
        ("http://me:secret@localhost", "served=http://...@localhost: give a key by the variable CFT_SERVED_KEY"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_loaded(server, url, message):
    with pytest.raises(UserError, match=message) as caught:
        served.check_served(url, {"model": "nosuch"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=x"], "run=x: goes with served=URL alone"),
        (["model_path=x", "model=tiny"], "model_path=x: goes with served=URL alone"),
        (["served_model=x", "model=tiny"], "served_model=x: goes with served=URL alone"),
        (["served=http://x", "run=x", "lr=1"], "lr=1: does not go with served=; run=, model=, path= and prompt= do"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        COMMAND.read(words)


def test_one_embedder_is_named(server):
    with pytest.raises(UserError, match="which embedder is not said"):
        served.check_served(server.url, COMMAND.read([f"served={server.url}"]).embedder)


def test_a_base_model_that_was_moved_is_said(server, tmp_path):
    base = write_model(tmp_path / "base", "llama")
    run = train(tmp_path, f"model.path={base}")
    answering(server, Embedder.load(run).encode)
    base.rename(tmp_path / "moved")
    words = [f"served={server.url}", f"run={run}"]
    with pytest.raises(UserError, match="model_path=FOLDER on the command line"):
        served.check_served(server.url, COMMAND.read(words).embedder)
    said, same = served.check_served(server.url, COMMAND.read([*words, f"model_path={tmp_path / 'moved'}"]).embedder)
    assert same, said


def test_the_command_ends_with_a_status(server, embedder, commands, tmp_path):
    answering(server, embedder.encode)
    words = (f"served={server.url}", "model=tiny")
    right = commands.run("cft.doctor", *words, f"prompt={TEMPLATE}", cwd=tmp_path)
    assert right.status == 0 and "the same vectors" in right.out
    wrong = commands.run("cft.doctor", *words, cwd=tmp_path)
    assert wrong.status == 1 and "other vectors" in wrong.out
