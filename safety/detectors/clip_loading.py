"""Finds the CLIP of a bundle, or of a folder that `optimize.clip.export_clip` made, and makes the detector `clip` of it.

Every file that is read here has a sha256 in `bundle.json` or `clip.json` and was checked against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from platemark.runtime.bundle import Bundle
from platemark.safety.clip import ClipFilter, ClipModel
from platemark.safety.closed import fail_closed, require
from platemark.safety.detectors.clip_files import FILES, GENERAL, GOLDEN_COSINE, files_sha256, read_manifest, read_preprocess

_SETTINGS = "platemark.json"  # of the checkpoint; its `domain` says what the checkpoint draws


def clip_of_bundle(bundle: Bundle, threads: int | None = None) -> ClipModel:
    """The bundle's own CLIP (`clip_image`, `clip_text` and the files in `clip/`), compiled and proven.

    Raises `BundleError` (a file that is there but not listed) and `SafetyUnavailable` (no CLIP, or one that fails).
    """
    from platemark.runtime.tokenizer import FILES as TOKENIZER_FILES

    for name in ("clip_image", "clip_text"):
        require(name in bundle.manifest.components, "the bundle has no CLIP: there is no image filter")
    folder = bundle.folder("clip", (*FILES, *TOKENIZER_FILES))
    image, text = (bundle.component(name) for name in ("clip_image", "clip_text"))
    read = {name: digest for name, digest in bundle.manifest.files.items() if name.startswith("clip/")}
    read |= {name: bundle.manifest.files[name] for part in (image, text) for name in (part.graph, *part.weights)}
    graphs = bundle.file(image.graph), bundle.file(text.graph)
    return _model(folder, graphs, files_sha256(read), GOLDEN_COSINE["fp32"], threads)


def clip_of_folder(folder: Path, threads: int | None = None) -> ClipModel:
    """The CLIP of an exported folder, compiled and proven. Raises `SafetyUnavailable`."""
    manifest = read_manifest(folder)
    graphs = folder / "image.onnx", folder / "text.onnx"
    for name in (*FILES, *(graph.name for graph in graphs)):
        require(name in manifest.files, f"clip.json lists no {name}: a file without a hash is not used")
    return _model(folder, graphs, files_sha256(manifest.files), GOLDEN_COSINE[manifest.image.precision], threads)


def clip_filter(
    source: Bundle | Path,
    concepts: Mapping[str, Sequence[str]],
    *,
    calibration: Mapping[str, float] | None = None,
    vocabulary: Sequence[str] | None = None,
    cache_folder: Path | None = None,
    threads: int | None = None,
) -> ClipFilter:
    """The detector `clip` for a policy's concepts (category → texts). `source`: a bundle with a CLIP, or an exported folder.

    `vocabulary` None: the bundle's own names, else a general list. `calibration`: concept → offset of its cosine. `cache_folder` keeps
    text embeddings, which are most of the loading time. Raises `SafetyUnavailable` and `BundleError`.
    """
    model = clip_of_bundle(source, threads) if isinstance(source, Bundle) else clip_of_folder(source, threads)
    if vocabulary is None:
        vocabulary = source.names() if isinstance(source, Bundle) else ()
    return ClipFilter(model, concepts, vocabulary, cache_folder, calibration)


def domain_of(bundle: Bundle) -> str:
    """What pictures the bundle makes: `domain` of its `platemark.json`, `general` where it says nothing. Raises `SafetyUnavailable`."""
    if _SETTINGS not in bundle.manifest.files:
        return GENERAL
    with fail_closed(_SETTINGS):
        settings = json.loads(bundle.file(_SETTINGS).read_text(encoding="utf-8"))
        domain = settings.get("domain", GENERAL)
    require(isinstance(domain, str), f"{_SETTINGS} has a domain that is no text")
    return str(domain)


def knows(clip_domain: str, bundle_domain: str) -> bool:
    """Whether a CLIP can judge a bundle's pictures: one of all kinds can, another only those of its own kind."""
    return clip_domain in (GENERAL, bundle_domain)


def _model(folder: Path, graphs: tuple[Path, Path], sha256: str, golden_cosine: float, threads: int | None) -> ClipModel:
    from platemark.runtime.backends.onnxruntime import compile_graph
    from platemark.runtime.tokenizer import Tokenizer

    with fail_closed("clip"):
        tokenizer = Tokenizer.load(folder, read_preprocess(folder).context_length)
        image, text = (compile_graph(graph, threads=threads) for graph in graphs)
    return ClipModel.load(folder, image, text, tokenizer.encode_batch, sha256=sha256, golden_cosine=golden_cosine)
