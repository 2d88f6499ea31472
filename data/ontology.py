"""Builds the ontology of a corpus that brings none: its examples -> the labels of every domain, described, with the values seen in training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from data.records import Example, Label, Ontology

VALUES = 10  # shown of a label


def build_ontology(examples: Iterable[Example], descriptions: Mapping[str, str]) -> Ontology:
    """Per domain the labels that its examples fill in any split, sorted. A domain whose examples fill none has no labels.

    A label without an entry in `descriptions` is described by its own name, in words. Values are the most frequent written forms of the train
    split; ties go by the alphabet.
    """
    values: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for example in examples:
        labels = values[example.domain]
        for slot in example.slots:
            labels[slot.label].update([slot.surface] if example.split == "train" else [])
    return Ontology(
        domains={
            domain: tuple(_label(name, descriptions, labels[name]) for name in sorted(labels))
            for domain, labels in sorted(values.items())
        }
    )


def _label(name: str, descriptions: Mapping[str, str], seen: Counter[str]) -> Label:
    described = descriptions.get(name) or " ".join(name.translate(dict.fromkeys(map(ord, "_-:"), " ")).split()) or name
    most = sorted(seen, key=lambda value: (-seen[value], value))[:VALUES]
    return Label(name=name, description=described, values=tuple(most))
