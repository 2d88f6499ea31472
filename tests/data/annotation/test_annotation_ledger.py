"""The ledger: what it says survives a kill at any byte, and money is counted exactly."""

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest

from data.annotation.costs import Price, dollars, list_price
from data.annotation.ledger import (
    Answered,
    BatchEnded,
    BatchNamed,
    BatchSent,
    Event,
    Ledger,
    Lost,
    Named,
    Sent,
    Unbilled,
)
from data.annotation.trace_checks import Rejection


def sent(request: str, reserved: str = "0.02") -> Sent:
    return Sent(request=request, example="e", attempt=1, reserved=Decimal(reserved), stored=True)


def answered(request: str, cost: str = "0.0042") -> Answered:
    return Answered(
        request=request,
        example="e",
        attempt=1,
        model="m",
        tokens_in=10,
        tokens_out=5,
        cost=Decimal(cost),
        how="live",
        text="line\nbreak, “quotes”, \ud800",
        reasons=(Rejection(kind="cut-off", text="ß"),),
    )


EVENTS: list[Event] = [
    sent("a"),
    sent("b"),
    answered("a"),
    Named(request="b", response="resp_1"),
    BatchSent(batch="k", requests=2, reserved=Decimal("0.1")),
    sent("c"),
    Unbilled(request="c", why="429"),
    sent("d"),
    Lost(request="d", cost=Decimal("0.02")),
    BatchNamed(batch="k", name="batch_1"),
    answered("x", "0.0000001"),
    BatchEnded(batch="k", status="completed"),
]


def state(ledger: Ledger) -> tuple:
    return (
        ledger.answers,
        {name: (o.sent, o.response) for name, o in ledger.open.items()},
        {key: (o.sent, o.name) for key, o in ledger.batches.items()},
        (ledger.spent, ledger.reserved, ledger.lost, ledger.tokens_in, ledger.tokens_out, ledger.rejected),
    )


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(*EVENTS)
    ledger.close()
    again = Ledger(tmp_path / "ledger.jsonl")
    assert state(again) == state(ledger)
    assert again.open["b"].response == "resp_1" and not again.batches
    assert (again.spent, again.lost, again.reserved) == (Decimal("0.0242001"), Decimal("0.02"), Decimal("0.02"))


def test_a_kill_at_any_byte_leaves_a_ledger_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(*EVENTS)
    ledger.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(0, len(whole), 13):
        path.write_bytes(whole[:cut])
        torn = Ledger(path)
        kept = path.read_bytes()
        assert kept == b"".join(lines[: kept.count(b"\n")])
        torn.append(sent("z"))
        torn.close()
        assert "z" in Ledger(path).open


@pytest.mark.parametrize(
    ("found", "left", "line"),
    [
        (b'"event": "Sent"', b'"event": "Sold"', 1),
        (b'"0.0042"', b'"a lot"', 3),
        (b'"tokens_in": 10', b'"tokens_in": "10"', 3),
        (b'"request": "b", "response"', b'"request": "z", "response"', 4),  # of a request that was never sent
        (b'"batch": "k", "requests"', b'"batch": "z", "requests"', 10),
        (b'"event"', b"\0\0\0\0\0\0\0", 1),
    ],
)
def test_a_damaged_line_is_told_and_nothing_is_cut(found: bytes, left: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(*EVENTS)
    before = path.read_bytes().replace(found, left, 1)
    path.write_bytes(before)
    with pytest.raises(ValueError, match=f"line {line}: is no event.*restore the file"):
        Ledger(path)
    assert path.read_bytes() == before


def test_many_tasks_share_their_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import time

    flushes = []

    def slow_disk(handle: int) -> None:
        flushes.append(handle)
        time.sleep(0.005)

    ledger = Ledger(tmp_path / "ledger.jsonl")
    monkeypatch.setattr(os, "fsync", slow_disk)

    async def many() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(500):
                tasks.create_task(ledger.commit(sent(str(number))))

    asyncio.run(many())
    assert len(ledger.open) == 500 and len(flushes) <= 5
    assert len(Ledger(tmp_path / "ledger.jsonl").open) == 500


def test_a_full_disk_stops_everything_that_relies_on_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    ledger = Ledger(tmp_path / "ledger.jsonl")

    async def several() -> list:
        return await asyncio.gather(*(ledger.commit(sent(str(n))) for n in range(5)), return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert all(isinstance(error, OSError) for error in asyncio.run(several()))
    with pytest.raises(OSError, match="No space"):
        ledger.append(sent("later"))
    assert not ledger.open


def test_prices_are_exact_and_known_for_dated_snapshots() -> None:
    price = list_price("gpt-4o-2024-08-06")
    assert price == list_price("gpt-4o") == Price(tokens_in=Decimal("2.50"), tokens_out=Decimal("10.00"))
    assert price is not None
    assert price.cost(1_000_000, 100_000) == Decimal("3.5") and price.batched().cost(1, 1) == Decimal("0.00000625")
    assert list_price("llama-3.1-8b") is None
    assert (dollars(Decimal("1234.5")), dollars(Decimal("0.00421")), dollars(Decimal(0))) == (
        "$1,234.50",
        "$0.0042",
        "$0.00",
    )
