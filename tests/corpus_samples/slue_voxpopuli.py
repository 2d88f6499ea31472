"""A hand-made SLUE-VoxPopuli: three tsv files of the authors' seven columns, and 16 kHz ogg files."""

import re
from pathlib import Path

import soundfile

from corpus_samples.sound import babble

COLUMNS = ("id", "raw_text", "normalized_text", "speaker_id", "split", "raw_ner", "normalized_ner")

# [words|TYPE]: an entity of a type of OntoNotes
ROWS = {
    "fine-tune": [
        "madam president the report of [mister verhofstadt|PERSON] came in [june two thousand and twelve|DATE]",
        "the [european commission|ORG] has to answer by [monday|DATE]",
        "[three|CARDINAL] member states did not vote for it",
        "we spend [two billion euro|MONEY] in [africa|LOC] every year",
        "the people of [greece|GPE] have waited for [ten years|DATE]",
        "[german|NORP] and [french|NORP] farmers ask for the same rules",
        "[article twenty one|LAW] of the treaty says so",
        "[sixty percent|PERCENT] of the young people in [spain|GPE] look for work",
        "i thank the [council|ORG] and [missus reding|PERSON]",
        "this is the [second|ORDINAL] time that [turkey|GPE] asks",
        "we meet at [nine o'clock|TIME] at the [berlaymont building|FAC] in [brussels|GPE]",
        "thank you very much for your patience",
    ],
    "dev": [
        "the [european parliament|ORG] votes on [thursday|DATE]",
        "[five|CARDINAL] regions of [italy|GPE] need our help",
        "mister [barroso|PERSON] spoke of [article seven|LAW]",
        "the [british|NORP] government has not paid [one million euro|MONEY]",
        "i do not agree with the rapporteur",
        "in [london|GPE] the talks went on until [friday|DATE]",
        "the [united nations|ORG] sent [forty|CARDINAL] observers",
        "[polish|NORP] miners came to [strasbourg|GPE]",
    ],
    "test": [
        "the [european central bank|ORG] met in [frankfurt|GPE]",
        "[missus merkel|PERSON] will be here on [tuesday|DATE]",
        "[two|CARDINAL] [irish|NORP] ships left the port",
        "let us look at [article fifty|LAW] again",
    ],
}


def parse(marked: str) -> tuple[str, list[list[object]]]:
    """The sentence without its marks, and its entities as [type, first character, number of characters]."""
    text, entities, end = "", [], 0
    for found in re.finditer(r"\[([^|]*)\|(\w+)\]", marked):
        text += marked[end : found.start()]
        entities.append([found[2], len(text), len(found[1])])
        text, end = text + found[1], found.end()
    return text + marked[end:], entities


def write(root: Path) -> None:
    """The corpus below `root`, the test split with its labels."""
    root.mkdir(parents=True)
    seed = 0
    for part, sentences in ROWS.items():
        lines = ["\t".join(COLUMNS)]
        (root / part).mkdir()
        for number, marked in enumerate(sentences):
            seed += 1
            name = f"20131007-0900-PLENARY-{seed}-en_20131007-21:26:{seed:02d}_{number}"
            soundfile.write(root / part / f"{name}.ogg", babble(200 + seed, seconds=1 + 0.04 * seed), 16_000)
            text, entities = parse(marked)
            speaker = str(1000 + seed % 4) if seed % 4 else "None"
            lines.append("\t".join((name, "", text, speaker, part, "[]", repr(entities) if entities else "None")))
        (root / f"slue-voxpopuli_{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
