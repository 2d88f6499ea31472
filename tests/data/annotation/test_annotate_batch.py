"""The Batch API against a real server on loopback: files within the limits, faults, kills between the steps, half the price."""

import json
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

import data.annotation.batch
from data.annotate import annotate
from data.annotation.costs import list_price
from data.annotation.ledger import BatchSent, Ledger
from data.annotation.live import Pace
from data.annotation.report import AnnotationReport
from data.annotation.requests import AnnotationStoppedError, AnnotatorConfig
from data.annotation.settings import Where
from data.manifest import Corpus, open_corpus
from openai_server.answering import Faults
from openai_server.corpus import write_text_corpus
from openai_server.server import KEY, LoopbackServer, running_server

PACE = Pace(concurrency=8, timeout_s=0.5, grace_s=0.5, poll_s=0.05, batch_poll_s=0.02)
PRICE = list_price("gpt-4o")
assert PRICE is not None


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_text_corpus(tmp_path / "corpus", 40)


def run(
    corpus: Corpus, server: LoopbackServer, *, api: str = "chat", batched: bool = True, **where
) -> tuple[Path, AnnotationReport]:
    place = Where(**{"url": server.url, "price": PRICE, "pace": PACE, "batched": batched, **where})
    done = annotate(corpus, AnnotatorConfig(api=api), place)
    assert done is not None
    return done


def dollars(server: LoopbackServer) -> Decimal:
    half = {"batch": PRICE.batched(), "live": PRICE}
    return sum((half[b["how"]].cost(b["tokens_in"], b["tokens_out"]) for b in server.bank.bills), Decimal(0))


def paid_once(server: LoopbackServer) -> bool:
    return max(Counter(bill["request"] for bill in server.bank.bills).values()) == 1


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_batch_costs_half_and_brings_what_live_requests_bring(api: str, corpus: Corpus, tmp_path: Path) -> None:
    other = write_text_corpus(tmp_path / "other", 40)
    with running_server() as server:
        _, live = run(other, server, api=api, batched=False)
        _, batch = run(corpus, server, api=api)
    assert batch.cost_usd == live.cost_usd / 2 and batch.answers_by_way == {"batch": 40}
    assert [row.trace for row in open_corpus(corpus.root).examples] == [
        row.trace for row in open_corpus(other.root).examples
    ]


def test_a_partial_batch_is_completed_by_further_ones(tmp_path: Path) -> None:
    corpus = write_text_corpus(tmp_path / "corpus", 100, poisoned=2)
    some = ("batch_expired", "batch_failing", "batch_twice", "invalid_json", "wrong_slots")
    with running_server(Faults(**dict.fromkeys(some, 0.1))) as server:
        folder, report = run(corpus, server)
        assert report.accepted + report.quarantined == 100 and report.quarantined >= 2
        assert paid_once(server) and report.cost_usd == dollars(server)
        assert len(server.batches.batches) > 2
    names = [json.loads(line)["id"] for line in next(folder.glob("traces-*.jsonl")).read_text().splitlines()]
    assert len(names) == len(set(names)) == report.accepted


def test_a_request_that_the_output_does_not_mention_counts_as_paid_and_is_asked_again(corpus: Corpus) -> None:
    with running_server(Faults(batch_missing=0.2)) as server:
        _, report = run(corpus, server)
        assert report.accepted == 40
        assert report.cost_usd - report.of_it_lost_usd == dollars(server) and report.of_it_lost_usd > 0


def test_files_keep_to_the_limits(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.annotation.batch, "MAX_REQUESTS", 15)
    with running_server() as server:
        server.batches.max_requests = 15
        run(corpus, server)
        assert [b["request_counts"]["total"] for b in server.batches.batches.values()] == [15, 15, 10]
    corpus = write_text_corpus(corpus.root.parent / "other", 40)
    monkeypatch.setattr(data.annotation.batch, "MAX_BYTES", 60_000)
    with running_server() as server:
        run(corpus, server)
        assert max(map(len, server.batches.files.values())) <= 60_000 and len(server.batches.batches) > 2


def test_a_small_queue_makes_smaller_batches(corpus: Corpus) -> None:
    with running_server() as server:
        server.batches.queue = 12
        _, report = run(corpus, server)
        assert report.accepted == 40 and paid_once(server)


def test_a_batch_whose_creation_was_cut_off_is_found(corpus: Corpus) -> None:
    with running_server(Faults(batch_creation_cut=1.0)) as server:
        _, report = run(corpus, server)
        assert report.accepted == 40 and len(server.batches.batches) == 1


