"""`CorpusStats` and the corpus they are of -> stats.png: one sheet to look at before a corpus is trained on.

Colours are Okabe and Ito's, which colour-blind people can tell apart; where they can, panels name the split beside its bar.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.atomic import atomic_open
from data.manifest import Corpus
from data.records import Split
from orchestrator.corpus_stats import CorpusStats, Spread

LABELS = 25  # bars of labels
NAME_WIDTH = 26  # characters of a label

_COLOURS: dict[Split, str] = {
    "train": "#0072B2",
    "validation": "#E69F00",
    "test": "#009E73",
    "test_frame": "#D55E00",
    "test_domain": "#CC79A7",
}
_BAR, _SECOND = "#56B4E9", "#E69F00"
_INK = "#333333"
_OFTEN = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 30), (31, 100), (101, None))
_LAYOUT = """
AABBCC
AABBCC
DDEECC
DDEECC
FFFFCC
FFFFCC
"""


def draw_sheet(path: Path, corpus: Corpus, stats: CorpusStats) -> None:
    """Draw the sheet with matplotlib's Agg canvas; the same corpus gives the same picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(16, 11), dpi=110, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic(_LAYOUT)
    for panel in axes.values():
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=_INK, labelsize=9)
    _draw_splits(axes["A"], stats)
    _draw_durations(axes["B"], corpus, stats)
    _draw_labels(axes["C"], stats)
    _draw_slots(axes["D"], stats)
    _draw_values(axes["E"], stats)
    _draw_tokens(axes["F"], stats)
    figure.suptitle(
        f"{_plain(corpus.name)}: {stats.examples:,} examples, {stats.hours:,.2f} h, {stats.with_trace:,} with a reasoning trace",
        fontsize=15,
    )
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png")


def _draw_splits(axes: Any, stats: CorpusStats) -> None:
    """A bar per split, with what a bar cannot show written beside it."""
    counts = [part.examples for part in stats.splits]
    axes.barh(range(len(counts)), counts, color=[_COLOURS[part.split] for part in stats.splits], height=0.6)
    for place, part in enumerate(stats.splits):
        unseen = ""
        if part.unseen_slots is not None and part.slots:
            unseen = f"\n{part.unseen_slots / part.slots:.0%} of slots: value not in train"
        speakers = f", {part.speakers} speakers" if part.speakers else ""
        axes.text(
            part.examples + max(counts) * 0.02,
            place,
            f"{part.examples:,}, {part.hours:.2f} h{speakers}{unseen}",
            va="center",
            fontsize=9,
            color=_INK,
        )
    axes.set_yticks(range(len(counts)), [part.split for part in stats.splits])
    axes.set_ylim(max(len(counts), 3) - 0.5, -0.5)
    axes.set_xlim(0, max(counts) * 1.75)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title("splits: examples, hours, speakers")


def _draw_durations(axes: Any, corpus: Corpus, stats: CorpusStats) -> None:
    """A row of its own per split, each as high as its highest bin, with its median; the longest in a hundred share the last bin."""
    import numpy as np

    every = np.array([row.example.duration_s for row in corpus.examples])
    edges = np.linspace(0, max(float(np.quantile(every, 0.99)), 0.1), 41)
    for place, part in enumerate(stats.splits):
        seconds = [min(row.example.duration_s, edges[-1]) for row in corpus.split(part.split)]
        counts = np.histogram(seconds, edges)[0]
        axes.stairs(place - 0.78 * counts / counts.max(), edges, baseline=place, fill=True, color=_COLOURS[part.split])
        median = min(part.duration_s.median, edges[-1])
        axes.vlines(median, place - 0.82, place, color="black", linewidth=1.8)
        axes.annotate(
            f"{part.duration_s.median:.1f} s",
            (1, place - 0.3),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9,
            color=_INK,
        )
    axes.set_yticks([place - 0.3 for place in range(len(stats.splits))], [part.split for part in stats.splits])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=f"seconds (last bin: {edges[-2]:.1f} s and longer)", xlim=(0, edges[-1]))
    axes.set_ylim(len(stats.splits) - 1 + 0.08, -0.95)
    axes.spines["left"].set_visible(False)
    axes.set_title("duration, with the median")


