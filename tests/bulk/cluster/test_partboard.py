"""What the board knows of parts in hand, and of what they died of."""

from __future__ import annotations

from streamenc.bulk.cluster.partboard import MOST_BEGUN, PartBoard
from streamenc.bulk.partwork import Progress


def progress(part: int, items: int = 1) -> Progress:
    return Progress(part, items, 0, 2.0, {"encoding": 1.0})


def test_news_are_told_once() -> None:
    board = PartBoard()
    assert board.begin(3).skip == {} and not board.begin(4).singly
    assert board.told(progress(3), 10) == 0 and board.told(progress(4), 5) == 0
    news = board.news()
    assert (news.begun, news.lost, news.peak_bytes) == ([3, 4], [], 10)
    assert [each.part for each in news.progress] == [3, 4]
    board.done(3)
    news = board.news()
    assert not news.begun and not news.progress


def test_a_part_that_is_begun_again_was_lost_with_what_it_had_told() -> None:
    board = PartBoard()
    board.begin(3)
    board.told(progress(3), 10)
    board.told(progress(5), 10)
    assert board.begin(3).singly
    news = board.news()
    assert news.lost == [3] and [each.part for each in news.progress] == [5]
    board.done(3)
    order = board.begin(3)  # whose row was lost
    assert not order.singly and board.news().lost == []


def test_an_item_with_which_two_workers_ended_is_an_error() -> None:
    board = PartBoard()
    board.begin(1)
    for _ in range(2):
        assert board.begin(1).skip == {}
        board.at(1, "good")
        board.at(1, "bad")
    assert list(board.begin(1).skip) == ["bad"]
    board.at(1, "other")
    assert list(board.begin(1).skip) == ["bad"]
    board.at(1, "other")
    assert list(board.begin(1).skip) == ["bad", "other"]


def test_a_part_is_given_up_after_many_times() -> None:
    board = PartBoard()
    assert not any(board.begin(1).given_up for _ in range(MOST_BEGUN))
    assert f"begun {MOST_BEGUN} times" in board.begin(1).given_up
    assert not board.begin(2).given_up


def test_a_run_that_stops_begins_nothing() -> None:
    board = PartBoard()
    board.begin(1)
    board.stop(1)
    assert board.begin(2).stopped and board.told(progress(1), 1) == 1
    board.stop(2)
    board.stop(1)
    assert board.at(1, "key") == 2
    assert board.news().begun == [1]
