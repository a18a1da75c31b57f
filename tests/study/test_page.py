"""Parts of reports written into a page of one's own."""

import pytest

from cft.study import report
from cft.study.document import Document, Heading, Picture, Table, Text
from cft.study.page import fill
from cft.system.errors import UserError

PAGE = """# Mine

Before.

<!-- one: sentences, scores -->
old
<!-- end -->

Between.

<!-- two: scores -->
<!-- end -->

After.
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "docs" / "mine.md"
    path.parent.mkdir()
    path.write_text(PAGE)
    return path


def a_report(path, score="71.00"):
    return Document(
        "One",
        [
            Heading("One"),
            Text(["what is asked"]),
            Table("scores", "Points.", [("cell", "mean"), ("a", score)]),
            Picture("Means.", path / "records" / "overall.svg"),
            Text(["a is higher than b.", "a is lower than c."], "sentences"),
        ],
    )


def test_only_what_stands_between_the_marks_is_written_anew(page):
    filled = fill(page, {"one": a_report(page.parent)})
    assert filled == PAGE.replace(
        "old\n",
        "\n- a is higher than b.\n- a is lower than c.\n\n| cell | mean |\n| --- | ---: |\n| a | 71.00 |\n\n*Points.*\n\n",
    )
    page.write_text(filled)
    assert fill(page, {"one": a_report(page.parent)}) == filled
    assert fill(page, {"one": a_report(page.parent, "72.00")}) == filled.replace("71.00", "72.00")


def test_what_stands_under_a_table_is_said_once_a_page(page):
    filled = fill(page, {"one": a_report(page.parent), "two": a_report(page.parent, "72.00")})
    assert filled.count("*Points.*") == 1 and filled.index("71.00") < filled.index("*Points.*") < filled.index("72.00")
    page.write_text(filled)
    assert fill(page, {"two": a_report(page.parent, "72.00")}) == filled  # said by a part that stays


def test_a_picture_is_linked_from_where_the_page_is(page):
    page.write_text("<!-- one: overall -->\n<!-- end -->\n")
    assert "![Means.](records/overall.png)" in fill(page, {"one": a_report(page.parent)})


def test_a_picture_outside_of_the_pages_folder_is_linked_from_it_too(page):
    page.write_text("<!-- one: overall -->\n<!-- end -->\n")
    assert "![Means.](../my%20study/records/overall.png)" in fill(
        page, {"one": a_report(page.parent.parent / "my study")}
    )


def test_the_rest_of_a_page_stays_byte_for_byte(page):
    rest = "\ufeff# Mine\r\nform\x0cfeed, line\u2028separator\n\n<!-- my study: scores -->\r\n{}<!-- end -->"
    page.write_bytes(rest.format("old\r\n").encode())
    written = "\n| cell | mean |\n| --- | ---: |\n| a | 71.00 |\n\n*Points.*\n\n".replace("\n", "\r\n")
    assert fill(page, {"my study": a_report(page.parent)}) == rest.format(written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caf\udce9\n", r"mine.md is not in UTF-8 \(byte 4\)"),
        ("<!-- one: scores -->\nno end\n", r"mine.md: <!-- one: scores --> has no line <!-- end -->"),
        ("<!-- one: scores -->\n<!-- two: scores -->\n<!-- end -->\n", r"mine.md:2: <!-- one: scores --> has no line"),
        ("\n<!-- one: sores -->\n<!-- end -->\n", r"mine.md:2: .* no part 'sores'; it has scores, overall, sentences"),
        ("nothing\n", r"no mark for one, as in: <!-- one: sentences, scores -->"),
    ],
)
def test_a_page_that_cannot_be_filled_says_where(page, text, message):
    page.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        fill(page, {"one": a_report(page.parent)})


def test_the_command_fills_a_page_from_finished_studies(paper, commands, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Rates\n\n<!-- table4: scores, sentences -->\n<!-- end -->\n\n<!-- table1: configuration -->\n<!-- end -->\n"
    )
    command = ["cft.report", "table4", "table1", "--scale", "smoke", f"outputs={paper.outputs}"]
    filled = commands.run(*command, "--into", str(page))
    assert filled.status == 0, filled.err
    document, _ = report.write(["table4"], "smoke", [f"outputs={paper.outputs}"])
    rows = next(table for table in document.tables() if table.name == "scores").rows
    text = page.read_text()
    assert all(f"| {' | '.join(row)} |" in text for row in rows)
    assert "not distinguishable" in text and "| InfoNCE temperature | loss.temperature |" in text

    refused = commands.run(*command, "--into", "nowhere.md")
    assert refused.status == 2 and "there is no such page" in refused.err
