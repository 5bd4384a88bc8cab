"""The bundle: a folder that holds a checkpoint's own files, an ONNX graph beside each weight file, and `bundle.json`.

A graph keeps no weights: its initializers point by offset into the safetensors file beside it, so weights exist once and keep the
hash that they had in the checkpoint. Every file that `bundle.json` lists is hash-checked when the bundle is opened. Bundles can be
moved, linked to, and opened read-only. Knows nothing about how a bundle is built, nor about any engine library.

The checkpoint's own files keep their diffusers places: `scheduler/scheduler_config.json`, `tokenizer/`, `unet/`, …
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from platemark.errors import BundleError
from platemark.runtime.manifest import Component, Manifest, Parity

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
NAMES = "names.txt"  # optional: what the checkpoint was trained on, one name a line
_MANIFEST_LIMIT = 16 * 2**20  # bytes; a real one is a few kilobytes
_REBUILD = "rebuild it with `platemark build`"
_COPY_AGAIN = "copy the bundle again, or rebuild it with `platemark build`"


def bundle_file(root: Path, name: str) -> Path:
    """The file `name` (a POSIX path from the manifest) inside the bundle."""
    return root.joinpath(*name.split("/"))


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every listed file was there and had its hash. `sha256` is that of `bundle.json`, so it covers all of them."""

    root: Path
    manifest: Manifest
    sha256: str

    @property
    def weights_sha256(self) -> str:
        """One hash of the checkpoint's weights: sha256 over the lines `<sha256>  <file>` of its weight files, sorted by name."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.manifest.source.weights.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def component(self, name: str) -> Component:
        """One network. Raises `BundleError` where the bundle has none of that name."""
        if name not in self.manifest.components:
            raise BundleError(f"the bundle has no component {name!r}", "rebuild it from a checkpoint that has one")
        return self.manifest.components[name]

    def component_weights_sha256(self, name: str) -> str:
        """One hash of one component's weights: sha256 over the lines `<sha256>  <file>`, sorted by name. Raises `BundleError`."""
        lines = "".join(f"{self.manifest.files[file]}  {file}\n" for file in sorted(self.component(name).weights))
        return hashlib.sha256(lines.encode()).hexdigest()

    def file(self, name: str) -> Path:
        """A file by its name in the manifest. Raises `BundleError` where it is not listed, hence was not checked."""
        if name not in self.manifest.files:
            raise BundleError(f"the bundle lists no file {name!r}", _REBUILD)
        return bundle_file(self.root, name)

    def folder(self, name: str, reads: Iterable[str]) -> Path:
        """The folder `name`, for a reader that opens whichever of the files `reads` are there.

        Raises `BundleError` where one of them is there but not listed, hence was not checked.
        """
        folder = bundle_file(self.root, name)
        for file in reads:
            if os.path.lexists(folder / file):
                self.file(f"{name}/{file}")
        return folder

    def names(self) -> tuple[str, ...]:
        """The names that the checkpoint was trained on; none where the bundle lists no `names.txt`. Raises `BundleError`."""
        if NAMES not in self.manifest.files:
            return ()
        try:
            lines = self.file(NAMES).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{NAMES} cannot be read as UTF-8 text", "write it as UTF-8, one name a line, and rebuild the bundle"
            ) from error
        return tuple(line for line in lines if line.strip())


def open_bundle(path: Path) -> Bundle:
    """Opens the bundle in the folder `path` and checks all of it: manifest, parity, paths, and the hash of every listed file.

    Raises `BundleError`, naming the file or field.
    """
    root = path.resolve()
    if not root.is_dir():
        raise BundleError(f"there is no bundle folder {str(path)!r}", "check the path, or make one with `platemark build`")
    data = _read_manifest(root)
    manifest = _parse(data)
    _check_files_listed(manifest)
    _check_parity(manifest)
    _check_hashes(root, manifest.files)
    return Bundle(root, manifest, hashlib.sha256(data).hexdigest())


