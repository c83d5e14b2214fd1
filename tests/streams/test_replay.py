"""From stored events to what is sent: over all ways to cut texts, attempts and readings."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.services.replay import Delta, Replay

Row = list[dict[str, Any]]


def rows_of(texts: list[str], cuts: list[int]) -> list[Row]:
    """One attempt that says `texts`, stored in pieces of the lengths `cuts`."""
    rows = []
    at = 0
    for length in [*cuts, max(map(len, texts), default=0)]:
        row = [
            {"index": index, "at": at, "text": text[at : at + length]}
            for index, text in enumerate(texts)
            if text[at : at + length]
        ]
        at += length
        if row:
            rows.append(row)
    return rows


def final(texts: list[str], status: str = "completed") -> dict[str, Any]:
    return {
        "status": status,
        "output": texts[0] if texts else None,
        "outputs": [{"index": index, "text": text} for index, text in enumerate(texts)] if len(texts) > 1 else None,
    }


def told(parts: list[tuple[int, list[Delta]]], choices: int) -> dict[int, list[str]]:
    """The texts of each telling."""
    texts: dict[int, list[str]] = {}
    for telling, deltas in parts:
        sent = texts.setdefault(telling, [""] * choices)
        for delta in deltas:
            sent[delta.index] += delta.text
    return texts


def play(attempts: list[list[Row]], end: dict[str, Any]) -> list[tuple[int, list[Delta]]]:
    replay = Replay()
    parts = []
    for row in (row for rows in attempts for row in rows):
        deltas = replay.add(row).deltas
        parts.append((replay.telling, deltas))
    deltas = replay.end(end).deltas
    parts.append((replay.telling, deltas))
    return parts


TEXTS = st.lists(st.text("ab😀", max_size=12), min_size=1, max_size=3)
CUTS = st.lists(st.integers(1, 5), max_size=5)


@given(TEXTS, st.lists(st.tuples(CUTS, st.integers(0, 6)), max_size=3))
def test_attempts_that_say_the_same_make_one_telling(texts: list[str], tries: list[tuple[list[int], int]]) -> None:
    attempts = [rows_of(texts, cuts)[:stored] for cuts, stored in tries]
    parts = play(attempts, final(texts))
    assert told(parts, len(texts)) == {0: texts}


@given(st.lists(st.tuples(TEXTS, CUTS, st.integers(0, 6)), max_size=3), TEXTS)
def test_the_last_telling_is_the_final_text(tries: list[tuple[list[str], list[int], int]], texts: list[str]) -> None:
    texts = (texts * 3)[:3]
    attempts = [rows_of((said * 3)[:3], cuts)[:stored] for said, cuts, stored in tries]
    tellings = told(play(attempts, final(texts)), 3)
    assert tellings[max(tellings)] == texts


@given(TEXTS, CUTS)
def test_a_row_that_was_lost_leaves_no_hole(texts: list[str], cuts: list[int]) -> None:
    rows = rows_of(texts, cuts)
    for missing in range(len(rows)):
        parts = play([rows[:missing] + rows[missing + 1 :]], final(texts))
        assert told(parts, len(texts)) == {0: texts}


def test_a_failed_result_with_less_text_than_was_sent_adds_nothing() -> None:
    rows = rows_of(["one two three"], [4, 4])
    for left in (["one two"], ["another"], []):
        assert told(play([rows], final(left, "failed")), 1) == {0: ["one two three"]}


def test_a_failed_result_with_more_text_adds_the_rest() -> None:
    rows = rows_of(["one two three"], [4, 4])[:1]
    assert told(play([rows], final(["one two"], "failed")), 1) == {0: ["one two"]}


def test_another_text_begins_anew_for_all_choices() -> None:
    first = rows_of(["aaaa", "bbbb"], [2, 2])
    second = rows_of(["aaxx", "bbbb"], [2, 2])
    parts = play([first, second], final(["aaxx", "bbbb"]))
    assert told(parts, 2) == {0: ["aaaa", "bbbb"], 1: ["aaxx", "bbbb"]}


def test_logprobs_go_along_and_are_not_repeated() -> None:
    tokens = [{str(n): {"logprob": -n}} for n in range(4)]
    first = [[{"index": 0, "at": 0, "text": "ab", "token": 0, "logprobs": tokens[:2]}]]
    second = [
        [{"index": 0, "at": 0, "text": "a", "token": 0, "logprobs": tokens[:1]}],
        [{"index": 0, "at": 1, "text": "bc", "token": 1, "logprobs": tokens[1:3]}],
    ]
    end = {"status": "completed", "output": "abcd", "outputs": [{"index": 0, "text": "abcd", "logprobs": tokens}]}
    sent = [delta for _, deltas in play([first, second], end) for delta in deltas]
    assert "".join(delta.text for delta in sent) == "abcd"
    assert [entry for delta in sent for entry in delta.logprobs or ()] == tokens


def responses_of(numbers: list[int], cuts: list[int]) -> list[Row]:
    """One attempt that answers with `numbers`, a response each, stored in rows of `cuts` responses."""
    outputs = [{"name": "i", "response": at, "data": [number]} for at, number in enumerate(numbers)]
    rows, at = [], 0
    for length in [*cuts, len(outputs)]:
        rows.append(outputs[at : at + length])
        at += length
    return [row for row in rows if row]


NUMBERS = st.lists(st.integers(0, 1), max_size=8)


@given(st.lists(st.tuples(NUMBERS, CUTS), max_size=3), NUMBERS, CUTS, st.integers(0, 8))
def test_tensors_of_the_last_telling_are_the_answers(
    lost: list[tuple[list[int], list[int]]], answer: list[int], cuts: list[int], stored: int
) -> None:
    """Whatever attempts answered before, and however much of the last one was stored."""
    replay = Replay()
    tellings: dict[int, list[Any]] = {}
    last = responses_of(answer, cuts)
    for row in [*(row for attempt in lost for row in responses_of(*attempt)), *last[:stored]]:
        outputs = replay.add(row).outputs
        tellings.setdefault(replay.telling, []).extend(outputs)
    whole = [output for row in last for output in row]
    end = {"status": "completed", "output": None, "outputs": None, "answer": {"outputs": whole}}
    rest = replay.end(end).outputs
    if whole:
        assert tellings.get(replay.telling, []) + rest == whole
    # The same again is no other telling.
    if all(attempt == answer for attempt, _ in lost):
        assert replay.telling == 0
