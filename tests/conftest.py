"""Parts that several tests share: a small spoken corpus, its encoder states, the paths a trial takes, and a finished smoke grid."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from stand_ins.grids import SCRIPT, grid

os.environ.pop("COLUMNS", None)  # pytest-xdist sets 80 in its workers; tables in a pipe are as wide as they need

# Under nohup and in the background these are ignored, and whatever is started here would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

LONGEST = ("test_tiny_grid.py", "test_interrupt.py", "test_kills.py", "test_bucket.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: of two processes none is to be left with it at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic corpus of 20 spoken examples."""
    from corpus_samples.synthetic import CONFIG
    from data.callcentre.synthesize import synthesize
    from data.executors import SerialExecutor

    root = tmp_path_factory.mktemp("corpus")
    synthesize(root, config=CONFIG, executor=SerialExecutor(), on_progress=None)
    return root


@pytest.fixture(scope="session")
def trial_paths(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory):
    """`TrialPaths` over that corpus with states of the (by name) random encoder; the output folder is each test's own."""
    from data.encoder_states import AudioItem, write_encoder_states
    from data.executors import SerialExecutor
    from data.manifest import open_corpus
    from model.configs import EncoderConfig
    from model.encoder import encode_factory, state_key
    from model.trial import TrialPaths
    from model.whisper_weights import ensure_encoder_weights

    folder = tmp_path_factory.mktemp("prepared")
    encoder = EncoderConfig(name="whisper-base-random")
    weights = ensure_encoder_weights(encoder.name, folder)
    corpus = open_corpus(corpus_root)
    key = state_key(encoder, weights.sha256)
    write_encoder_states(
        folder / "states",
        key=key,
        items=[
            AudioItem(audio_sha256=e.example.audio_sha256, path=corpus.audio_path(e.example)) for e in corpus.examples
        ],
        build_encode=encode_factory(encoder, weights.path),
        executor=SerialExecutor(),
    )
    return lambda output: TrialPaths(
        corpus=corpus_root, encoder_states=folder / "states", encoder_key=key, output=output
    )


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the lone script, copied away from the checkout as `ray submit` does, ran the smoke grid once, undisturbed."""
    folder = tmp_path_factory.mktemp("smoke")
    shutil.copy(SCRIPT, folder / "grid.py")
    done = grid("--scale", "smoke", cwd=folder, script=folder / "grid.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture
def unfinished(smoke: Path, tmp_path: Path) -> Path:
    """The prepared data of that run, its trials still to do."""
    shutil.copytree(smoke / "runs" / "prepared", tmp_path / "runs" / "prepared")
    return tmp_path
