"""Mutated pictures through the verifier and the metadata readers: `python -m tools.soak_verify --files 10000 [--seed N]`.

Signed pictures of six formats are mutated (bytes, cuts, repeats, lengths, splices, texts) by a seeded generator, and so are an XMP packet
and the texts of web UIs, ComfyUI and AIGC labels, which the mutated pictures rarely bring as far as their readers. Each file must end in a
verdict or in an error of our own, in less than one second of processor time and with less than 200 MB of memory on top of the idle process.
Whatever else happens ends the run with the seed and the number of the file. The deep watermark search is left out.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

FORMATS = ("png", "jpeg", "webp", "avif", "tiff", "gif")
SECONDS = 1.0
MEMORY = 200 << 20
_SIDE = 64


@dataclass
class Tally:
    """What became of the files. `slowest`: seconds of processor time; `memory`: bytes on top of the idle process."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    memory: int = 0


def samples(home: Path) -> dict[str, bytes]:
    """One small signed picture of each format, with XMP and texts where the format has them."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from platemark.provenance.identity import development_identity
    from platemark.provenance.record import Facts
    from platemark.provenance.signing import sign

    identity = development_identity(home)
    facts = Facts(
        model_name="m", model_sha256="ab", bundle_sha256="cd", seed=1, request_hmac="ef", settings={}, resampled_from=None, decision={}
    )
    y, x = np.mgrid[0:_SIDE, 0:_SIDE]
    image = Image.fromarray(np.stack([x * 3, y * 3, (x * y) % 200], axis=-1).astype(np.uint8))
    info, out = PngInfo(), {}
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler")
    info.add_text("prompt", '{"1": {"class_type": "KSampler", "inputs": {"seed": 5}}}', zip=True)
    info.add_itxt("XML:com.adobe.xmp", _XMP)
    options = {"png": {"pnginfo": info}, "jpeg": {"xmp": _XMP.encode()}, "webp": {"xmp": _XMP.encode()}}
    for name in FORMATS:
        plain = io.BytesIO()
        image.save(plain, name, **options.get(name, {}))
        common = {"created": "2026-08-02T00:00:00Z", "generator": "platemark/0.1.0", "content_id": 1, "payload": None}
        out[name] = sign(plain.getvalue(), f"image/{name}", facts, identity, **common).data
    return out


_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/" TC260:AIGC="{&quot;AIGC&quot;: {&quot;Label&quot;: &quot;1&quot;}}"/>'
    "</rdf:RDF></x:xmpmeta>"
)
_TEXTS = {
    "parameters": 'a cat\nNegative prompt: b\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 512x512, Lora hashes: "x: 1, y: 2"',
    "prompt": '{"1": {"class_type": "KSampler", "inputs": {"seed": 5, "ckpt_name": "m.safetensors"}}}',
    "workflow": '{"nodes": [{"id": 1, "type": "KSampler"}], "links": []}',
    "AIGC": '{"Label": "1", "ContentProducer": "p", "ProduceID": "1"}',
    "exif:UserComment": 'AIGC{"AIGC": {"Label": "2"}}',
    "invokeai_metadata": "{}",
}


def metadata(count: int, seed: int) -> Iterator[tuple[bytes, dict[str, str]]]:
    """`count` mutated XMP packets and sets of texts, the same for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        parts = [bytearray(_XMP.encode()), *(bytearray(text.encode()) for text in _TEXTS.values())]
        for data in parts:
            for _ in range(chance.choice((0, 1, 3))):
                chance.choice(_MUTATORS)(data, chance, bytes(chance.choice(parts)) or b"x")
        texts = dict(zip(_TEXTS, (part.decode("utf-8", "surrogateescape") for part in parts[1:]), strict=True))
        yield bytes(parts[0]), texts


