"""Reads the watermark of files: one, several, whole folders over all cores. Knows nothing of signatures or the registry."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from platemark.errors import InputError, PlatemarkError
from platemark.imaging import decode, encode
from platemark.provenance.files import write_atomically
from platemark.provenance.keyring import held_keys
from platemark.provenance.watermark.detect import Detection, detect
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.map import map_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".gif")
NO_KEY = "no-key"
_WORTH_PROCESSES = 4  # a process takes half a second to start
_THREAD_NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class MarkReading:
    """What one file says. `verdict`: `detected`, `inconclusive`, `not-detected` (which says nothing about origin), `no-key`; None beside
    an `error`. `geometry`: what was done to the picture since, where it was found; `hypotheses`: how many geometries were tried; `map`:
    where in the picture the mark is (`PresenceMap.as_dict`, and the `file` that shows it), where that was asked for and one was found;
    `latent`: what the layer in the initial noise says (`LatentDetection.as_dict`), where that was asked for."""

    file: str
    verdict: str | None
    content_id: int | None = None
    issuer: int | None = None
    p_value: float | None = None
    geometry: dict[str, Any] | None = None
    symbol_error_rate: float | None = None
    version: int | None = None
    key_id: str | None = None
    hypotheses: int = 0
    map: dict[str, Any] | None = None
    latent: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    exit_code: int = 0

    @property
    def is_marked(self) -> bool:
        """Whether one of the layers that were read is there."""
        return "detected" in (self.verdict, (self.latent or {}).get("verdict"))

    def as_dict(self) -> dict[str, Any]:
        """As the JSON line shows it."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        names = (
            "file", "verdict", "content_id", "issuer", "p_value", "geometry", "symbol_error_rate", "version", "key_id", "hypotheses",
        )  # fmt: skip
        asked = {name: getattr(self, name) for name in ("map", "latent") if getattr(self, name) is not None}
        return {name: getattr(self, name) for name in names} | asked


def pictures_in(paths: Sequence[str | Path]) -> list[Path]:
    """The files themselves, and the picture files (by suffix) of folders and those below, in order. Raises `InputError` for an empty folder
    or a path that is not there. Links to folders are not followed, hidden files are left out."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise InputError(f"there is no {str(path)[-120:]!r}", "check the path")
            found.append(path)
            continue
        inside = sorted(_walk(path))
        if not inside:
            raise InputError(f"no picture lies in {str(path)[-120:]!r}", f"pictures end in {', '.join(SUFFIXES)}")
        found += inside
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(at) / name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))


def read_mark(path: str | Path, keys: Sequence[WatermarkKey], *, deep: bool = False) -> MarkReading:
    """The mark of one file under the likeliest of the keys. A file that cannot be read gives its error, and never raises."""
    try:
        pixels = decode(path).array
        return _said(path, detect(pixels, keys, deep=deep)) if keys else MarkReading(str(path), NO_KEY)
    except PlatemarkError as error:
        return MarkReading(str(path), None, error=error.as_dict(), exit_code=error.exit_code)


def read_mapped(paths: Sequence[str | Path], home: Path, target: str | Path, *, deep: bool = False) -> MarkReading:
    """The same of the one path, with all keys of the state folder and a map of where the mark is. `target`, a PNG file, shows it over
    the picture, and is written only where a mark was found.

    Raises `InputError`: more than one path, a folder, `target` no PNG, the picture itself, or not writable.
    """
    source, target = Path(paths[0]), Path(target)
    if len(paths) != 1 or source.is_dir():
        raise InputError("a map is of one picture", "name one file")
    pictures_in([source])
    if target.suffix.lower() != ".png":
        raise InputError(f"cannot write the map {str(target)[-120:]!r}: it is a PNG file", "name a .png file")
    if target.exists() and source.samefile(target):
        raise InputError("the map would replace the picture", "name another file")
    return _read_map(source, keys_of(home), target, deep=deep)


def _read_map(source: Path, keys: Sequence[WatermarkKey], target: Path, *, deep: bool) -> MarkReading:
    try:
        pixels = decode(source).array
        found = detect(pixels, keys, deep=deep) if keys else None
        where = map_of(pixels, keys, found) if found else None
    except PlatemarkError as error:
        return MarkReading(str(source), None, error=error.as_dict(), exit_code=error.exit_code)
    if found is None:
        return MarkReading(str(source), NO_KEY)
    if where is None:
        return _said(source, found)
    write_atomically(target, encode(where.overlay(pixels), "png"))
    return replace(_said(source, found), map={"file": str(target), **where.as_dict()})


def with_latents(readings: Iterable[MarkReading], home: Path, bundle: Path) -> Iterator[MarkReading]:
    """The readings with what the layer in the initial noise says; `bundle` is the one that rendered the pictures.

    Raises `BundleError` where it cannot be opened or has no VAE encoder, and `EngineError`.
    """
    from platemark.provenance.watermark.inversion import Inverter
    from platemark.provenance.watermark.latent import read_noise
    from platemark.runtime.bundle import open_bundle
    from platemark.runtime.pipeline import Pipeline

    inverter, keys = Inverter(Pipeline.load(open_bundle(bundle))), keys_of(home)
    for reading in readings:
        if reading.error is not None or not keys:
            yield reading
            continue
        found = read_noise(inverter.guesses(decode(reading.file).array), keys)
        yield replace(reading, latent=found.as_dict())


def _said(path: str | Path, found: Detection) -> MarkReading:
    payload, seen = found.payload, found.verdict != "not-detected"  # else the best guess is chance
    return MarkReading(
        file=str(path),
        verdict=found.verdict,
        content_id=payload.content_id if payload else None,
        issuer=payload.issuer if payload else None,
        p_value=found.p_value,
        geometry=found.geometry if seen else None,
        symbol_error_rate=found.symbol_error_rate,
        version=payload.version if payload else None,
        key_id=found.key_id if seen else None,
        hypotheses=found.hypotheses,
    )


def read_marks(paths: Sequence[Path], home: Path, *, deep: bool = False, processes: int | None = None) -> Iterator[MarkReading]:
    """The readings in the order of the paths, under all keys of the state folder; many files are read in as many processes as there are
    cores. Keys are read by each process for itself and cross no pipe. Raises `ProvenanceUnavailable` where the key file is damaged."""
    count = min(len(paths), processes or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if count < 2 or (len(paths) < _WORTH_PROCESSES and processes is None):
        keys = keys_of(home)
        yield from (read_mark(path, keys, deep=deep) for path in paths)
        return
    keys_of(home)  # a damaged key file is said once, here
    with one_thread_each(), ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_read, home, deep), paths)


def keys_of(home: Path) -> list[WatermarkKey]:
    """All keys that read marks here, own ones first."""
    return [held.watermark for held in held_keys(home)]


def _read(home: Path, deep: bool, path: Path) -> MarkReading:
    return read_mark(path, keys_of(home), deep=deep)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Children inherit the environment: with a process for every core, numpy's own threads would only stand in each other's way."""
    before = {name: os.environ.get(name) for name in _THREAD_NAMES}
    os.environ.update(dict.fromkeys(_THREAD_NAMES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
