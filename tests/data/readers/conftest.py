"""The sample corpora of `corpus_samples`, each written once; every test gets a copy that it may damage."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

CopyOf = Callable[[ModuleType], Path]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> CopyOf:
    @cache
    def write(sample: ModuleType) -> Path:
        folder = tmp_path_factory.mktemp("sample") / "corpus"
        sample.write(folder)
        return folder

    return write


@pytest.fixture
def copy_of(written: CopyOf, tmp_path: Path) -> CopyOf:
    """A sample's module -> its corpus in the folder of the test."""
    return lambda sample: shutil.copytree(written(sample), tmp_path, dirs_exist_ok=True)