def mutations(seeds: dict[str, bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` mutated files, the same for the same seed."""
    chance, names = random.Random(seed), sorted(seeds)
    for number in range(count):
        data = bytearray(seeds[names[number % len(names)]])
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            chance.choice(_MUTATORS)(data, chance, seeds[chance.choice(names)])
        yield bytes(data)


def _place(data: bytearray, chance: random.Random) -> int:
    """Half of the time among the first bytes, where headers are."""
    return chance.randrange(min(len(data), 256) if chance.random() < 0.5 else len(data)) if data else 0


def _byte(data: bytearray, chance: random.Random, _other: bytes) -> None:
    if data:
        data[_place(data, chance)] = chance.randrange(256)


def _bit(data: bytearray, chance: random.Random, _other: bytes) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _length(data: bytearray, chance: random.Random, _other: bytes) -> None:
    """A number that may be a length or a size becomes extreme."""
    at, value = _place(data, chance), chance.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    width = 1 if value < 256 else 2 if value < 65536 else 4
    data[at : at + width] = value.to_bytes(width, chance.choice(("big", "little")))


def _cut(data: bytearray, chance: random.Random, _other: bytes) -> None:
    if chance.random() < 0.3:
        del data[_place(data, chance) :]
    else:
        at = _place(data, chance)
        del data[at : at + chance.choice((1, 4, 64, 1024))]


def _repeat(data: bytearray, chance: random.Random, _other: bytes) -> None:
    at, size = _place(data, chance), chance.choice((1, 8, 256, 2048))
    data[at:at] = data[at : at + size] * chance.choice((1, 2, 8))


def _splice(data: bytearray, chance: random.Random, other: bytes) -> None:
    at, there = _place(data, chance), chance.randrange(len(other))
    data[at:at] = other[there : there + chance.choice((16, 512, 4096))]


def _text(data: bytearray, chance: random.Random, _other: bytes) -> None:
    at = _place(data, chance)
    data[at:at] = chance.choice((b"<!ENTITY", b"{" * 300, b"[" * 2000, b"\xff\xfe", b"jumb", b"c2pa", b"caBX", b"\0" * 40, b"<x>" * 200))


_MUTATORS: tuple[Callable[[bytearray, random.Random, bytes], None], ...] = (_byte, _byte, _bit, _length, _cut, _repeat, _splice, _text)


def run(count: int, seed: int, home: Path) -> Tally:
    """Verifies `count` mutated files. Raises `RuntimeError` naming the file that broke a bound; what else is raised is a defect."""
    from platemark.errors import PlatemarkError
    from platemark.provenance.verify import verify

    seeds, tally = samples(home), Tally()
    for data in seeds.values():
        verify(data, home=home / "nobody", deep=False)
    idle, said = _peak(), metadata(count, seed)
    for number, data in enumerate(mutations(seeds, count, seed)):
        began = time.process_time()
        try:
            outcome = verify(data, home=home / "nobody", deep=False, profile="cn-gb45438").verdict
        except PlatemarkError as error:
            outcome = error.code
        tally.outcomes["metadata: " + _read(*next(said))] += 1
        spent = time.process_time() - began
        tally.outcomes[outcome] += 1
        tally.slowest, tally.memory = max(tally.slowest, spent), max(tally.memory, _peak() - idle)
        if spent > SECONDS or tally.memory > MEMORY:
            raise RuntimeError(f"file {number} of seed {seed}: {spent:.2f} s, {tally.memory >> 20} MB")
    return tally


def _read(xmp: bytes, texts: dict[str, str]) -> str:
    """What the metadata readers make of a packet and texts."""
    import numpy as np

    from platemark.imaging import Decoded
    from platemark.provenance.claims import read_claims

    state: str = read_claims(Decoded(np.zeros((1, 1, 3), np.uint8), "png", "RGB", None, (1, 1), xmp, texts))["state"]
    return state


def _peak() -> int:
    """The most memory that this process has held, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutated pictures through the verifier.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of decoders, on damaged files
    with TemporaryDirectory() as folder:
        began = time.process_time()
        tally = run(options.files, options.seed, Path(folder))
    said = ", ".join(f"{name} {count}" for name, count in tally.outcomes.most_common())
    sys.stdout.write(f"{options.files} files of seed {options.seed} in {time.process_time() - began:.0f} s of one core: {said}\n")
    sys.stdout.write(f"slowest {tally.slowest * 1000:.0f} ms, memory {tally.memory / 2**20:.0f} MB on top of the idle process\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
