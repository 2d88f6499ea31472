"""Training utterances -> plain call-centre documents: what the tiny base foundation is pretrained on.

Dialogues, forms, records, notes and tagged notes say again what a caller said, so that copying can emerge; every token of the answer syntax
occurs. There are no instruction prompts. Values come from training utterances or are invented words; no test-only value is ever written.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from data.callcentre.dialogues import Utterance, build_ontology, held_out_values, iter_utterances, load_domains
from data.callcentre.values import DIGIT_WORDS
from data.records import Justification, Mention, Ontology, Trace, Turn
from data.supervision import INSTRUCTIONS, MODE_TOKENS, answer_json, trace_text
from model.pretraining import Document, Segment
from model.tiny_tokenizer import BOS, END

ONSETS = (*"bcdfghjklmnprstvwz", "br", "ch", "cl", "cr", "dr", "fl", "fr", "gr", "pl", "sh", "sl", "st", "th", "tr")
VOWELS = ("a", "a", "e", "e", "i", "i", "o", "o", "u", "ai", "ea", "ee", "oo", "ou")
CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "d", "k", "ck", "ll", "nd", "ng", "nt", "rd", "rk", "rn", "st")

INVENTED_SHARE = 0.35
"""Share of utterances whose names and listed values give way to other words: copying must not depend on knowing the value."""
RENAMED_SHARE = 0.5
"""Share of labels that get another name, in the exercises that rename."""


@dataclass(frozen=True)
class Pool:
    """Training utterances to draw from, the labels' kinds and nouns, and words to make values of."""

    utterances: Sequence[Utterance]
    ontology: Ontology
    kinds: dict[str, str]
    nouns: dict[str, str]
    words: Sequence[str]
    label_words: Sequence[str]

    def draw(self, rng: random.Random) -> Utterance:
        """One utterance, sometimes with other values."""
        utterance = rng.choice(self.utterances)
        return _with_other_values(utterance, self, rng) if rng.random() < INVENTED_SHARE else utterance


def build_pool(count: int, seed: int) -> Pool:
    """`count` utterances of the train split; any seed gives training frames and values only."""
    utterances = list(iter_utterances("train", count, seed))
    labels = [label for domain in load_domains() for label in domain.labels.values()]
    words = sorted({word for utterance in utterances for word in utterance.transcript.split()})
    return Pool(
        utterances=utterances,
        ontology=build_ontology(),
        kinds={label.name: label.kind for label in labels},
        nouns={label.name: label.noun for label in labels},
        words=words,
        label_words=sorted({word for label in labels for word in label.name.split("_")}),
    )


def is_clean(document: Document) -> bool:
    """Whether a document says no test-only value."""
    text = " ".join(segment.text for segment in document).lower()
    return not held_out_values().find(" ".join(re.findall(r"[a-z']+", re.sub(r"<[^>]*>", " ", text))))


def invent_word(rng: random.Random) -> str:
    """A pronounceable word that means nothing: 1 or 2 syllables."""
    syllables = rng.choice((1, 1, 2, 2, 2))
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))


def rename_labels(labels: Sequence[str], pool: Pool, rng: random.Random) -> dict[str, str]:
    """Other names for some labels, so that labels are copied from the prompt and unseen ones are understood by their last word.

    Only labels whose last word is theirs alone get another name: what it asks for stays clear.
    """
    last_words = [label.rpartition("_")[2] for label in labels]
    names: dict[str, str] = {}
    for label, last in zip(labels, last_words, strict=True):
        if last_words.count(last) == 1 and rng.random() < RENAMED_SHARE:
            first = rng.choice((*pool.label_words, rng.choice(pool.words)))
            noun = pool.nouns[label].replace(" ", "_")
            name = rng.choice((f"{first}_{last}", f"{first}_{last}", f"{first}_{noun}", f"{noun}_{last}"))
            if name not in labels and name not in names.values():
                names[label] = name
    return names


def _with_other_values(utterance: Utterance, pool: Pool, rng: random.Random) -> Utterance:
    """The same turn with other names and listed values, wherever they are said."""
    changes = {}
    for slot in utterance.slots:
        if pool.kinds[slot.label] in ("person", "doctor", "list"):
            count = len(slot.spoken.split()) if rng.random() < 0.7 else rng.randint(1, 3)
            changes[slot.spoken] = " ".join(
                invent_word(rng) if rng.random() < 0.7 else rng.choice(pool.words) for _ in range(count)
            )

    def change(text: str) -> str:
        for old, new in changes.items():
            text = re.sub(rf"(?<![\w']){re.escape(old)}(?![\w'])", new, text)
        return text

    trace = utterance.trace
    return replace(
        utterance,
        transcript=change(utterance.transcript),
        slots=tuple(replace(slot, spoken=changes.get(slot.spoken, slot.spoken)) for slot in utterance.slots),
        context=tuple(Turn(speaker=turn.speaker, text=change(turn.text)) for turn in utterance.context),
        trace=Trace(
            transcription=change(trace.transcription),
            mentions=tuple(Mention(label=m.label, text=change(m.text)) for m in trace.mentions),
            justifications=tuple(
                Justification(label=j.label, value=change(j.value), because=change(j.because))
                for j in trace.justifications
            ),
        ),
    )


Writer = Callable[[Pool, Utterance, random.Random], Document]