def _read_manifest(root: Path) -> bytes:
    try:
        with (root / MANIFEST).open("rb") as file:
            data = file.read(_MANIFEST_LIMIT + 1)
    except FileNotFoundError as error:
        message = f"{str(root)!r} holds no {MANIFEST}: it is no bundle, or its build was interrupted"
        raise BundleError(message, "run `platemark build` (again)") from error
    except OSError as error:
        message = f"{MANIFEST} cannot be read: {error.strerror}"
        raise BundleError(message, "a bundle is a folder that `platemark build` made") from error
    if len(data) > _MANIFEST_LIMIT:
        raise BundleError(f"{MANIFEST} is larger than {_MANIFEST_LIMIT >> 20} MiB", _REBUILD)
    return data


def _parse(data: bytes) -> Manifest:
    """The version is read first, so that a newer format is called newer and not malformed."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not JSON", _REBUILD) from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        message = f"{MANIFEST} has format version {str(version)[:20]}, this Platemark reads version {FORMAT_VERSION}"
        raise BundleError(message, "update Platemark, or rebuild the bundle with `platemark build`")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{MANIFEST} is not valid: {where[:120]}: {first['msg']}", _REBUILD) from error


def _check_files_listed(manifest: Manifest) -> None:
    """Names stay inside the folder, and what the components point to is among the hashed files."""
    for name in manifest.files:
        parts = name.split("/")
        if name == MANIFEST or "\\" in name or ":" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise BundleError(
                f"{MANIFEST} lists {name[:120]!r}, which is no file of a bundle", "do not use this bundle; rebuild it yourself"
            )
    used = [(component, name) for component, facts in manifest.components.items() for name in (facts.graph, *facts.weights)]
    used += [(engine.component, engine.file) for engine in manifest.engines if engine.file is not None]
    for component, name in used:
        if name not in manifest.files:
            raise BundleError(f"component {component[:40]} uses {name[:120]!r}, which {MANIFEST} does not list", _REBUILD)


def _check_parity(manifest: Manifest) -> None:
    """A bundle that was not compared with its reference, or did not keep its bounds, does not open. NaN keeps no bound.

    An engine that says it was compared is held to the same; one that was only built has no parity to show.
    """
    for name, component in manifest.components.items():
        _check_record(f"component {name}", component.parity)
    for engine in manifest.engines:
        what = f"the {engine.backend} engine of {engine.component}"
        if (engine.state == "compared") != (engine.parity is not None) or engine.component not in manifest.components:
            raise BundleError(f"{what} is recorded as {engine.state} without what that needs", _REBUILD)
        for parity in (engine.parity, engine.graph_parity):
            if parity is not None:
                _check_record(what, parity)
    for end in (manifest.end_to_end, *manifest.engines_end_to_end.values()):
        if not (end.psnr >= end.bound_psnr > 0.0):
            said = f"the whole pipeline reaches {end.psnr:.1f} dB against its reference, under {end.bound_psnr:.1f} dB"
            raise BundleError(said, _REBUILD)


def _check_record(what: str, parity: Parity) -> None:
    if len({str(sorted(one.shapes.items())) for one in parity.comparisons}) < 2 and not parity.one_shape:
        raise BundleError(f"{what} was compared with its reference at fewer than two shapes", _REBUILD)
    worst = max(parity.comparisons, key=lambda one: math.inf if math.isnan(one.rel_l2_error) else one.rel_l2_error).rel_l2_error
    if not (0.0 <= worst <= parity.bound_rel_l2 < math.inf):
        raise BundleError(f"{what} is {worst:.3g} off its reference, over its bound {parity.bound_rel_l2:.3g}", _REBUILD)


def _check_hashes(root: Path, files: dict[str, str]) -> None:
    """Hashes all files in parallel (hashlib lets go of the interpreter); reports the first bad one by name."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda name: _digest(root, name), files)
        for (name, expected), digest in zip(files.items(), digests, strict=True):
            if digest != expected.lower():
                raise BundleError(f"{name} is damaged: its sha256 is not the one in {MANIFEST}", _COPY_AGAIN)


def _digest(root: Path, name: str) -> str:
    try:
        path = bundle_file(root, name).resolve(strict=True)
        if not path.is_relative_to(root):
            raise BundleError(f"{name} links out of the bundle", "copy the bundle with its files, not with links to them")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or "a loop of links"
        raise BundleError(f"{name} cannot be read: {reason}", _COPY_AGAIN) from error
