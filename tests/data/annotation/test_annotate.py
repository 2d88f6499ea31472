"""Live annotation against a real server on loopback: what is asked, paid, kept, and told when it fails."""

import json
import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from filelock import FileLock

from data.annotate import annotate
from data.annotation.costs import Price, list_price
from data.annotation.live import Pace
from data.annotation.report import annotate_by_rule
from data.annotation.requests import AnnotationStoppedError, AnnotatorConfig
from data.annotation.settings import Listener, Where
from data.annotation.trace_rules import rule_trace
from data.manifest import Corpus, open_corpus
from openai_server.answering import NO_ID, Faults
from openai_server.corpus import write_text_corpus
from openai_server.server import KEY, LoopbackServer, running_server

PACE = Pace(concurrency=8, timeout_s=0.6, grace_s=0.5, poll_s=0.1)
PRICE = list_price("gpt-4o")
assert PRICE is not None


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_text_corpus(tmp_path / "corpus", 20)


def run(
    corpus: Corpus, server: LoopbackServer, *, config: AnnotatorConfig | None = None, limit: int | None = None, **where
):
    """Annotate and give back folder and report."""
    listener = where.pop("listener", None)
    place = Where(**{"url": server.url, "price": PRICE, "pace": PACE, **where})
    done = annotate(corpus, config or AnnotatorConfig(), place, limit=limit, listener=listener)
    assert done is not None
    return done


def dollars(server: LoopbackServer) -> Decimal:
    return sum((PRICE.cost(bill["tokens_in"], bill["tokens_out"]) for bill in server.bank.bills), Decimal(0))


def paid_once(server: LoopbackServer) -> bool:
    return max(Counter(bill["request"] for bill in server.bank.bills).values()) == 1


def everything_in(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file())


def test_every_example_gets_its_trace_and_a_second_run_asks_for_nothing(corpus: Corpus, server: LoopbackServer) -> None:
    folder, report = run(corpus, server)
    annotated = open_corpus(corpus.root)
    assert [row.trace for row in annotated.examples] == [
        rule_trace(replace(row.example, id=NO_ID)) for row in annotated.examples
    ]
    assert (report.accepted, report.answers, report.cost_usd) == (20, 20, dollars(server))
    assert report.models == {"gpt-4o-2024-08-06": 20}  # as the server names it
    assert annotated.traces is not None
    assert annotated.traces.annotator["model"] == "gpt-4o" and annotated.traces.annotator["prompt_version"] == 1
    assert json.loads((folder / "report.json").read_text())["cost_usd"] == str(dollars(server))

    asked = len(server.requests)
    run(annotated, server)
    assert len(server.requests) == asked
    assert open_corpus(corpus.root).traces == annotated.traces


def test_what_decides_an_answer_enters_the_fingerprint_and_where_it_runs_does_not(
    corpus: Corpus, server: LoopbackServer
) -> None:
    first, _ = run(corpus, server, limit=2)
    same, _ = run(
        corpus,
        server,
        limit=2,
        pace=replace(PACE, concurrency=1),
        price=Price(tokens_in=Decimal(9), tokens_out=Decimal(9)),
    )
    assert same == first and len(server.bank.bills) == 2
    names = {
        AnnotatorConfig(**change).fingerprint()
        for change in (
            {},
            {"model": "gpt-4o-mini"},
            {"api": "responses"},
            {"temperature": 0.5},
            {"max_output_tokens": 9},
        )
    }
    assert len(names) == 5
    other, _ = run(corpus, server, config=AnnotatorConfig(model="gpt-4o-mini"), limit=2)
    assert other != first and len(server.bank.bills) == 4
    run(corpus, server, limit=2)
    assert len(server.bank.bills) == 4  # what the first one answered is kept


def test_of_a_corpus_that_was_made_anew_only_what_changed_is_asked_for_again(
    corpus: Corpus, server: LoopbackServer
) -> None:
    run(corpus, server)
    write_text_corpus(corpus.root, 20, poisoned=1)  # one transcript is another one
    assert open_corpus(corpus.root).traces is None
    _, report = run(open_corpus(corpus.root), server, config=AnnotatorConfig())
    assert (report.accepted, report.quarantined, len(server.bank.bills)) == (19, 1, 20 + 3)
    assert paid_once(server) and report.cost_usd == dollars(server)


