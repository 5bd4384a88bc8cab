"""Checkpoints by hub id (`org/name`, or `org/name@revision`): from the local Hugging Face cache, else fetched, where the network allows.

Naming a hub id is an explicit request to fetch; nothing else here uses the network. Only the safetensors, JSON and text files that a build
reads are fetched. Knows nothing about what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from platemark.errors import CheckpointError, InputError
from platemark.optimize.source_files import PICKLES
from platemark.runtime.manifest import Origin

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?")
_INDEX = "model_index.json"
_TEXTS = (".json", ".txt")
# Folders of a pipeline that hold texts alone, and those that hold a network.
_TEXT_FOLDERS = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")
_NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae", "controlnet", "safety_checker", "clip")
_NEEDED = ("unet", "vae", "text_encoder")
_WEIGHTS = re.compile(r"(?P<base>[\w-]+?)(?P<variant>\.fp16)?(?P<shard>-\d{5}-of-\d{5})?\.safetensors(?P<index>\.index\.json)?")
_ELSEWHERE = "fetch it on a machine that reaches the hub (`hf download {}`), and copy the folder or the cache ($HF_HOME) here"


@dataclass(frozen=True)
class Located:
    """A checkpoint on this machine: a folder or one file. `origin`: the hub's repository, where it came from there."""

    path: Path
    origin: Origin | None = None


def locate(checkpoint: Path, *, cache: Path | None = None, endpoint: str | None = None) -> Located:
    """What a user names: a path that exists as it is, a hub id as the files of its snapshot, anything else as a path.

    `cache`: the Hugging Face cache; None: the user's. `endpoint`: the hub's address; None: the client's own. Raises `InputError` where the
    hub cannot be reached or does not give the repository, `CheckpointError` where that holds no checkpoint in safetensors.
    """
    match = None if checkpoint.exists() or checkpoint.suffix in (".safetensors", *PICKLES) else _ID.fullmatch(checkpoint.as_posix())
    if match is None:
        return Located(checkpoint)
    repo, revision = match["repo"], match["revision"] or "main"
    snapshot = _cached(repo, revision, cache)
    if snapshot is None:
        snapshot = _fetched(repo, revision, cache, endpoint)
    origin = Origin(kind="hub", name=repo, revision=snapshot.name)
    names = needed(repo, _files(snapshot))
    return Located(snapshot if _INDEX in names else snapshot / names[0], origin)


def needed(repo: str, files: Iterable[str]) -> list[str]:
    """Those of a repository's files (POSIX paths) that a build reads: a pipeline's, or else its only single-file checkpoint.

    Of a network's weights the whole precision comes before its fp16 variant, and one file before shards. Raises `CheckpointError`.
    """
    known = sorted(set(files))
    if _INDEX not in known:
        return [_only_file(repo, known)]
    chosen = [name for name in (_INDEX, "platemark.json", "names.txt") if name in known]
    for folder in (*_TEXT_FOLDERS, "clip"):
        chosen += [name for name in known if name.startswith(f"{folder}/") and name.count("/") == 1 and name.endswith(_TEXTS)]
    for folder in _NETWORKS:
        inside = [name for name in known if PurePosixPath(name).parent.as_posix() == folder]
        weights = _weights(inside)
        if not weights and (folder in _NEEDED or any(name.endswith(PICKLES) for name in inside)):
            raise CheckpointError(
                f"{repo} has no safetensors weights of its {folder}", "use a repository that has them: pickles are never opened"
            )
        chosen += [*(name for name in inside if name.endswith("/config.json")), *weights]
    return list(dict.fromkeys(chosen))


def _weights(inside: list[str]) -> list[str]:
    """The best of a network's weight files: one whole file, shards with their index, then the same in fp16."""
    sets: dict[tuple[bool, bool], list[str]] = {}
    for name in inside:
        match = _WEIGHTS.fullmatch(PurePosixPath(name).name)
        if match is not None:
            sets.setdefault((match["variant"] is not None, bool(match["shard"] or match["index"])), []).append(name)
    whole = [key for key in sorted(sets) if any(name.endswith(".safetensors") for name in sets[key])]
    return sets[whole[0]] if whole else []


def _only_file(repo: str, known: list[str]) -> str:
    found = [name for name in known if name.endswith(".safetensors") and "/" not in name]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{repo} holds {len(found)} single files: {', '.join(found[:4])}{', …' if len(found) > 4 else ''}",
            f"fetch one (`hf download {repo} {found[0]}`), and name the file",
        )
    raise CheckpointError(f"{repo} holds neither a diffusers pipeline nor a .safetensors checkpoint", "name another repository")


def _files(snapshot: Path) -> list[str]:
    return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]


def _cached(repo: str, revision: str, cache: Path | None) -> Path | None:
    """The folder of a snapshot in the local cache that has all that a build reads; None where there is none. Uses no network."""
    from huggingface_hub import constants

    root = Path(cache or constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    ref = root / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = root / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    try:
        names = needed(repo, _files(snapshot))
    except CheckpointError:
        return None  # a part of it, kept for something else
    whole = _INDEX not in names or all(any(name.startswith(f"{folder}/") for name in names) for folder in ("scheduler", "tokenizer"))
    return snapshot if whole else None


def _fetched(repo: str, revision: str, cache: Path | None, endpoint: str | None) -> Path:
    """Fetches what a build reads, and returns the snapshot's folder."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise InputError(
            f"{repo} is not in the Hugging Face cache, and HF_HUB_OFFLINE keeps this process off the network", _elsewhere(repo)
        )
    try:
        info = huggingface_hub.HfApi(endpoint=endpoint).model_info(repo, revision=revision, timeout=20)
        files = [file.rfilename for file in info.siblings or []]
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=[_literal(name) for name in needed(repo, files)],
            library_name="platemark",
        )
    except _failures() as error:
        raise _refused(repo, revision, error) from error
    return Path(folder)


def _literal(name: str) -> str:
    """A pattern that one name alone matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _elsewhere(repo: str) -> str:
    return _ELSEWHERE.format(repo)


def _failures() -> tuple[type[Exception], ...]:
    """Every error by which the client says that it got nothing."""
    import huggingface_hub.errors

    errors: Any = huggingface_hub.errors  # HTTPError is of the HTTP library that this version of the client uses
    return (errors.HTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError)


def _refused(repo: str, revision: str, error: Any) -> InputError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{repo} is given only to those who accepted its terms", "accept them on its page, then log in: `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{repo} has no revision {revision[:60]!r}", "name another after the @, or none")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"the hub has no repository {repo}, or not for you", "check the spelling; log in for a private one: `hf auth login`"
        )
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{repo!r} is no hub id", "write it as org/name, or name a folder or file that exists")
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(
        f"{repo} is neither a path here nor in the Hugging Face cache, and the hub cannot be reached: {reason}", _elsewhere(repo)
    )
