"""The text of the synthetic call centre: what a corpus made from it promises about its splits, gold slots and traces."""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pytest

from data.callcentre.dialogues import Utterance, build_ontology, held_out_values, iter_utterances, load_domains
from data.callcentre.grammar import check_held_out_apart, load_shared, read_domain
from data.callcentre.values import amount_value, date_value, digits_value, time_value
from data.records import SPLITS, Split

COUNTS: dict[Split, int] = {"train": 3000, "validation": 300, "test": 400, "test_frame": 200, "test_domain": 300}


@pytest.fixture(scope="module")
def corpus() -> dict[Split, list[Utterance]]:
    return {split: list(iter_utterances(split, COUNTS[split], seed=7)) for split in SPLITS}


@pytest.fixture(scope="module")
def everything(corpus: dict[Split, list[Utterance]]) -> list[Utterance]:
    return [utterance for split in SPLITS for utterance in corpus[split]]


def is_said_in(words: str, text: str) -> bool:
    return f" {words} " in f" {text} "


def test_the_same_seed_gives_the_same_utterances_and_another_seed_others() -> None:
    first = list(iter_utterances("train", 50, seed=1))
    assert first == list(iter_utterances("train", 50, seed=1))
    assert first[:20] == list(islice(iter_utterances("train", 500, seed=1), 20)), (
        "the size of a corpus must not change its start"
    )
    assert not {u.transcript for u in first} & {u.transcript for u in iter_utterances("train", 50, seed=2)}
    assert [u.id for u in first[:2]] == ["train-000000", "train-000001"]


