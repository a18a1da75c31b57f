"""Runs the notebook's cells and writes docs/find_your_documents.ipynb with what they print and draw.

python docs/write_notebook.py            # all-MiniLM-L6-v2; a minute on two cores
python docs/write_notebook.py tiny OUT   # random weights, for a test
"""

import base64
import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NOTEBOOK = HERE / "find_your_documents.ipynb"

# Printed between what two cells print.
BETWEEN = "\x1e"

# Text in Markdown, and code behind a line of its own.
CELLS = '''
# Find your own documents

A finished encoder is tuned on forty questions and answers of a library, and asked ten questions that it has not seen.
It runs in a minute on two CPU cores, with `pip install cft` and nothing from a hub. Put your own CSV file in the place
of `faq.csv`.

This notebook was executed by `docs/write_notebook.py`.
---
import csv

with open("faq.csv", newline="") as file:
    rows = [(row["question"], row["answer"]) for row in csv.DictReader(file)]
answers = [answer for _, answer in rows]
print(len(rows), "rows, such as", rows[0])

# In words that are not in the file, and the number of the right answer.
questions = {
    "at what time do you shut at the weekend": 0,
    "what is the limit of items I can check out": 1,
    "my plastic card is gone, can I have a replacement": 5,
    "how do I connect my phone to the net": 10,
    "where may I leave my rucksack": 12,
    "I would like a title that you do not own yet": 14,
    "drop off a novel at midnight": 17,
    "settle what I owe": 25,
    "may my labrador accompany me": 34,
    "is there somewhere silent": 38,
}
===
## Before

Vectors have length 1, so that products are cosines. Queries and documents have methods of their own: an embedder may
have learnt with a prompt for each.
---
import numpy as np

from cft import Embedder
from cft.config.compose import compose_model


def ranks(embedder):
    """The place of the right answer among all answers, for each question."""
    cosines = embedder.encode_query(list(questions)) @ embedder.encode_document(answers).T
    return [int((row > row[right]).sum()) + 1 for row, right in zip(cosines, questions.values())]


before = ranks(Embedder.base(compose_model("MODEL")))
print("places of the right answers:", before)
===
## Training

`cft.train` takes what follows `python -m cft.run`, and rows. What is not given, such as the texts' length and the
learning rate, the rows choose. Forty rows are few: batches of half of them leave each question seventeen wrong answers.
---
import logging

import cft

logging.getLogger("cft").setLevel(logging.ERROR)  # leave this out to see what a run says
history = []
settings = ["model=MODEL", "logger=none", "baseline=none", "outputs=OUTPUTS"]
embedder = cft.train(
    [*settings, "train.batch_size=18", "train.steps=20", "train.epochs=10"],
    triplets=rows,
    callbacks=[history.append],
)
steps = [row for row in history if row["event"] == "step"]
print(f"{len(steps)} steps; loss {steps[0]['loss']:.2f} at first, {steps[-1]['loss']:.2f} at last")
===
## After
---
after = ranks(embedder)
for question, old, new in zip(questions, before, after):
    print(f"{question:52}{old:4}{new:4}")
print(f"{'mean place':52}{np.mean(before):4.1f}{np.mean(after):4.1f}")
===
Ten questions are an example, no measurement: a run's own table has intervals, and says where a change is not
distinguishable from none.
---
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
places = np.arange(1, 11)
for name, found in (("before", before), ("after", after)):
    axes.plot(places, [np.mean(np.array(found) <= place) * 100 for place in places], marker="o", label=name)
axes.set_xlabel("answers looked at")
axes.set_ylabel("right answer among them, %")
axes.set_ylim(0, 105)
axes.legend(frameon=False)
figure
===
## Search
---
vectors = embedder.encode_document(answers)


def search(question, top=3):
    """Print the nearest answers."""
    cosines = vectors @ embedder.encode_query([question])[0]
    for place in np.argsort(-cosines)[:top]:
        print(f"{cosines[place]:.2f}  {answers[place]}")


search("somewhere to eat my sandwich")
===
From here: the embedder's folder, in `outputs`, works with every command (`python -m cft.similar run=FOLDER
"a question" faq.csv column=answer`), `python -m cft.export` writes it for other libraries, and `Embedder.load(FOLDER)`
loads it again.
'''


def cells(model: str, outputs: str) -> list[tuple[str, str]]:
    """The cells as (kind, source)."""
    text = CELLS.replace("MODEL", model).replace("OUTPUTS", outputs)
    found = []
    for part in text.strip("\n").split("\n===\n"):
        prose, _, code = part.partition("\n---\n")
        found += [("markdown", prose.strip("\n")), *([("code", code.strip("\n"))] if code else [])]
    return found


def execute(sources: list[str], scratch: Path) -> list[list[dict[str, Any]]]:
    """Run the cells of code one after the other; returns what each printed, and the figure that its last line names."""
    drawn = [scratch / f"figure-{number}.png" for number in range(len(sources))]
    parts = []
    for source, path in zip(sources, drawn, strict=True):
        body, _, last = source.rpartition("\n")
        if last.isidentifier():  # a notebook shows it
            source = f"{body}\n{last}.savefig({str(path)!r}, dpi=80, metadata={{'Software': None}})"
        parts.append(source)
    script = scratch / "cells.py"
    script.write_text(f"\nprint({BETWEEN!r}, end='')\n".join(parts), encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        runpy.run_path(str(script))
    outputs: list[list[dict[str, Any]]] = []
    for text, path in zip(printed.getvalue().split(BETWEEN), drawn, strict=True):
        of_cell = [{"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}] if text else []
        if path.exists():
            data = {"image/png": base64.b64encode(path.read_bytes()).decode(), "text/plain": ["<Figure>"]}
            of_cell.append({"output_type": "display_data", "metadata": {}, "data": data})
        outputs.append(of_cell)
    return outputs


def write(path: Path, model: str) -> None:
    """Run all cells, in the folder of the documentation, and write the notebook (nbformat 4)."""
    os.chdir(HERE)  # the cells name files beside them
    with tempfile.TemporaryDirectory() as scratch:
        code = [source for kind, source in cells(model, scratch) if kind == "code"]
        outputs = execute(code, Path(scratch))
    done: list[dict[str, Any]] = []
    number = 0
    for place, (kind, source) in enumerate(cells(model, "outputs")):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{place}", "metadata": {}}
        cell["source"] = source.splitlines(True)
        if kind == "code":
            number += 1
            cell |= {"execution_count": number, "outputs": outputs[number - 1]}
        done.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": done, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    model, path = (sys.argv[1:] + ["minilm", str(NOTEBOOK)][len(sys.argv) - 1 :])[:2]
    write(Path(path).absolute(), model)