def iter_base_documents(pool: Pool, rng: random.Random) -> Iterator[Document]:
    """An endless stream of plain documents."""
    writers, weights = zip(*WRITERS, strict=True)
    while True:
        writer: Writer = rng.choices(writers, weights)[0]
        document = (Segment(BOS), *writer(pool, pool.draw(rng), rng), Segment(END, learn=True))
        if is_clean(document):
            yield document


def _around_caller(before: str, transcript: str, after: str, rng: random.Random) -> Document:
    """Text around a caller's turn; half the time the turn is only heard, and not learned."""
    heard = rng.random() < 0.5
    return (Segment(before, learn=True), Segment(transcript, learn=not heard, heard=heard), Segment(after, learn=True))


def _turns(utterance: Utterance) -> str:
    return "".join(f"{turn.speaker}: {turn.text}\n" for turn in utterance.context)


def _dialogue(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    check = " and ".join(f"the {pool.nouns[slot.label]} is {slot.spoken}" for slot in u.slots)
    reply = f"\nagent: {rng.choice(('so', 'okay', 'right'))} {check}"
    return _around_caller(f"{_turns(u)}caller: ", u.transcript, reply, rng)


def _recording(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    """A turn heard badly, then written out."""
    written = f"\nwritten: {u.transcript}"
    return (Segment("recording: ", learn=True), Segment(u.transcript, heard=True), Segment(written, learn=True))


def _form(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    lines = "\n".join(f"{slot.label}: {slot.spoken}" for slot in u.slots)
    return _around_caller("### call\ncaller: ", u.transcript, f"\n### form\n{lines}", rng)


def _record(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    """The values as one JSON object, some under other names, some with a second value."""
    pairs = [
        (slot.label if rng.random() < 0.8 else pool.nouns[slot.label].replace(" ", "_"), slot.spoken)
        for slot in u.slots
    ]
    second = ""
    if rng.random() < 0.15:
        second = pool.draw(rng).slots[0].spoken
        pairs.append((pairs[0][0], second))
    rng.shuffle(pairs)
    before = "### call\n" + (_turns(u) if rng.random() < 0.5 else "") + "caller: "
    after = (f" or {second}" if second else "") + f"\n### record\n{answer_json(tuple(pairs))}"
    return _around_caller(before, u.transcript, after, rng)


def _fields_of_record(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    """Field names first, then the turn, then those of the fields that it fills."""
    others = [rng.choice(list(pool.kinds)) for _ in range(rng.randint(1, 4))]
    names = list(dict.fromkeys([slot.label for slot in u.slots] + others))
    rng.shuffle(names)
    new = rename_labels(names, pool, rng)
    names = [new.get(name, name) for name in names]
    answer = answer_json(tuple((new.get(slot.label, slot.label), slot.spoken) for slot in u.slots))
    return _around_caller(f"fields: {', '.join(names)}\ncall: ", u.transcript, f"\nrecord: {answer}", rng)


def _tagged_note(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    """Notes in the tags of reasoning and answer, with all or little of the reasoning."""
    opened, closed = rng.choice((("<thinking>", "</thinking>"), ("<think>\n", "\n</think>\n")))
    reply = rng.choice(("thank you", "okay", "one moment please", answer_json(())))
    slot, because = u.slots[0], u.trace.justifications[0].because
    note = f"the {pool.nouns[slot.label]} is {slot.spoken} because {because}."
    if rng.random() < 0.3:
        note = trace_text(u.trace)
    return _around_caller("caller: ", u.transcript, f"\n{opened}{note}{closed}<response>{reply}</response>", rng)


def _summary(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    said = ", ".join(f"{pool.nouns[slot.label]} {slot.spoken}" for slot in u.slots)
    after = f"\nsummary: the caller wants help with {u.domain} and says {said}."
    return _around_caller("call: ", u.transcript, after, rng)


def _word_list(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    """Words without sense, or digits, twice: nothing but copying helps."""
    if rng.random() < 0.4:
        words = " ".join(rng.choice(list(DIGIT_WORDS)) for _ in range(rng.randint(3, 8)))
        return (Segment("number: "), Segment(words, heard=True), Segment(f"\nagain: {words}", learn=True))
    count = rng.randint(3, 12)
    words = " ".join(invent_word(rng) if rng.random() < 0.4 else rng.choice(pool.words) for _ in range(count))
    return (Segment("words: "), Segment(words), Segment(f"\nagain: {words}", learn=True))


def _glossary(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    labels = rng.sample([label for group in pool.ontology.domains.values() for label in group], 4)
    return (Segment("labels\n" + "\n".join(f"{label.name}: {label.description}" for label in labels), learn=True),)


def _guide(pool: Pool, u: Utterance, rng: random.Random) -> Document:
    """Sentences that hold the words of instructions, so that no token stays untrained."""
    switch = rng.choice(list(MODE_TOKENS.values()))
    lines = [*rng.sample(INSTRUCTIONS, 2), f"say {switch} to the instruction", "the audio is the answer"]
    return (Segment("### guide\n" + "\n".join(rng.sample(lines, len(lines))), learn=True),)


WRITERS: tuple[tuple[Writer, float], ...] = (
    (_dialogue, 0.14),
    (_recording, 0.16),
    (_form, 0.10),
    (_record, 0.18),
    (_fields_of_record, 0.14),
    (_tagged_note, 0.08),
    (_summary, 0.06),
    (_word_list, 0.08),
    (_glossary, 0.04),
    (_guide, 0.02),
)
"""The kinds of documents and how often each is written."""