def test_a_rejected_answer_is_asked_for_again_with_the_reason_and_at_last_quarantined(
    tmp_path: Path, server: LoopbackServer
) -> None:
    corpus = write_text_corpus(tmp_path / "corpus", 6, poisoned=1)
    folder, report = run(corpus, server)
    assert (report.accepted, report.quarantined, report.answers) == (5, 1, 8)
    assert report.rejections == {"slots-differ": 3}
    (row,) = (json.loads(line) for line in (folder / "quarantined.jsonl").read_text().splitlines())
    assert row["id"] == corpus.examples[0].example.id
    assert row["reasons"][0]["kind"] == "slots-differ" and "something else" in row["answer"]
    asked = [text for text in server.asked if "unteachable" in text]
    assert ["were refused" in text for text in asked] == [False, True, True]
    annotated = open_corpus(corpus.root)
    assert annotated.examples[0].trace is None
    assert annotated.traces is not None and annotated.traces.quarantined == 1


@pytest.mark.parametrize(
    "fault",
    ["late", "cut_before", "cut_after", "garbled", "gateway", "invalid_json", "wrong_slots", "failing", "rate_limited"],
)
def test_each_fault_is_survived_and_paid_once(fault: str, corpus: Corpus) -> None:
    with running_server(Faults(**{fault: 0.3}, late_s=0.8)) as server:
        _, report = run(corpus, server)
        assert report.accepted + report.quarantined == 20 and report.accepted >= 18
        assert paid_once(server) and report.cost_usd == dollars(server)


def test_an_answer_that_was_paid_for_is_found_instead_of_asked_for_again(corpus: Corpus) -> None:
    with running_server(Faults(cut_after=1.0)) as server:
        _, report = run(corpus, server)
        assert report.answers_by_way == {"found": 20} and len(server.bank.bills) == 20


def run_and_lose_track(
    corpus: Corpus, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, config: AnnotatorConfig | None = None
) -> Path:
    """A run that ends while the outcome of some requests is unknown, as a kill leaves it; the ledger."""
    from data.annotate import OpenAIServer

    async def gone(*given):
        raise AnnotationStoppedError("gone")

    with monkeypatch.context() as patch, pytest.raises(AnnotationStoppedError, match="gone"):
        patch.setattr(OpenAIServer, "find", gone)
        run(corpus, server, config=config)
    return next(corpus.root.glob("annotations/*/ledger.jsonl"))


