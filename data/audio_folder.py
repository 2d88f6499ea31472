"""Tells which audio files of a manifest are there: the paths of its rows -> what is wrong with each."""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Characters that no file of a corpus has in its name; the system's calls raise for some of them."""

_SUSPECT = re.compile(r"^/|\\|:|\.\.|" + _UNUSABLE.pattern)
"""Whether a path needs a second look; most do not."""


class PathProblem(NamedTuple):
    """What is wrong with an audio path; the fields of a `Finding`."""

    problem: str
    remedy: str
    kind: str


_LINKED = PathProblem(
    "leaves the corpus folder through a link", "copy the file into the corpus folder", "audio-link-outside"
)


class AudioFolder:
    """Looks up audio files below a root. Every folder is listed once: far cheaper than asking for each file."""

    def __init__(self, root: Path, *, links: bool = False) -> None:
        """`links`: whether a link may lead out of the root, as where a download's audio lies on another disk."""
        self._root, self._links = root.resolve(), links
        self._folders: dict[str, dict[str, os.DirEntry[str]] | None] = {}

    def problem(self, audio: str) -> PathProblem | None:
        """What is wrong with a manifest's audio path; None for a non-empty file inside the root."""
        return problem_of_path(audio) or self._problem_on_disk(audio)

    def _problem_on_disk(self, audio: str) -> PathProblem | None:
        parent, _, name = audio.rpartition("/")
        try:
            folder = self._list(parent)
            if folder is None:
                return _LINKED
            entry = folder.get(name)
            if entry is None:
                return PathProblem(
                    "does not exist",
                    "restore the file, remove the line, or run the command that wrote the corpus again",
                    "audio-not-found",
                )
            if entry.is_symlink() and self._leaves(Path(entry.path).resolve()):
                return _LINKED
            if entry.is_dir():
                return PathProblem("is a folder", "name the audio file in it", "audio-is-folder")
            if not entry.is_file():  # a link to nothing, a pipe
                return PathProblem(
                    "does not exist as a file", "restore the file, or remove the line", "audio-not-found"
                )
            if entry.stat().st_size == 0:
                remedy = "restore the file, or run the command that wrote the corpus again"
                return PathProblem("is an empty file", remedy, "audio-empty-file")
        except (OSError, RuntimeError) as error:  # no permission, too long a name, a loop of links
            reason = (error.strerror if isinstance(error, OSError) else None) or "a loop of links"
            return PathProblem(
                f"cannot be looked up ({reason})", "give the path of a readable file", "audio-unreachable"
            )
        return None

    def _list(self, folder: str) -> dict[str, os.DirEntry[str]] | None:
        """The entries of a folder by name, none when it does not exist; None when it lies outside the root."""
        if folder not in self._folders:
            path = (self._root / folder).resolve()
            if self._leaves(path):
                self._folders[folder] = None
            elif not path.is_dir():
                self._folders[folder] = {}
            else:
                with os.scandir(path) as entries:
                    self._folders[folder] = {entry.name: entry for entry in entries}
        return self._folders[folder]

    def _leaves(self, resolved: Path) -> bool:
        return not self._links and not resolved.is_relative_to(self._root)


def problem_of_path(audio: str) -> PathProblem | None:
    """What is wrong with the path as it is written, wherever it is read: only a path below the root with forward slashes is the same everywhere."""
    if not _SUSPECT.search(audio):
        return None
    if _UNUSABLE.search(audio):
        return PathProblem("holds characters that no path has", "rename the file", "audio-path-unusable")
    if audio.startswith("/"):
        return PathProblem("is an absolute path", "write it relative to the corpus folder", "audio-absolute")
    if PureWindowsPath(audio).anchor:
        remedy = "write it relative to the corpus folder, with forward slashes"
        return PathProblem("is an absolute path of Windows", remedy, "audio-windows-path")
    if ".." in re.split(r"[/\\]", audio):
        remedy = "copy the file into it, and write the path with forward slashes"
        return PathProblem("leaves the corpus folder", remedy, "audio-leaves-root")
    if "\\" in audio:
        return PathProblem("is written with backslashes", "write it with forward slashes", "audio-backslash")
    return None
