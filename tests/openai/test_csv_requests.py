"""A table as requests: what a template makes of each row, and what is said of one that cannot be used."""

import json
from io import BytesIO
from typing import Any

import pytest

from app.errors import InvalidRequest
from app.openai.csv_requests import Asking, CsvRequests

MOST_CHARS = 1_000_000


def requests(data: str | bytes, template: str = "Say {text}", **asking: Any) -> CsvRequests:
    file = BytesIO(data.encode() if isinstance(data, str) else data)
    return CsvRequests(file, Asking("tiny", template, **asking), MOST_CHARS, 5 * MOST_CHARS)


async def written(table: CsvRequests) -> list[dict[str, Any]]:
    return [json.loads(line) async for line in table.lines()]


@pytest.mark.parametrize(
    ("data", "template", "prompts"),
    [
        ("text\nhi\nyou\n", "Say {text}", ["Say hi", "Say you"]),
        # A spreadsheet's: byte order mark, semicolons, Windows' ends of lines, quotes over several lines, empty rows.
        ('\ufefftext;to\r\n"a;b\nc";d\r\n;\r\n\r\ne;f', "{text}-{ to }", ["a;b\nc-d", "e-f"]),
        ("a\tb\n1\t2\n", "{a}{b}{a}", ["121"]),
        # A cell is not looked at for placeholders of its own, nor for anything of Python's.
        ("text,x\n{x} {0} {text.__class__},no\n", "{text}", ["{x} {0} {text.__class__}"]),
        ("text\nhi\n", '{{"json": "{text}"}} and } and {', ['{"json": "hi"} and } and {']),
        ("the text\n\u2028hi\n", "{the text}", ["\u2028hi"]),
    ],
)
async def test_a_row_becomes_a_prompt(data: str, template: str, prompts: list[str]) -> None:
    table = requests(data, template)
    assert table.prompts(10) == prompts
    assert await table.problems() == (0, [])
    for _ in range(2):
        lines = await written(table)
        assert [line["body"]["messages"][-1]["content"] for line in lines] == prompts


async def test_requests_have_names_instructions_and_parameters() -> None:
    table = requests("custom_id,text\na,1\n,2\n", system="Be kind.", parameters={"max_tokens": 3})
    first, second = await written(table)
    assert (first["custom_id"], second["custom_id"]) == ("a", "row-2")
    assert first["body"] == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say 1"}],
        "max_tokens": 3,
    }


@pytest.mark.parametrize(
    ("data", "template", "said"),
    [
        ("text\nx\n", "{txt}", "{txt} is no column, and the columns are {text}"),
        ("text\nx\n", " ", "the columns are {text}"),
        ("text\nx\n", "Hello", "names no column"),
        ("text,text\nx,y\n", "{text}", "twice"),
        (b"\n", "{text}", "no header"),
        (b"text\n\xff\xfe\n", "{text}", "UTF-8"),
        (b"\xff\xfet\x00e\x00", "{text}", "UTF-8"),
        (b"PK\x03\x04\x14\x00\x90\xff", "{text}", "UTF-8"),
        ('text\n"open', "{text}", "row 1 is no CSV"),
        ('text\n"a"b\n', "{text}", "row 1 is no CSV"),
        ("text\n" + "x" * 200_000, "{text}", "field larger"),
    ],
)
async def test_what_is_wrong_is_said(data: str | bytes, template: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await written(requests(data, template))
    assert said in refused.value.detail


async def test_rows_that_do_not_fit_the_header_are_named() -> None:
    count, shown = await requests("a,text\n1,2\n3\n4,5,6\n").problems()
    assert (count, [problem["line"] for problem in shown]) == (2, [2, 3])
    assert "1 cells" not in shown[1]["message"]
    assert (await requests("text\n" + "1,2\n" * 500).problems())[0] == 500


async def test_a_long_cell_that_is_named_often_makes_no_prompt() -> None:
    long = "x" * 100_000
    table = requests(f"text\nshort\n{long}\nlast\n", "{text}" * 10 + "{{}}")
    count, (shown,) = await table.problems()
    assert (count, shown["line"], shown["code"]) == (1, 2, "prompt_too_long")
    assert "1,000,002 characters: 1,000,000 are allowed" in shown["message"]
    assert [len(prompt) for prompt in table.prompts(3)] == [52, 42]
    # Two fewer.
    assert await requests(f"text\n{long}\n", "{text}" * 10).problems() == (0, [])


async def test_a_table_of_which_too_much_would_be_made_is_refused() -> None:
    table = requests("text\n" + f"{'x' * 50_000}\n" * 11, "{text}" * 10)
    with pytest.raises(InvalidRequest) as refused:
        await table.problems()
    assert "more than 5,000,000 characters in all, at row 11" in refused.value.detail
    table = requests("text\n" + "x\n" * 11, "{text}", system="y" * 500_000)
    with pytest.raises(InvalidRequest, match="at row 10"):
        await table.problems()


@pytest.mark.parametrize("row", ["1," * 600_000, "1," * 300_000 + '"\n",' + "1," * 300_000], ids=["line", "lines"])
async def test_a_row_without_end_is_not_read_whole(row: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await written(requests(f"text\nx\n{row}\n"))
    assert "row 2 is no CSV, or is longer than 1,000,000 characters" in refused.value.detail


async def test_a_header_of_many_columns_is_read_at_once() -> None:
    names = [f"c{number}" for number in range(100_000)]
    table = requests(",".join(names) + "\n" + "1," * 99_999 + "1\n", "{c99999}")
    assert (await table.problems(), table.prompts(1)) == ((0, []), ["1"])
