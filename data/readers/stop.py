"""STOP: `manifests/{train,eval,test}.tsv` and the wav files they name -> one row per utterance, its bracketed parse made flat.

STOP (Tomasello et al. 2022) annotates intents and slots as a tree: `[IN:CREATE_ALARM set an alarm [SL:DATE_TIME for eight am ] ]`. Slot
filling knows no trees, so a parse becomes a list of (label, words), in order of mention, by one rule that gives a word to one slot at most:

- an `SL:` node without slots below it fills its label with all its words, those of an intent inside it included;
- an `SL:` node with slots below it, which STOP nests through an intent, is dropped: the slots below it stand under their own labels, and
  its own value would say their words a second time;
- an `SL:` node whose intent left no words fills nothing. The decoupled form drops the words outside slots: `[SL:TODO [IN:GET_TODO ] ]`.

Intents are dropped. Labels are in lower case: "date_time". The transcript is `normalized_utterance`. Of `normalized_seqlogical` (all words)
and `decoupled_normalized_seqlogical`, the first is taken whose slots' words occur in it, in order; a slot's value is the transcript's own
spelling. The authors' eval split is our validation split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from data.audio_folder import AudioFolder
from data.findings import Finding
from data.json_lines import CorpusError, Location
from data.readers.source import AudioSource, Reader, SourceRow, Unusable, plain_slot
from data.readers.tables import iter_table
from data.readers.texts import cuts_word
from data.records import SlotValue, Split

SPLITS: dict[str, Split] = {"train": "train", "eval": "validation", "test": "test"}
TREES = ("normalized_seqlogical", "decoupled_normalized_seqlogical")

_TREE_TOKEN = re.compile(r"\[(?:IN|SL):[^\s\[\]]+|[\[\]]|[^\s\[\]]+")
_DOMAIN_FOLDER = re.compile(r"(.+)_(?:train|eval|test)(?:_\d+)?")
_PART_SUFFIX = re.compile(r"(?<=.)_\d+$")
_APOSTROPHES = "’‘ʼ"


class ParseError(ValueError):
    """A parse that is not a tree of intents and slots; the message says what is wrong with it."""


@dataclass
class _Node:
    """An open bracket of a parse."""

    name: str  # "SL:DATE_TIME"
    slots_before: int
    words: list[str] = field(default_factory=list)  # below it, at any depth
    holds_intent: bool = False


def flatten_parse(parse: str) -> tuple[tuple[str, str], ...]:
    """The slots of a bracketed parse as (label in lower case, words), in order of mention, by the module's rule. ParseError."""
    tokens = _TREE_TOKEN.findall(parse)
    if not tokens or not tokens[0].startswith("[IN:"):
        raise ParseError("does not begin with an intent, [IN:")
    slots: list[tuple[str, str]] = []
    opened: list[_Node] = []
    for place, token in enumerate(tokens):
        if place and not opened:
            raise ParseError(f"goes on with {token!r} after its last bracket")
        if token == "[":
            raise ParseError("has a bracket that opens neither [IN: nor [SL:")
        if token.startswith("["):
            if opened and token.startswith("[IN:"):
                opened[-1].holds_intent = True
            opened.append(_Node(token[1:], len(slots)))
        elif token == "]":
            node = opened.pop()
            if not node.name.startswith("SL:") or len(slots) > node.slots_before:
                continue  # an intent, or a slot that is said by the slots below it
            if node.words:
                slots.append((node.name[3:].lower(), " ".join(node.words)))
            elif not node.holds_intent:
                raise ParseError(f"has a slot without words, {node.name}")
        else:
            for node in opened:
                node.words.append(token)
    if opened:
        raise ParseError(f"lacks the closing bracket of {', '.join(node.name for node in opened)}")
    return tuple(slots)


def locate(words: str, text: str, start: int) -> tuple[int, int] | None:
    """Where `words` first stand in `text` from character `start` on, as whole words: (start, end); None where they do not.

    Case, spaces and the form of apostrophes do not count: the parse writes "mom 's" for "mom’s".
    """
    places = [place for place in range(start, len(text)) if not text[place].isspace()]
    letters = "".join(map(_plain, (text[place] for place in places)))
    wanted = "".join(map(_plain, "".join(words.split())))
    at = letters.find(wanted)
    while at >= 0:
        begin, end = places[at], places[at + len(wanted) - 1] + 1
        if not cuts_word(text, begin, end):
            return begin, end
        at = letters.find(wanted, at + 1)
    return None


def _plain(letter: str) -> str:
    """A letter as it is compared: still one character, so that places stay places."""
    lower = letter.lower()
    return "'" if letter in _APOSTROPHES else lower if len(lower) == 1 else letter