def test_it_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from data.callcentre.dialogues import iter_utterances\nprint([u.transcript for u in iter_utterances('test', 20, 3)])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            cwd=Path.cwd(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{[u.transcript for u in iter_utterances('test', 20, 3)]}\n"}


def test_importing_it_loads_only_the_standard_library() -> None:
    code = "import sys, data.callcentre.dialogues; print(sorted({'numpy', 'torch', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_no_transcript_occurs_twice_in_a_split_or_in_two_splits(everything: list[Utterance]) -> None:
    assert len({u.transcript for u in everything}) == sum(COUNTS.values())


def test_no_training_value_is_held_out_not_even_in_a_context(corpus: dict[Split, list[Utterance]]) -> None:
    find = held_out_values().find
    for utterance in corpus["train"] + corpus["validation"]:
        assert utterance.held_out == ()
        for text in [utterance.transcript, *(turn.text for turn in utterance.context)]:
            assert find(text) == (), text


def test_held_out_canonical_values_never_occur_among_the_training_slots(corpus: dict[Split, list[Utterance]]) -> None:
    trained = {(s.label, s.canonical) for u in corpus["train"] + corpus["validation"] for s in u.slots}
    find = held_out_values().find
    for utterance in corpus["test"]:
        new = [slot for slot in utterance.slots if find(slot.spoken)]
        assert bool(new) == ("value" in utterance.held_out)
        assert not {(slot.label, slot.canonical) for slot in new} & trained


def test_held_out_frames_are_said_in_their_own_split_only(corpus: dict[Split, list[Utterance]]) -> None:
    wordings = [
        re.compile(re.sub(r"\\\{\w+\\\}", r"[a-z' ]+", re.escape(template)))
        for domain in load_domains()
        for frame in domain.frames
        if frame.held_out and not domain.held_out
        for template in frame.templates
    ]
    texts = [
        text
        for u in corpus["train"] + corpus["validation"]
        for text in (u.transcript, *(turn.text for turn in u.context))
    ]
    assert not [text for wording in wordings for text in texts if wording.search(text)]
    said = [w for w in wordings if any(w.search(u.transcript) for u in corpus["test_frame"])]
    assert len(said) > 0.8 * len(wordings)


def test_the_held_out_domain_is_its_own_split(corpus: dict[Split, list[Utterance]]) -> None:
    domains = {split: {u.domain for u in corpus[split]} for split in SPLITS}
    assert domains["test_domain"] == {"healthcare"}
    assert (
        domains["train"]
        == domains["validation"]
        == domains["test"]
        == domains["test_frame"]
        == {"banking", "retail", "telecom", "travel"}
    )
    assert all("domain" in u.held_out for u in corpus["test_domain"])


def test_a_good_share_of_the_test_split_is_held_out(corpus: dict[Split, list[Utterance]]) -> None:
    share = Counter(fact for u in corpus["test"] for fact in u.held_out)
    assert share["frame"] == 0
    assert all("frame" in u.held_out for u in corpus["test_frame"])
    assert 0.19 < share["value"] / COUNTS["test"] < 0.31


def test_texts_are_lower_case_words_only(everything: list[Utterance]) -> None:
    spoken = re.compile(r"[a-z']+( [a-z']+)*")
    for utterance in everything:
        for text in [
            utterance.transcript,
            *(turn.text for turn in utterance.context),
            *(s.spoken for s in utterance.slots),
        ]:
            assert spoken.fullmatch(text), text


def test_turns_are_short_and_fill_one_to_four_known_slots(everything: list[Utterance]) -> None:
    ontology = {domain: {label.name for label in labels} for domain, labels in build_ontology().domains.items()}
    lengths = [len(u.transcript.split()) for u in everything]
    assert 10 < sum(lengths) / len(lengths) < 12 and max(lengths) <= 18
    for utterance in everything:
        labels = [slot.label for slot in utterance.slots]
        assert 1 <= len(labels) <= 4 and len(set(labels)) == len(labels) and set(labels) <= ontology[utterance.domain]
        assert len(utterance.context) <= 3


def test_every_gold_value_is_said_in_the_transcript(everything: list[Utterance]) -> None:
    for utterance in everything:
        for slot in utterance.slots:
            assert is_said_in(slot.spoken, utterance.transcript), (slot, utterance.transcript)


def test_traces_end_in_the_gold_values_and_mention_only_what_is_said(everything: list[Utterance]) -> None:
    for utterance in everything:
        trace = utterance.trace
        assert trace.transcription == utterance.transcript
        gold = [(slot.label, slot.spoken) for slot in utterance.slots]
        assert [(j.label, j.value) for j in trace.justifications] == gold
        last = {mention.label: mention.text for mention in trace.mentions}
        assert list(last.items()) == gold, "the last mention of a label is the one that counts"
        at = 0
        for mention in trace.mentions:
            at = f"{utterance.transcript} ".index(f"{mention.text} ", at) + len(mention.text)
        assert all(4 <= len(j.because.split()) <= 10 for j in trace.justifications)


def test_a_repaired_value_is_mentioned_but_not_gold(corpus: dict[Split, list[Utterance]]) -> None:
    repaired = [u for u in corpus["train"] if len(u.trace.mentions) > len(u.slots)]
    assert 0.05 < len(repaired) / COUNTS["train"] < 0.2
    for utterance in repaired:
        (reason,) = [j for j in utterance.trace.justifications if j.because.startswith("caller corrects")]
        wrong, right = [m.text for m in utterance.trace.mentions if m.label == reason.label]
        assert reason.because == f"caller corrects {wrong} to {right}" and reason.value == right != wrong
        assert wrong not in {slot.spoken for slot in utterance.slots if slot.label == reason.label}


def test_an_answer_follows_the_question_for_its_label(everything: list[Utterance]) -> None:
    domains = {domain.name: domain for domain in load_domains()}
    answers = 0
    for utterance in everything:
        for reason in utterance.trace.justifications:
            if reason.because.startswith("agent asked"):
                answers += 1
                question = utterance.context[-1]
                assert question.speaker == "agent"
                assert any(question.text.endswith(ask) for ask in domains[utterance.domain].labels[reason.label].ask)
    assert answers > 0.2 * len(everything)


def test_every_label_is_common_enough_to_be_learned(corpus: dict[Split, list[Utterance]]) -> None:
    for split in ("train", "test_domain"):
        counts = Counter((u.domain, slot.label) for u in corpus[split] for slot in u.slots)
        totals = Counter(u.domain for u in corpus[split] for _ in u.slots)
        for domain in load_domains():
            if domain.name in totals:
                shares = {label: counts[domain.name, label] / totals[domain.name] for label in domain.labels}
                assert min(shares.values()) > 0.02, shares


def test_the_corpus_is_as_wide_as_documented() -> None:
    domains = load_domains()
    assert len(domains) >= 5 and len(build_ontology().labels()) >= 30
    for domain in domains:
        own = [frame for frame in domain.frames if frame.own]
        assert sum(not frame.held_out for frame in own) >= 12
        assert domain.held_out or sum(frame.held_out for frame in own) >= 3


def test_values_in_their_three_forms() -> None:
    assert (date_value(3, 3).spoken, date_value(3, 3).surface, date_value(3, 3).canonical) == (
        "march third",
        "March 3rd",
        "--03-03",
    )
    assert date_value(12, 31).spoken == "december thirty first" and date_value(5, 12).surface == "May 12th"
    amount = amount_value(45, 20)
    assert (amount.spoken, amount.surface, amount.canonical) == (
        "forty five dollars and twenty cents",
        "$45.20",
        "45.20 USD",
    )
    assert (amount_value(250, 0).spoken, amount_value(250, 0).surface) == ("two hundred fifty dollars", "$250")
    phone = digits_value("phone", "5550123", "oh")
    assert (phone.spoken, phone.surface) == ("five five five oh one two three", "555-0123")
    time = time_value(15, 30, "afternoon")
    assert (time.spoken, time.surface, time.canonical) == ("three thirty in the afternoon", "3:30 PM", "15:30")


def test_held_out_values_are_found_in_any_text() -> None:
    finder = held_out_values()
    assert finder.find("i would like the gold family plan in boston") == ("gold family", "boston")
    assert finder.find("i would like the gold plan in chicago") == ()
    date = next(phrase for phrase in finder.phrases() if phrase.startswith("march "))
    assert finder.find(f"starting {date} please") == (date,)
    long_amount = next(phrase for phrase in finder.phrases() if phrase.endswith(" dollars"))
    assert finder.find(f"it was {long_amount}") == (long_amount,)


def test_asking_for_more_than_the_grammar_can_say_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.callcentre.dialogues.MAX_ATTEMPTS", 1)
    with pytest.raises(ValueError, match="split 'test'; ask for fewer"):
        list(iter_utterances("test", 100, seed=0))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("frames", 0, "templates", 0),
            "move me to {plan}",
            r"banking.json: frames\[0\], field 'templates'.*unknown slot 'plan'",
        ),
        (("frames", 0, "templates", 0), "Pay 20 to {card_type}", r"frames\[0\].*lower-case words"),
        (("frames", 0, "templates", 0), "<wish> pay {card_type}", r"frames\[0\].*unknown macro 'wish'"),
        (("frames", 0, "templates", 0), "hello there", r"frames\[0\].*1 to 4 different slots"),
        (("frames", 0, "then"), ["plan"], r"frames\[0\], field 'then': unknown label 'plan'"),
        (("frames", 1, "id"), "transfer", r"banking.json: frame id 'transfer' occurs twice"),
        (
            ("labels", "card_type", "description"),
            "",
            r"banking.json: label 'card_type': field 'description' is missing",
        ),
        (
            ("labels", "card_type", "kind"),
            "colour",
            r"label 'card_type', field 'kind': 'colour' is unknown; use one of",
        ),
        (("labels", "card_type", "values"), [], r"label 'card_type': field 'values' is missing"),
        (("labels", "card_type", "says"), ["my {account_type}"], r"label 'card_type', field 'says'"),
        (("labels", "branch_city", "list"), "towns", r"label 'branch_city', field 'list'.*use one of cities"),
        (("labels", "shoe_size"), "shared", r"label 'shoe_size': shared.json has no such label; describe it here"),
        (("frames",), [], r"banking.json: field 'frames' is missing"),
    ],
)
def test_mistakes_in_a_domain_file_name_file_and_field(
    tmp_path: Path, path: tuple[str | int, ...], value: object, message: str
) -> None:
    raw = json.loads((files("data.callcentre") / "domains" / "banking.json").read_text())
    target = raw
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    file = tmp_path / "banking.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        read_domain(file, load_shared())


def test_a_file_that_is_no_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{\n "name": \n')
    with pytest.raises(ValueError, match=r"broken.json, line 3: not JSON"):
        read_domain(tmp_path / "broken.json", load_shared())


def test_a_value_held_out_here_and_trained_there_is_refused(tmp_path: Path) -> None:
    raw = json.loads((files("data.callcentre") / "domains" / "banking.json").read_text())
    raw["labels"]["card_type"]["held_out"] = ["checking"]
    (tmp_path / "banking.json").write_text(json.dumps(raw))
    domain = read_domain(tmp_path / "banking.json", load_shared())
    with pytest.raises(
        ValueError,
        match=r"label 'card_type' holds out 'checking', which label 'account_type' of banking\.json trains on",
    ):
        check_held_out_apart([domain])
