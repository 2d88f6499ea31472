"""SLUE-VoxPopuli as it is distributed: entities by characters, 18 types in 7 labels, a test split with labels or without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from corpus_samples import slue_voxpopuli
from data.findings import Finding
from data.json_lines import CorpusError
from data.readers.slue_voxpopuli import COMBINED, DESCRIPTIONS, READER, draw_half
from data.readers.source import SourceRow


@pytest.fixture
def root(copy_of: Callable[[ModuleType], Path]) -> Path:
    return copy_of(slue_voxpopuli)


def rows_of(root: Path) -> tuple[list[SourceRow], list[Finding]]:
    items = list(READER.read(root))
    return [i for i in items if isinstance(i, SourceRow)], [i for i in items if isinstance(i, Finding)]


def edit(root: Path, column: str, value: str | Callable[[str], str], line: int = 3, part: str = "fine-tune") -> None:
    """Change one cell of a table."""
    path = root / f"slue-voxpopuli_{part}.tsv"
    lines = path.read_text(encoding="utf-8").split("\n")
    cells = lines[line - 1].split("\t")
    place = slue_voxpopuli.COLUMNS.index(column)
    cells[place] = value if isinstance(value, str) else value(cells[place])
    lines[line - 1] = "\t".join(cells)
    path.write_text("\n".join(lines), encoding="utf-8")


def spoken(row: SourceRow) -> list[tuple[str, str]]:
    return [(slot.label, slot.spoken) for slot in row.slots]


def test_a_sample_is_read(root: Path) -> None:
    rows, findings = rows_of(root)
    assert findings == []
    assert [row.split for row in rows] == ["train"] * 12 + ["validation"] * 8 + ["test"] * 4
    assert spoken(rows[0]) == [("PERSON", "mister verhofstadt"), ("WHEN", "june two thousand and twelve")]
    assert spoken(rows[10]) == [("WHEN", "nine o'clock"), ("PLACE", "brussels")], "FAC is not of the benchmark"
    assert rows[11].slots == ()
    assert (rows[0].speaker, rows[3].speaker, rows[0].domain, rows[0].line) == ("1001", "", "parliament", 2)
    assert (root / rows[0].audio.path).is_file()
    assert set(DESCRIPTIONS) == set(COMBINED) == {label for row in rows for label, _ in spoken(row)}


def test_without_test_labels_half_of_dev_becomes_the_test_split(root: Path) -> None:
    (root / "slue-voxpopuli_test.tsv").rename(root / "slue-voxpopuli_test_blind.tsv")
    rows, findings = rows_of(root)
    assert [(f.kind, f.severity) for f in findings] == [("test-labels-missing", "warning")]
    assert [row.split for row in rows if "/" in row.audio.path and row.audio.path.startswith("dev/")] == [
        draw_half(row.group) for row in rows[12:]
    ]
    assert len(rows) == 20 and {row.split for row in rows[12:]} == {"validation", "test"}
    drawn = [draw_half(f"sentence {number}") for number in range(1000)]
    assert 450 < drawn.count("test") < 550


def test_the_hub_copy_with_combined_types_is_read(root: Path) -> None:
    path = root / "slue-voxpopuli_dev.tsv"
    header, *lines = path.read_text().splitlines()
    lines = [f"{line}\t[['WHEN', 4, 8]]" if number == 0 else f"{line}\t[]" for number, line in enumerate(lines)]
    path.write_text("\n".join([f"{header}\tnormalized_combined_ner", *lines]))
    rows, findings = rows_of(root)
    assert findings == [] and spoken(rows[12]) == [("WHEN", "european")] and rows[13].slots == ()


TEXT = "it’s the café “de flore” in paris, isn't it"


@pytest.mark.parametrize(
    ("text", "entities", "slots"),
    [
        (TEXT, f"[['GPE', {TEXT.index('paris')}, 5]]", [("PLACE", "paris")]),
        (TEXT, "[('ORG', 9, 15)]", [("ORG", "café “de flore”")]),
        ("europe’s rules", "[['LOC', 0, 6]]", [("PLACE", "europe")]),
        ("two and one", "[['CARDINAL', 8, 3], ['CARDINAL', 0, 3]]", [("QUANT", "two"), ("QUANT", "one")]),
        ("two of them", "[['CARDINAL', 0, 3], ['QUANTITY', 0, 3]]", [("QUANT", "two")]),
        ("  two of them ", "[['CARDINAL', 2, 3]]", [("QUANT", "two")]),
        ('"he said ""two"" twice"', "[['CARDINAL', 9, 3]]", [("QUANT", "two")]),
        ("nothing here", "None", []),
        ("nothing here", "", []),
    ],
)
def test_offsets_count_characters(root: Path, text: str, entities: str, slots: list[tuple[str, str]]) -> None:
    edit(root, "normalized_text", text)
    edit(root, "normalized_ner", entities)
    rows, findings = rows_of(root)
    assert findings == [] and spoken(rows[1]) == slots


# the sentence: "the european commission has to answer by monday"
DEFECTS: dict[str, tuple[str, str, str]] = {
    "token offsets": ("normalized_ner", "[['ORG', 1, 2]]", "span-cuts-word"),
    "begins in a word": ("normalized_ner", "[['ORG', 5, 7]]", "span-cuts-word"),
    "a blank": ("normalized_ner", "[['ORG', 3, 1]]", "span-cuts-word"),
    "beyond the end": ("normalized_ner", "[['DATE', 41, 7]]", "span-out-of-range"),
    "negative start": ("normalized_ner", "[['DATE', -6, 6]]", "span-out-of-range"),
    "no length": ("normalized_ner", "[['DATE', 4, 0]]", "span-out-of-range"),
    "unknown type": ("normalized_ner", "[['CITY', 4, 8]]", "entity-type-unknown"),
    "two fields": ("normalized_ner", "[['DATE', 4]]", "entity-broken"),
    "text as number": ("normalized_ner", "[['DATE', '4', '8']]", "entity-broken"),
    "true as number": ("normalized_ner", "[['DATE', True, 8]]", "entity-broken"),
    "a number": ("normalized_ner", "7", "entities-broken"),
    "an unclosed list": ("normalized_ner", "[['DATE', 4, 8]", "entities-broken"),
    "code": ("normalized_ner", "__import__('os').getcwd()", "entities-broken"),
    "deep": ("normalized_ner", "[" * 5000, "entities-broken"),
    "no transcript": ("normalized_text", " ", "transcript-missing"),
    "no id": ("id", "", "id-missing"),
    "audio missing": ("id", "20131007_none", "audio-missing"),
    "path that leaves": ("id", "../fine-tune/x", "audio-missing"),
    "one cell more": ("raw_text", "a\tb", "column-count"),
}


@pytest.mark.parametrize(("column", "value", "kind"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_costs_its_line_only(root: Path, column: str, value: str, kind: str) -> None:
    edit(root, column, value)
    rows, findings = rows_of(root)
    assert len(rows) == 23
    (finding,) = findings
    assert (finding.kind, finding.line, finding.field) == (kind, 3, None if kind == "column-count" else column)
    assert finding.file == root / "slue-voxpopuli_fine-tune.tsv" and "\n" not in str(finding)


def test_a_line_that_is_not_utf8_costs_itself_only(root: Path) -> None:
    path = root / "slue-voxpopuli_dev.tsv"
    path.write_bytes(path.read_bytes().replace(b"mister barroso", b"mister barr\xf3so"))
    rows, findings = rows_of(root)
    assert len(rows) == 23 and [(f.kind, f.line) for f in findings] == [("line-not-utf8", 4)]


def test_another_folder_is_refused_with_the_file_that_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"slue-voxpopuli_fine-tune\.tsv: is missing; give the folder"):
        READER.read(tmp_path)