def read(root: Path) -> Iterator[SourceRow | Finding]:
    """The rows of the three manifests, train first. CorpusError when `manifests/train.tsv` is not below `root`."""
    needed = root / "manifests" / "train.tsv"
    if not needed.is_file():
        raise CorpusError(f"{needed}: is missing; give the folder of STOP that holds manifests/ and train_0/")
    return _iter_rows(root)


def _iter_rows(root: Path) -> Iterator[SourceRow | Finding]:
    audio = AudioFolder(root, links=True)
    for name, split in SPLITS.items():
        path = root / "manifests" / f"{name}.tsv"
        if not path.is_file():
            problem, remedy = f"does not exist: there is no {split} split", "copy the authors' file there"
            yield Location(path).warning("split-missing", None, problem, remedy)
            continue
        for line in iter_table(path, ("file_id", "normalized_utterance", TREES[1])):
            if isinstance(line, Finding):
                yield line
                continue
            at, cells = line
            file_id = cells["file_id"].strip()
            at = replace(at, example_id=file_id.removesuffix(".wav").replace("/", "-") or None)
            try:
                yield _row(at, file_id, cells, split, audio)
            except Unusable as error:
                yield error.finding(at)


def _row(at: Location, file_id: str, cells: Mapping[str, str], split: Split, audio: AudioFolder) -> SourceRow:
    if not at.example_id:
        raise Unusable("id-missing", "file_id", "is empty", "write the path of the wav file")
    transcript = cells["normalized_utterance"].strip()
    if not transcript:
        raise Unusable("transcript-missing", "normalized_utterance", "is empty", "fill it, or remove the line")
    domain = cells.get("domain", "").strip() or _folder_domain(file_id)
    if not domain:
        problem = f"is not given, and the path {file_id!r} names none"
        raise Unusable("domain-missing", "domain", problem, "fill it")
    slots = _read_slots(cells, transcript)
    place = _find_audio(file_id, audio)
    if found := audio.problem(place):
        problem, remedy = f"{place!r} {found.problem}", "restore the file, or remove the line"
        raise Unusable("audio-missing", "file_id", problem, remedy)
    return SourceRow(
        file=at.file,
        line=at.line,
        id=at.example_id,
        split=split,
        domain=domain.lower(),
        transcript=transcript,
        slots=slots,
        audio=AudioSource(path=place),
    )


def _read_slots(cells: Mapping[str, str], transcript: str) -> tuple[SlotValue, ...]:
    """The slots of the first parse whose words are the transcript's. Raises Unusable with what is wrong with the last one."""
    remedy = "fill one of them, or remove the line"
    defect = Unusable("parse-missing", TREES[0], f"and {TREES[1]} are empty", remedy)
    for column in TREES:
        if not (parse := cells.get(column, "").strip()):
            continue
        try:
            slots = _spell(flatten_parse(parse), transcript)
        except ParseError as error:
            remedy = "restore the authors' parse, or remove the line"
            defect = Unusable("parse-broken", column, f"{error}: {parse[:200]!r}", remedy)
            continue
        if not isinstance(slots, str):
            return slots
        problem = f"the slot words {slots!r} are not in the transcript {transcript!r} in this order"
        remedy = "correct the parse or the transcript, or remove the line"
        defect = Unusable("slot-not-in-transcript", column, problem, remedy)
    raise defect


def _spell(flat: tuple[tuple[str, str], ...], transcript: str) -> tuple[SlotValue, ...] | str:
    """The slots in the transcript's spelling; the words of the first one that it does not hold."""
    slots: list[SlotValue] = []
    end = 0
    for label, words in flat:
        if not (found := locate(words, transcript, end)):
            return words
        start, end = found
        slots.append(plain_slot(label, transcript[start:end]))
    return tuple(slots)


def _folder_domain(file_id: str) -> str:
    """The domain that a path names: "eval_0/alarm_eval_0/00000002.wav" -> "alarm"; empty for another form."""
    found = _DOMAIN_FOLDER.fullmatch(PurePosixPath(file_id).parent.name)
    return found[1] if found else ""


def _find_audio(file_id: str, audio: AudioFolder) -> str:
    """Where the sound of a `file_id` lies. The manifests write "eval_0/alarm_eval_0/2.wav" for "eval_0/alarm_eval/2.wav" on disk."""
    path = PurePosixPath(file_id)
    other = (
        str(path.parent.with_name(_PART_SUFFIX.sub("", path.parent.name)) / path.name) if path.parent.name else file_id
    )
    return other if audio.problem(file_id) and not audio.problem(other) else file_id


READER = Reader(name="stop", title="STOP", licence="see the licence that comes with the download", read=read)