@pytest.mark.parametrize("clock", [0.0, 4e9])
def test_a_clock_that_was_set_makes_no_request_older_or_younger(
    clock: float, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(Faults(cut_after=0.3)) as server:
        server.listed_after_s = 0.8  # of the 1.1 that are waited
        ledger = run_and_lose_track(corpus, server, monkeypatch)
        rows = [{**json.loads(line), "time": clock} for line in ledger.read_text().splitlines()]
        ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
        _, report = run(corpus, server)
        assert report.accepted == 20 and paid_once(server) and report.cost_usd == dollars(server)


def test_where_the_account_keeps_nothing_a_lost_answer_counts_as_paid(corpus: Corpus) -> None:
    with running_server(Faults(cut_after=0.2)) as server:
        server.forgets = True
        _, report = run(corpus, server)
        assert report.accepted == 20 and len(server.bank.bills) > 20
        assert dollars(server) <= report.cost_usd and report.of_it_lost_usd > 0


def test_a_full_disk_ends_the_run_and_loses_no_answer(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with running_server(Faults(working_s=0.02)) as server:
        write, room = os.write, [8_000]

        def fill(handle: int, data: bytes) -> int:
            written = min(room[0], len(data))
            room[0] -= written
            if not written:
                raise OSError(28, "No space left on device")
            return write(handle, data[:written])

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(os, "write", fill)
            run(corpus, server)
        assert 0 < len(server.bank.bills) < 20
        _, report = run(corpus, server)
        assert report.accepted == 20 and paid_once(server) and report.cost_usd == dollars(server)


def test_retry_after_is_waited_for(corpus: Corpus) -> None:
    with running_server(Faults(rate_limited=1.0, retry_after_s=0.6)) as server:
        server.faults_end_after = 1
        begun = time.monotonic()
        run(corpus, server, limit=1)
        assert 0.6 <= time.monotonic() - begun < 30


def test_a_rate_limit_far_below_the_concurrency_slows_down_and_gives_nothing_up(
    corpus: Corpus, server: LoopbackServer
) -> None:
    server.per_second = 10
    _, report = run(corpus, server, pace=replace(PACE, tries=4, concurrency=16))
    assert report.accepted == 20 and paid_once(server)


def test_a_limit_is_a_sample_whose_answers_count_for_the_whole(corpus: Corpus, server: LoopbackServer) -> None:
    folder, report = run(corpus, server, limit=3)
    assert not report.attached and open_corpus(corpus.root).traces is None
    assert len((folder / "partial.jsonl").read_text().splitlines()) == 3
    _, report = run(corpus, server)
    assert report.attached and len(server.bank.bills) == 20 and not (folder / "partial.jsonl").exists()


@pytest.mark.parametrize(
    "faults", [Faults(), Faults(late=0.05, cut_after=0.1, failing=0.1, wrong_slots=0.1, late_s=0.8)]
)
def test_the_cost_limit_is_never_passed_and_a_higher_one_goes_on(tmp_path: Path, faults: Faults) -> None:
    corpus = write_text_corpus(tmp_path / "corpus", 60)
    with running_server(faults) as server:
        _, report = run(corpus, server, max_cost=Decimal("0.1"))
        assert report.too_dear and not report.finished and not report.attached
        assert Decimal("0.07") < dollars(server) <= Decimal("0.1")
        _, report = run(corpus, server, max_cost=Decimal("0.1"))
        assert report.too_dear and dollars(server) <= Decimal("0.1")
        _, report = run(corpus, server, max_cost=Decimal(5))
        assert not report.too_dear and report.attached and paid_once(server)


def test_nothing_is_sent_before_the_estimate_is_confirmed(corpus: Corpus, server: LoopbackServer) -> None:
    seen = []
    place = Where(url=server.url, price=PRICE, pace=PACE)
    listener = Listener(confirm=lambda estimate: bool(seen.append(estimate)))
    assert annotate(corpus, AnnotatorConfig(), place, listener=listener) is None
    assert server.requests == []
    run(corpus, server)
    assert seen[0].requests == 20 and 0.5 < seen[0].cost / dollars(server) < 2


STOPS = {
    "model": ((404, "model_not_found", "The model does not exist"), "--model"),
    "quota": ((429, "insufficient_quota", "You exceeded your current quota"), "quota is used up"),
    "forbidden": ((403, "forbidden", "You may not"), "not allowed"),
    "refused": ((400, "unsupported_value", "temperature is not supported"), "refuses the requests"),
}


@pytest.mark.parametrize("case", STOPS)
def test_what_no_request_can_pass_stops_at_once_with_one_line(
    case: str, corpus: Corpus, server: LoopbackServer
) -> None:
    server.refuses, expected = STOPS[case]
    with pytest.raises(AnnotationStoppedError, match=expected) as stopped:
        run(corpus, server)
    assert "\n" not in str(stopped.value)
    assert len(server.requests) <= 20
    server.refuses = None
    _, report = run(corpus, server)
    assert report.accepted == 20


def test_a_server_that_always_fails_or_is_not_there_ends_the_run(corpus: Corpus) -> None:
    pace = replace(PACE, tries=2)
    with running_server(Faults(failing=1.0)) as server, pytest.raises(AnnotationStoppedError, match="try again later"):
        run(corpus, server, pace=pace)
    with pytest.raises(AnnotationStoppedError, match="run again when it does"):
        run(corpus, server, pace=pace)


def test_a_server_that_keeps_no_answers_works_and_what_may_be_paid_twice_is_counted(corpus: Corpus) -> None:
    notes: list[str] = []
    with running_server(Faults(cut_after=0.2, cut_before=0.1)) as server:
        server.keeps_answers = False
        _, report = run(corpus, server, listener=Listener(on_note=notes.append))
        assert report.accepted == 20 and "asked for again" in notes[0]
        assert len(server.bank.bills) > 20
        assert dollars(server) <= report.cost_usd and report.of_it_lost_usd > 0


@pytest.mark.parametrize("stored", [True, False])
def test_the_responses_api(stored: bool, corpus: Corpus) -> None:
    with running_server(Faults(rate_limited=0.1, wrong_slots=0.1, working_s=0.05)) as server:
        _, report = run(corpus, server, config=AnnotatorConfig(api="responses"), stored=stored)
        assert report.accepted == 20 and report.cost_usd == dollars(server)
        assert any(line.startswith("GET /v1/responses/") for line in server.requests) == stored


def test_a_response_is_fetched_by_its_name_after_a_time_out_or_a_restart(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AnnotatorConfig(api="responses")
    # However long the server is at it, longer than time-out and grace too: as long as it says so.
    pace = replace(PACE, timeout_s=0.3, grace_s=0.1)
    with running_server(Faults(background_s=0.9)) as server:
        run_and_lose_track(corpus, server, monkeypatch, config)
        assert server.bank.bills
        _, report = run(corpus, server, config=config, pace=pace)
        assert report.accepted == 20 and report.answers_by_way["found"] >= 8
        assert paid_once(server) and report.cost_usd == dollars(server)


def test_a_response_that_was_cut_off_before_it_had_a_name_counts_as_paid(corpus: Corpus) -> None:
    with running_server(Faults(cut_after=0.2)) as server:
        _, report = run(corpus, server, config=AnnotatorConfig(api="responses"))
        assert report.accepted == 20 and report.of_it_lost_usd > 0
        assert dollars(server) <= report.cost_usd


def test_a_placeholder_for_a_key_is_no_secret_to_cut_out_of_answers(
    corpus: Corpus, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "to"
    monkeypatch.setenv("OPENAI_API_KEY", "to")
    assert any("to" in row.example.transcript for row in corpus.examples)
    assert run(corpus, server)[1].accepted == 20


def test_the_key_is_in_no_file_no_log_and_no_error(
    corpus: Corpus, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-another-secret-0123456789"
    caplog.set_level("DEBUG")
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    with pytest.raises(AnnotationStoppedError, match="does not accept the key") as stopped:
        run(corpus, server)
    with pytest.raises(AnnotationStoppedError, match="does not accept the key") as stopped_alone:
        run(corpus, server, stored=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    run(corpus, server)
    told = everything_in(corpus.root) + caplog.text + str(stopped.value) + str(stopped_alone.value)
    assert "Incorrect API key provided" in told  # the server repeats the key in it
    assert secret not in told and KEY not in told


def test_the_key_does_not_follow_a_redirect_to_another_server(corpus: Corpus, server: LoopbackServer) -> None:
    with running_server() as other:
        server.redirects_to = other.url
        with pytest.raises(AnnotationStoppedError, match="does not accept the key"):
            run(corpus, server)
        assert other.keys == {None} and not other.bank.bills


def test_a_key_that_is_missing_or_broken_is_told_with_both_remedies(
    corpus: Corpus, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match=r"OPENAI_API_KEY is not set.*--annotator rule"):
        run(corpus, server)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
    with pytest.raises(ValueError, match="characters") as error:
        run(corpus, server)
    assert "sk-two" not in str(error.value)


@pytest.mark.parametrize("url", ["http://user:secret@host/v1", "http://host/v1?key=secret", "ftp://host", "host:8000"])
def test_an_address_with_credentials_or_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--base-url") as error:
        Where(url=url, price=PRICE)
    assert "secret" not in str(error.value)


def test_two_annotations_of_one_corpus_at_once_are_refused(corpus: Corpus, server: LoopbackServer) -> None:
    (corpus.root / "annotations").mkdir()
    with FileLock(corpus.root / "annotations" / ".lock"), pytest.raises(ValueError, match="another process"):
        run(corpus, server)


def test_the_rule_annotator_needs_no_key_and_its_traces_have_another_name(
    corpus: Corpus, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, server)
    paid = open_corpus(corpus.root).traces
    monkeypatch.delenv("OPENAI_API_KEY")
    folder, report = annotate_by_rule(corpus)
    annotated = open_corpus(corpus.root)
    assert (report.accepted, report.quarantined) == (20, 0) and folder.name.startswith("rule-")
    assert all(row.trace == rule_trace(row.example) for row in annotated.examples)
    assert annotated.traces is not None and paid is not None
    assert annotated.traces.annotator["name"] == "rule" and annotated.traces.fingerprint != paid.fingerprint
    assert (corpus.root / paid.file).exists()  # switching back costs nothing