def _draw_labels(axes: Any, stats: CorpusStats) -> None:
    """The most frequent labels, each with its number of distinct values."""
    shown = [label for label in stats.labels if label.count][:LABELS]
    counts = [label.count for label in shown]
    axes.barh(range(len(shown)), counts, color=_BAR, height=0.7)
    for place, label in enumerate(shown):
        axes.text(label.count, place, f" {label.count:,} / {label.values:,}", va="center", fontsize=8.5, color=_INK)
    axes.set_yticks(range(len(shown)), [_plain(label.label, NAME_WIDTH) for label in shown])
    axes.set_ylim(max(len(shown), LABELS // 2) - 0.4, -0.6)
    axes.set_xlim(0, max(counts, default=1) * 1.3)
    axes.set_xlabel("slots filled / distinct values")
    rest = len(stats.labels) - len(shown)
    axes.set_title(f"labels: the {len(shown)} most frequent of {len(stats.labels)}" if rest else "labels")


def _draw_slots(axes: Any, stats: CorpusStats) -> None:
    """Grouped bars: how many slots the examples of each split fill."""
    most = max((count for part in stats.splits for count in part.slots_per_example), default=0)
    top = min(most, 7)
    width = 0.8 / len(stats.splits)
    for place, part in enumerate(stats.splits):
        shares = [0.0] * (top + 1)
        for count, examples in part.slots_per_example.items():
            shares[min(count, top)] += examples / part.examples * 100
        middles = [slots + (place - (len(stats.splits) - 1) / 2) * width for slots in range(top + 1)]
        axes.bar(middles, shares, width * 0.92, color=_COLOURS[part.split], label=part.split)
    axes.set_xticks(range(top + 1), [*map(str, range(top)), f"{top}+" if most > top else str(top)])
    axes.set(xlabel="slots filled", ylabel="% of the split")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)  # room for the legend above the highest bar
    axes.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper center", columnspacing=1, handlelength=1.2)
    axes.set_title("slots per example")


def _draw_values(axes: Any, stats: CorpusStats) -> None:
    """How often the values of the train split are said: a corpus of values said once teaches copying, not lists."""
    names, counts = [], []
    for first, last in _OFTEN:
        names.append(f"{first}" if first == last else f"{first}+" if last is None else f"{first}-{last}")
        counts.append(
            sum(
                n for often, n in stats.train_value_counts.items() if first <= often and (last is None or often <= last)
            )
        )
    axes.bar(range(len(counts)), counts, color=_BAR, width=0.75)
    for place, count in enumerate(counts):
        axes.text(place, count, f"{count:,}", ha="center", va="bottom", fontsize=9, color=_INK)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, max(1, *counts) * 1.12)
    axes.set(xlabel="times said in train", ylabel="distinct values")
    axes.set_title(f"value frequency: {sum(counts):,} distinct values in train")


def _draw_tokens(axes: Any, stats: CorpusStats) -> None:
    """The range of target lengths per foundation; those that count alike, as a family does that shares its tokenizer, share a row."""
    alike: dict[tuple[Spread, Spread | None], list[str]] = {}
    for part in stats.tokens:
        if part.direct_target:
            alike.setdefault((part.direct_target, part.think_target), []).append(part.foundation)
    for place, (direct, think) in enumerate(alike):
        _draw_spread(axes, direct, place - 0.17, _SECOND)
        if think:
            _draw_spread(axes, think, place + 0.17, _COLOURS["train"])
    names = [first if not more else f"{first}\n+ {len(more)} alike" for first, *more in alike.values()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    absent = sum(part.direct_target is None for part in stats.tokens)
    note = f"; the tokenizers of {absent} other foundations are not on this machine" if absent else ""
    axes.set_xlabel(
        f"tokens: median, middle half, 5th to 95th percentile of {stats.sample:,} examples{note}", fontsize=9
    )
    axes.plot([], [], color=_SECOND, linewidth=6, label="answer at once")
    axes.plot([], [], color=_COLOURS["train"], linewidth=6, label="reasoning trace and answer")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    axes.set_title("target length per foundation", loc="left")


def _draw_spread(axes: Any, spread: Spread, height: float, colour: str) -> None:
    axes.hlines(height, spread.p05, spread.p95, color=colour, linewidth=1.5)
    axes.hlines(height, spread.p25, spread.p75, color=colour, linewidth=8)
    axes.plot(spread.median, height, "|", color="black", markersize=11, markeredgewidth=1.8)
    axes.annotate(
        f"median {spread.median:.0f}",
        (spread.p95, height),
        (6, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=_INK,
    )


def _plain(text: str, width: int = 80) -> str:
    r"""A text as matplotlib prints it: a dollar sign would begin a formula."""
    shown = text if len(text) <= width else f"{text[: width - 11]}…{text[-10:]}"  # long names often begin alike
    return shown.replace("$", r"\$")
