"""Places and turns: bounded, and fair among those who ask."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from retrieval.service.pool import Busy, Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool("test", workers=1, queue=5, timeout=30)
    yield pool
    pool.close()


def test_callers_take_turns_however_much_one_asks(pool):
    order: list[str] = []
    go = threading.Event()

    async def ask(who: str) -> None:
        async with pool.place(who) as place:
            await pool.run(lambda: (go.wait(30), order.append(who)), place)

    async def all_of_them() -> None:
        greedy = [asyncio.create_task(ask("greedy")) for _ in range(4)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(ask(who)) for who in ("a", "b")]
        await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(*greedy, *others)

    asyncio.run(all_of_them())
    assert order == ["greedy", "greedy", "a", "b", "greedy", "greedy"], "one ran, one was next: then by turns"


def test_who_holds_most_yields_to_who_holds_less(pool):
    """Six places, all of one caller who sends slowly: another one gets in all the same."""
    lost: list[str] = []

    async def slow(n: int) -> None:
        try:
            async with pool.place("slow"):
                await asyncio.sleep(60)  # its body comes
        except Busy:
            lost.append("slow")

    async def good() -> str:
        async with pool.place("good") as place:
            return await pool.run(lambda: "answered", place)

    async def all_of_them() -> list[str]:
        holding = [asyncio.create_task(slow(n)) for n in range(6)]
        await asyncio.sleep(0.01)
        assert pool.taken == 6
        with pytest.raises(Busy):
            async with pool.place("slow"):
                pass
        answers = await asyncio.gather(*(good() for _ in range(3)))
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
        return answers

    assert asyncio.run(all_of_them()) == ["answered"] * 3
    assert 1 <= len(lost) <= 3
    assert pool.taken == 0


def test_what_waits_too_long_is_given_up_and_leaves_no_place():
    pool, go = Pool("test", workers=1, queue=5, timeout=0.05), threading.Event()

    async def ask() -> None:
        async with pool.place("a") as place:
            await pool.run(lambda: go.wait(30), place)

    async def both() -> None:
        results = await asyncio.gather(ask(), ask(), return_exceptions=True)
        assert [type(result) for result in results] == [Busy, Busy]
        go.set()
        async with pool.place("b") as place:
            assert await pool.run(lambda: 7, place) == 7

    asyncio.run(both())
    assert pool.taken == 0
    pool.close()


def test_an_error_of_the_work_is_its_own(pool):
    async def ask() -> None:
        async with pool.place("a") as place:
            await pool.run(lambda: (_ for _ in ()).throw(TimeoutError("of the work")), place)

    with pytest.raises(TimeoutError, match="of the work"):
        asyncio.run(ask())
    assert pool.taken == 0
