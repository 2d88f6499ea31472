"""Turns a `SyntheticCorpusConfig` into a corpus folder: call-centre turns in many voices, with gold slots and traces.

Voicing is cut into chunks of utterances that any executor can work on, in any order. A finished chunk leaves a file of
rows in `voiced/`; running again voices only what is missing or damaged. Importing this module loads no audio library
and no numpy.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data.atomic import atomic_open, iter_whole_lines, write_json, write_jsonl
from data.callcentre.dialogues import GENERATOR_VERSION, Utterance, build_ontology, iter_utterances
from data.executors import Executor
from data.folder_lock import locked_folder
from data.manifest import CORPUS_FILE, Corpus, CorpusError, open_corpus, write_corpus
from data.manifest_rows import HELD_OUT
from data.records import SAMPLE_RATE, SPLITS, TEST_SPLITS, AnnotatedExample, Example, Split, to_json

VOICE_VERSION = 1
"""Raise it when voices, speakers or their effects change: the corpora made before are other corpora."""

CORPUS_NAME = "synthetic-call-centre"
MARKER_FILE = "synthesis.json"
"""Says from the first moment which corpus a folder is becoming."""
ROWS_FOLDER = "voiced"
CHUNK = 32  # utterances a task voices: some seconds of work, and what a killed run loses at most per worker

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SyntheticCorpusConfig:
    """What a synthetic corpus is made from. `of_size` splits a number of examples as usual."""

    train: int
    validation: int
    test: int
    test_frame: int = 0
    test_domain: int = 0
    seed: int = 0
    voice: str = "hibari"  # the voice inside the package; "hibari:<name>" downloads another one

    def __post_init__(self) -> None:
        for split in SPLITS:
            if self.count(split) < 0:
                raise ValueError(
                    f"SyntheticCorpusConfig.{split} is {self.count(split)}; use a number of examples from 0 up"
                )
        if not self.examples:
            raise ValueError("SyntheticCorpusConfig holds no examples; ask for at least one")

    @classmethod
    def of_size(cls, examples: int, seed: int = 0) -> SyntheticCorpusConfig:
        """80 % train, 5 % validation, 8 % test, 4 % test_frame, 3 % test_domain, at least one of each. ValueError below 5 examples."""
        if examples < len(SPLITS):
            raise ValueError(f"examples is {examples}; a corpus needs at least {len(SPLITS)}, one for each split")
        validation = max(1, round(examples * 0.05))
        test, test_frame, test_domain = (max(1, round(examples * share)) for share in (0.08, 0.04, 0.03))
        train = examples - validation - test - test_frame - test_domain
        return cls(
            train=train,
            validation=validation,
            test=test,
            test_frame=test_frame,
            test_domain=test_domain,
            seed=seed,
        )

    def count(self, split: Split) -> int:
        """How many examples a split has."""
        return int(getattr(self, split))

    @property
    def examples(self) -> int:
        """How many examples there are over all splits."""
        return sum(self.count(split) for split in SPLITS)

    def fingerprint(self) -> str:
        """Names what the corpus is made from: these fields and the versions of the generator and of the voices."""
        made_from = {"config": asdict(self), "generator_version": GENERATOR_VERSION, "voice_version": VOICE_VERSION}
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class VoiceTask:
    """One chunk of utterances to voice, as it travels to a worker."""

    root: Path
    number: int
    utterances: tuple[Utterance, ...]  # of one split
    seed: int
    voice: str

    @property
    def rows_file(self) -> Path:
        """Where the rows of the finished chunk are kept."""
        return self.root / ROWS_FOLDER / f"{self.utterances[0].split}-{self.number:05d}.jsonl"


def synthesize(
    root: Path, *, config: SyntheticCorpusConfig, executor: Executor, on_progress: Progress | None = None
) -> Corpus:
    """Write the corpus below `root`, or what is missing of it, and open it; a finished one is opened in milliseconds.

    `on_progress` gets (utterances done, utterances in all). The manifest is the same, byte for byte, whatever the
    executor, on one kind of CPU. Raises ValueError when the folder holds another corpus or the voice is not installed,
    OSError when the disk is full.
    """
    if corpus := open_finished(root, config):
        return corpus
    from data.callcentre.voice import check_voice  # here, because it needs numpy

    check_voice(config.voice)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked_folder(root):
            return open_finished(root, config) or _write(
                root, config, executor, on_progress or (lambda done, total: None)
            )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        need_mb = config.examples * 0.08
        raise OSError(
            error.errno,
            f"{root}: no space left while voicing {config.examples} utterances (about {need_mb:.0f} MB in all); "
            "free some space and run the same command again, it goes on where it stopped",
        ) from error


def voice_chunk(task: VoiceTask) -> list[dict[str, Any]]:
    """Voice a chunk, except what an earlier run left whole: rows `{"example": ..., "flac_sha256": ...}` in order."""
    known = {row["example"]["id"]: row for row in iter_whole_lines(task.rows_file)} if task.rows_file.exists() else {}
    rows = []
    for utterance in task.utterances:
        row = known.get(utterance.id)
        rows.append(row if row and _is_whole(task, utterance, row) else _voice(task, utterance))
    if list(known.values()) != rows:
        write_jsonl(task.rows_file, rows)
    return rows


def open_finished(root: Path, config: SyntheticCorpusConfig) -> Corpus | None:
    """The corpus when it is finished, None when there is something to do. CorpusError when `root` is another corpus."""
    if (root / CORPUS_FILE).exists():
        try:
            corpus = open_corpus(root)
        except CorpusError as error:
            # Never mended in silence: somebody may have edited it on purpose.
            raise CorpusError(
                f"{error}; or delete {root / CORPUS_FILE} and run again: only what is damaged is voiced anew"
            ) from error
        if corpus.fingerprint == config.fingerprint():
            return corpus
    elif not (root / MARKER_FILE).exists():
        return None
    made_from = json.loads((root / MARKER_FILE).read_bytes()) if (root / MARKER_FILE).exists() else {}
    if made_from.get("fingerprint") != config.fingerprint():
        old, new = made_from.get("config", {}), asdict(config)
        changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old and old.get(name) != new[name]]
        raise CorpusError(
            f"{root}: holds another corpus ({', '.join(changed) or 'another generator, or not synthetic'}); "
            "choose another folder, or delete this one"
        )
    return None


def _write(root: Path, config: SyntheticCorpusConfig, executor: Executor, on_progress: Progress) -> Corpus:
    """Voice every chunk, then write the corpus files; `corpus.json` comes last."""
    write_json(root / MARKER_FILE, {"fingerprint": config.fingerprint(), "config": asdict(config)})
    (root / CORPUS_FILE).unlink(missing_ok=True)
    utterances = {split: tuple(iter_utterances(split, config.count(split), config.seed)) for split in SPLITS}
    done: dict[str, dict[str, Any]] = {}
    for rows in executor.map_unordered(voice_chunk, _iter_tasks(root, config, utterances)):
        done.update((row["example"]["id"], row["example"]) for row in rows)
        on_progress(len(done), config.examples)
    for leftover in (root / "audio").glob("*/.*"):  # of a killed run; the lock says that nobody is writing them
        leftover.unlink()
    examples = [
        AnnotatedExample(
            example=_example(
                row,
                audio_sha256=done[row.id]["audio_sha256"],
                duration_s=done[row.id]["duration_s"],
                speaker=done[row.id]["speaker"],
            ),
            trace=row.trace,
        )
        for split in SPLITS
        for row in utterances[split]
    ]
    return write_corpus(
        root,
        name=CORPUS_NAME,
        fingerprint=config.fingerprint(),
        ontology=build_ontology(),
        examples=examples,
        details={"config": asdict(config), "generator_version": GENERATOR_VERSION, "voice_version": VOICE_VERSION},
    )


def _iter_tasks(
    root: Path, config: SyntheticCorpusConfig, utterances: dict[Split, tuple[Utterance, ...]]
) -> Iterator[VoiceTask]:
    for split in SPLITS:
        rows = iter(utterances[split])
        number = 0
        while chunk := tuple(islice(rows, CHUNK)):
            yield VoiceTask(root=root, number=number, utterances=chunk, seed=config.seed, voice=config.voice)
            number += 1


def _example(utterance: Utterance, *, audio_sha256: str, duration_s: float, speaker: str) -> Example:
    """The manifest row of a voiced utterance."""
    held_out = {*utterance.held_out, *(("speaker",) if utterance.split in TEST_SPLITS else ())}
    return Example(
        id=utterance.id,
        split=utterance.split,
        domain=utterance.domain,
        audio=f"audio/{utterance.split}/{utterance.id}.flac",
        audio_sha256=audio_sha256,
        duration_s=duration_s,
        transcript=utterance.transcript,
        slots=utterance.slots,
        context=utterance.context,
        speaker=speaker,
        held_out=tuple(name for name in HELD_OUT if name in held_out),
    )


def _is_whole(task: VoiceTask, utterance: Utterance, row: dict[str, Any]) -> bool:
    """Whether an earlier run's audio is this utterance's and is on disk, byte for byte."""
    path = task.root / row["example"]["audio"]
    if row["example"]["transcript"] != utterance.transcript or not path.is_file():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == row["flac_sha256"]


def _voice(task: VoiceTask, utterance: Utterance) -> dict[str, Any]:
    """Say one utterance as its speaker, write its FLAC file, return its row. Only the seed and the utterance count."""
    from data.audio import encode_flac, pcm_sha256, to_pcm16
    from data.callcentre.speakers import apply_speaker, choose_speaker, seeded_generator
    from data.callcentre.voice import VOICE_RATE, load_voice

    speaker = choose_speaker(utterance.split, int(utterance.id.rpartition("-")[2]), task.seed)
    rng = seeded_generator(task.seed, utterance.id)
    speech = load_voice(task.voice).say(utterance.transcript, speed=speaker.voice_speed, seed=int(rng.integers(2**32)))
    pcm = to_pcm16(apply_speaker(speech, VOICE_RATE, speaker, rng))
    duration_s = round(len(pcm) / SAMPLE_RATE, 4)
    example = _example(utterance, audio_sha256=pcm_sha256(pcm), duration_s=duration_s, speaker=speaker.id)
    flac = encode_flac(pcm)
    with atomic_open(task.root / example.audio, "wb") as stream:
        stream.write(flac)
    return {"example": to_json(example), "flac_sha256": hashlib.sha256(flac).hexdigest()}