def test_a_batch_that_was_never_created_is_sent_again(corpus: Corpus) -> None:
    with running_server() as server:
        folder = corpus.root / "annotations" / f"gpt-4o-{AnnotatorConfig().fingerprint()[:8]}"
        ledger = Ledger(folder / "ledger.jsonl")  # as a kill between the intent and the upload leaves it
        ledger.append(BatchSent(batch="0123456789abcdef", requests=40, reserved=Decimal("0.5")))
        ledger.close()
        _, report = run(corpus, server)
        assert report.accepted == 40 and report.cost_usd == dollars(server) and paid_once(server)


def test_garbage_for_an_answer_makes_no_second_batch(corpus: Corpus) -> None:
    with running_server() as server:
        server.batches.garbled = 2  # its creation and the first look at it
        _, report = run(corpus, server)
        assert report.accepted == 40 and len(server.batches.batches) == 1


def test_an_answer_to_an_example_that_has_changed_since_counts_as_paid(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.annotate import OpenAIServer

    async def kill(*given):
        raise Killed

    with running_server() as server:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(OpenAIServer, "look", kill)
            run(corpus, server)
        write_text_corpus(corpus.root, 40, poisoned=1)
        _, report = run(open_corpus(corpus.root), server)
        assert (report.accepted, report.quarantined) == (39, 1)
        assert paid_once(server) and report.of_it_lost_usd > 0 and dollars(server) <= report.cost_usd


def test_a_batch_of_another_account_is_told_and_not_sent_again(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.annotate import OpenAIServer

    async def kill(*given):
        raise Killed

    with running_server() as server, running_server() as other:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(OpenAIServer, "look", kill)
            run(corpus, server)
        with pytest.raises(AnnotationStoppedError, match=r"not there.*--base-url"):
            run(corpus, other)
        assert not other.batches.batches
        assert run(corpus, server)[1].accepted == 40


def test_the_key_reaches_no_file_even_if_a_batch_repeats_it(corpus: Corpus) -> None:
    with running_server(Faults(batch_failing=0.2)) as server:
        server.batches.complaint = f"no room for {KEY}"
        folder, _ = run(corpus, server)
    told = "".join(path.read_text() for path in folder.rglob("*.jsonl"))
    assert "no room for ***" in told and KEY not in told


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize("step", ["submit", "look", "download"])
def test_a_kill_between_two_steps_pays_nothing_twice(
    step: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.annotate import OpenAIServer

    with running_server() as server:
        whole = getattr(OpenAIServer, step)

        async def kill_after(*given):
            await whole(*given)
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(OpenAIServer, step, kill_after)
            run(corpus, server)
        with pytest.raises(ValueError, match="run with --batch to collect"):
            run(corpus, server, batched=False)
        _, report = run(corpus, server)
        assert report.accepted == 40 and len(server.batches.batches) == 1 and paid_once(server)


def test_what_a_live_run_left_behind_is_settled_first(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.annotate import OpenAIServer

    async def fail(*given):
        raise AnnotationStoppedError("gone")

    with running_server(Faults(cut_after=0.2)) as server:
        with monkeypatch.context() as patch, pytest.raises(AnnotationStoppedError, match="gone"):
            patch.setattr(OpenAIServer, "find", fail)
            run(corpus, server, batched=False)
        left = len(server.bank.bills)
        _, report = run(corpus, server)
        assert report.accepted == 40 and paid_once(server) and report.cost_usd == dollars(server)
        assert report.answers_by_way["found"] >= 1
        assert report.answers_by_way.get("batch", 0) == 40 - left


def test_the_cost_limit_holds_for_batches(tmp_path: Path) -> None:
    corpus = write_text_corpus(tmp_path / "corpus", 100)
    with running_server(Faults(wrong_slots=0.1)) as server:
        _, report = run(corpus, server, max_cost=Decimal("0.1"))
        assert report.too_dear and not report.attached and Decimal("0.07") < dollars(server) <= Decimal("0.1")
        _, report = run(corpus, server, max_cost=Decimal(5))
        assert not report.too_dear and report.attached and paid_once(server)


def test_a_server_without_a_batch_api_and_a_failed_batch_are_told(corpus: Corpus) -> None:
    with running_server() as server:
        server.batches.queue = 0
        with pytest.raises(AnnotationStoppedError, match="token_limit_exceeded"):
            run(corpus, server)
        server.has_batches = False
        with pytest.raises(AnnotationStoppedError, match="without --batch"):
            run(corpus, server)


def test_requests_that_fail_in_every_batch_are_left_and_named(corpus: Corpus) -> None:
    with running_server(Faults(batch_failing=1.0)) as server:
        _, report = run(corpus, server, pace=replace(PACE, tries=2))
        assert not report.finished and not report.attached
        assert len(report.unanswered) == 40 and "server_error" in next(iter(report.unanswered.values()))
