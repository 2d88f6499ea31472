"""A foundation on the Hugging Face hub -> its folder in this machine's cache: downloaded once, by whichever worker comes first.

What a kill leaves is gone on with, and the hub's own client checks every file. Where the folder is there, the hub is not asked: a pinned revision
does not change.
"""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock

from model.configs import Foundation

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
UNWANTED = ["original/*", "consolidated*"]
"""The same weights in another form, which some repositories carry too."""


_TOO_MANY_REQUESTS = 429


class HubUnreachable(ValueError):
    """The hub does not answer, or not as it should: nothing is wrong with the foundation, and later it may be had."""


def fetch_foundation(foundation: Foundation) -> Path:
    """The folder of a hub foundation at its revision.

    Raises ValueError, one line with what to do, when it cannot be had; HubUnreachable, which is one, when that may pass.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    cache = Path(HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    where = f"foundation {foundation.name}: {foundation.source} at {foundation.revision}"
    # One lock for the whole repository: the client's own locks are per file, and every worker would ask the hub for the list (its answer: 429).
    with FileLock(cache / f".slotgrid-{foundation.source.replace('/', '--')}.lock"):
        try:
            return _complete_snapshot(foundation) or Path(
                snapshot_download(
                    foundation.source,
                    revision=foundation.revision,
                    allow_patterns=WANTED,
                    ignore_patterns=UNWANTED,
                )
            )
        except GatedRepoError as error:
            remedy = f"accept its licence on https://huggingface.co/{foundation.source}, then `hf auth login` or set HF_TOKEN"
            raise ValueError(f"{where}: gated; {remedy}") from error
        except (LocalEntryNotFoundError, HfHubHTTPError) as error:
            answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
            if isinstance(answer, HfHubHTTPError):
                status = answer.response.status_code
                may_pass = status >= 500 or status == _TOO_MANY_REQUESTS
                why = f"the hub answered {status}; check name and revision, or try again later"
            else:
                may_pass = not isinstance(answer, OfflineModeIsEnabled)
                remedy = f"on a machine with internet: hf download {foundation.source} --revision {foundation.revision}"
                why = f"is not in {cache} and the hub cannot be reached; {remedy}"
            raise (HubUnreachable if may_pass else ValueError)(f"{where}: {why}") from error


def _complete_snapshot(foundation: Foundation) -> Path | None:
    """The folder of an earlier download by `fetch_foundation`, None when there is none or something of it is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                foundation.source,
                revision=foundation.revision,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
                local_files_only=True,
            )
        )
    except (LocalEntryNotFoundError, IncompleteSnapshotError):
        return None
    return folder if (folder / "config.json").is_file() and _weights_are_there(folder) else None


def _weights_are_there(folder: Path) -> bool:
    """One file of weights, or every shard that the index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)
