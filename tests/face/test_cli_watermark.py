"""`platemark watermark`: what it writes, what it says, what it refuses, and that its input survives."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from platemark.cli import main
from platemark.provenance.identity import init_keys
from platemark.provenance.keyring import export_keys, held_keys, import_keys
from platemark.provenance.mark_reading import MarkReading, pictures_in, read_marks
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.key import WatermarkKey

Pixels = np.ndarray


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["watermark", *map(str, arguments)])


def lines(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(done: Result, code: int = 0) -> dict[str, Any]:
    assert done.exit_code == code, (done.stdout, done.stderr)
    (one,) = lines(done)
    return one


def refused(done: Result, code: int = 2) -> str:
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def keys(state_home: Path) -> Path:
    init_keys(state_home, name="Test Studio")
    return state_home


def opened(path: Path) -> Image.Image:
    """Decoded, with the file closed."""
    with Image.open(path) as image:
        image.load()
        return image.copy()


def textured(height: int = 320, width: int = 352, seed: int = 3) -> Pixels:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 215, (height // 16, width // 16, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(textured()).save(path)
    return path


def test_what_is_embedded_is_read_back_with_every_field(keys: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    made = said(run("embed", picture, "-o", out, "--content-id", 77, "--issuer", 5, "--json"))
    assert (made["content_id"], made["issuer"], made["size"], made["notes"]) == (77, 5, [320, 352], [])
    assert made["psnr"] > 40
    found = said(run("detect", out, "--json"))
    assert list(found) == [
        "file", "verdict", "content_id", "issuer", "p_value", "geometry", "symbol_error_rate", "version", "key_id", "hypotheses",
    ]  # fmt: skip
    assert (found["verdict"], found["content_id"], found["issuer"], found["version"]) == ("detected", 77, 5, 1)
    assert found["p_value"] < 1e-6
    assert found["symbol_error_rate"] < 0.3
    assert found["key_id"] == held_keys(keys)[0].key_id == made["key_id"]
    assert found["geometry"]["flip"] is False
    assert found["hypotheses"] >= 1


def test_an_unmarked_picture_says_not_detected_and_guesses_nothing(keys: Path, picture: Path) -> None:
    found = said(run("detect", picture, "--json"), 1)
    assert found["verdict"] == "not-detected"
    assert {found[name] for name in ("content_id", "issuer", "geometry", "version", "key_id", "symbol_error_rate")} == {None}
    assert found["p_value"] > 1e-4


def test_without_an_issuer_the_keys_own_is_written(keys: Path, picture: Path, tmp_path: Path) -> None:
    made = said(run("embed", picture, "-o", tmp_path / "o.png", "--content-id", 1, "--json"))
    assert made["issuer"] == held_keys(keys)[0].issuer


def test_strength_is_used(keys: Path, picture: Path, tmp_path: Path) -> None:
    reached = [
        said(run("embed", picture, "-o", tmp_path / "o.png", "--content-id", 1, "--strength", strength, "--json"))["psnr"]
        for strength in (1.2, 2.4)
    ]
    assert reached[0] > reached[1] + 3


def test_no_key_is_said_and_is_no_verdict_about_the_picture(picture: Path, tmp_path: Path) -> None:
    assert said(run("detect", picture, "--json"), 4)["verdict"] == "no-key"
    assert "keys init" in run("detect", picture).stdout
    assert "keys init" in refused(run("embed", picture, "-o", tmp_path / "o.png", "--content-id", 1), 4)
    assert not (tmp_path / "o.png").exists()


def test_a_key_that_only_reads_does_not_mark(keys: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked, moved, other = tmp_path / "m.png", tmp_path / "keys.json", tmp_path / "other"
    said(run("embed", picture, "-o", marked, "--content-id", 9, "--json"))
    export_keys(moved, keys)
    import_keys(moved, other)
    monkeypatch.setenv("PLATEMARK_HOME", str(other))
    assert said(run("detect", marked, "--json"))["content_id"] == 9
    refused(run("embed", picture, "-o", tmp_path / "o.png", "--content-id", 1), 4)


def test_transparency_profile_and_exif_are_kept(keys: Path, tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    alpha = np.full((320, 352), 255, np.uint8)
    alpha[:80, :80], alpha[:80, 80:160] = 0, 128
    exif = Image.Exif()
    exif[0x010E] = "a description"
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    pixels = np.dstack([textured(), alpha])
    Image.fromarray(pixels).save(source, icc_profile=profile, exif=exif)
    for target in (out, tmp_path / "out.webp"):
        said(run("embed", source, "-o", target, "--content-id", 4, "--json"))
        with Image.open(target) as made:
            assert (made.mode, made.size) == ("RGBA", (352, 320))
            assert made.info["icc_profile"] == profile
            assert made.getexif()[0x010E] == "a description"
            assert np.array_equal(np.asarray(made)[..., 3], alpha)
        assert said(run("detect", target, "--json"))["content_id"] == 4
    assert np.array_equal(np.asarray(opened(out))[:80, :80], pixels[:80, :80]), "what cannot be seen is not changed"
    assert "JPEG" in refused(run("embed", source, "-o", tmp_path / "o.jpg", "--content-id", 4))


def test_a_picture_that_is_mostly_transparent_is_refused(keys: Path, tmp_path: Path) -> None:
    alpha = np.zeros((320, 352), np.uint8)
    alpha[100:110, 100:110] = 255
    Image.fromarray(np.dstack([textured(), alpha])).save(tmp_path / "in.png")
    refused(run("embed", tmp_path / "in.png", "-o", tmp_path / "o.png", "--content-id", 4), 4)
    assert not (tmp_path / "o.png").exists()


def test_gray_stays_gray_and_16_bit_is_converted_with_a_word(keys: Path, tmp_path: Path) -> None:
    gray = textured()[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name, notes in (("gray", []), ("deep", ["16-bit samples became 8-bit"])):
        made = said(run("embed", tmp_path / f"{name}.png", "-o", tmp_path / "o.png", "--content-id", 4, "--json"))
        assert made["notes"] == notes
        assert opened(tmp_path / "o.png").mode == "L"
        assert said(run("detect", tmp_path / "o.png", "--json"))["content_id"] == 4


def test_16_bit_colour_is_converted_with_a_word(keys: Path, tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    samples = (textured().astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 352, 320, 16, 2, 0, 0, 0))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    made = said(run("embed", tmp_path / "deep.png", "-o", tmp_path / "o.png", "--content-id", 4, "--json"))
    assert made["notes"] == ["16-bit samples became 8-bit"]


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "F"])
def test_colours_that_need_a_profile_are_refused(keys: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "in.tiff"
    image = Image.fromarray(textured()[..., 0].astype(np.float32)) if mode == "F" else Image.new(mode, (320, 320))
    image.save(path)
    assert mode in refused(run("embed", path, "-o", tmp_path / "o.png", "--content-id", 4))


def test_a_turned_photograph_is_marked_upright(keys: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(textured()).save(tmp_path / "in.jpg", exif=exif, quality=95)
    said(run("embed", tmp_path / "in.jpg", "-o", tmp_path / "o.jpg", "--content-id", 4, "--json"))
    with Image.open(tmp_path / "o.jpg") as made:
        assert made.size == (320, 352)
        assert 0x0112 not in made.getexif()
    assert said(run("detect", tmp_path / "o.jpg", "--json"))["content_id"] == 4


def test_the_input_is_never_overwritten(keys: Path, picture: Path, tmp_path: Path) -> None:
    before, link = picture.read_bytes(), tmp_path / "link.png"
    link.symlink_to(picture)
    for target in (picture, link):
        assert "input" in refused(run("embed", picture, "-o", target, "--content-id", 4))
    assert picture.read_bytes() == before


def test_an_existing_output_is_replaced_whole_or_not_at_all(keys: Path, picture: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "o.png"
    out.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        assert "No space" in refused(run("embed", picture, "-o", out, "--content-id", 4))
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "o.png"]
    said(run("embed", picture, "-o", out, "--content-id", 4, "--json"))
    assert said(run("detect", out, "--json"))["content_id"] == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("--content-id", 1 << 42), ("--content-id", -1), ("--content-id", "x"), ("--content-id", 1, "--issuer", 1 << 14), (),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(keys: Path, picture: Path, tmp_path: Path, arguments: tuple[Any, ...]) -> None:
    refused(run("embed", picture, "-o", tmp_path / "o.png", *arguments))
    assert not (tmp_path / "o.png").exists()


def test_unknown_suffix_small_pictures_and_animations_are_refused(keys: Path, picture: Path, tmp_path: Path) -> None:
    refused(run("embed", picture, "-o", tmp_path / "o.bmp", "--content-id", 1))
    Image.fromarray(textured()[:40, :40]).save(tmp_path / "small.png")
    refused(run("embed", tmp_path / "small.png", "-o", tmp_path / "o.png", "--content-id", 1), 4)
    frames = [Image.fromarray(textured(seed=seed)) for seed in (1, 2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert "animation" in refused(run("embed", tmp_path / "moving.gif", "-o", tmp_path / "o.png", "--content-id", 1))


def test_a_large_picture_is_marked_at_its_own_size(keys: Path, tmp_path: Path) -> None:
    Image.fromarray(textured(1536, 2048)).save(tmp_path / "in.png")
    made = said(run("embed", tmp_path / "in.png", "-o", tmp_path / "o.webp", "--content-id", 6, "--json"))
    assert made["size"] == [1536, 2048]
    assert opened(tmp_path / "o.webp").size == (2048, 1536)
    assert said(run("detect", tmp_path / "o.webp", "--json"))["content_id"] == 6


def test_a_folder_is_read_in_order_and_one_bad_file_stops_nothing(keys: Path, picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "below"
    folder.mkdir(parents=True)
    said(run("embed", picture, "-o", folder / "a.png", "--content-id", 8, "--json"))
    (folder / "b.png").write_bytes(b"no picture")
    (folder.parent / "c.png").write_bytes(picture.read_bytes())
    (folder / ".hidden.png").write_bytes(picture.read_bytes())
    (folder / "notes.txt").write_text("no picture")
    done = run("detect", tmp_path / "folder", "--json")
    assert done.exit_code == 2
    found = lines(done)
    assert [Path(one["file"]).name for one in found] == ["a.png", "b.png", "c.png"]
    assert found[0]["content_id"] == 8
    assert found[1]["error"]["code"] == "bad_image"
    assert found[2]["verdict"] == "not-detected"
    plain = run("detect", tmp_path / "folder")
    assert "content id 8" in plain.stdout
    assert "b.png" in plain.stderr


def test_processes_say_what_one_process_says(keys: Path, picture: Path, tmp_path: Path) -> None:
    said(run("embed", picture, "-o", tmp_path / "marked.png", "--content-id", 8, "--json"))
    files = pictures_in([tmp_path]) * 2
    before = dict(os.environ)
    apart: list[MarkReading] = list(read_marks(files, keys, processes=2))
    assert dict(os.environ) == before
    assert apart == list(read_marks(files, keys, processes=1))
    assert [one.verdict for one in apart] == ["not-detected", "detected"] * 2


def test_missing_paths_and_empty_folders_are_said(keys: Path, tmp_path: Path) -> None:
    assert "check the path" in refused(run("detect", tmp_path / "nothing.png"))
    assert "no picture" in refused(run("detect", tmp_path))


def test_help_says_whose_content_ids_they_are() -> None:
    text = run("embed", "--help").stdout
    assert "Nothing is registered or signed" in " ".join(text.split())
    assert "says nothing about where a picture came from" in " ".join(run("detect", "--help").stdout.split())


def test_a_mark_read_with_other_keys_is_not_there(
    make_key: Callable[[int], WatermarkKey], keys: Path, picture: Path, tmp_path: Path
) -> None:
    said(run("embed", picture, "-o", tmp_path / "o.png", "--content-id", 8, "--json"))
    pixels = np.asarray(opened(tmp_path / "o.png").convert("RGB"))
    assert {detect(pixels, make_key(number)).verdict for number in range(5)} <= {"not-detected", "inconclusive"}


def pasted(path: Path, to: Path, box: tuple[int, int, int, int] = (80, 64, 240, 224)) -> None:
    """A copy with another picture in it."""
    picture = opened(path).convert("RGB")
    other = Image.fromarray(textured(picture.height, picture.width, seed=9))
    picture.paste(other.crop(box), box)
    picture.save(to)


def test_a_map_shows_what_was_pasted_and_where_it_lies(keys: Path, picture: Path, tmp_path: Path) -> None:
    marked, edited, shown = tmp_path / "m.png", tmp_path / "e.png", tmp_path / "map.png"
    said(run("embed", picture, "-o", marked, "--content-id", 8, "--json"))
    pasted(marked, edited)
    found = said(run("detect", edited, "--map", shown, "--json"))
    assert (found["verdict"], found["content_id"], found["map"]["file"]) == ("detected", 8, str(shown))
    left, top, right, bottom = found["map"]["regions"][0]["box"]
    assert max(abs(left - 80), abs(top - 64), abs(right - 240), abs(bottom - 224)) <= 24
    assert len(found["map"]["cells"]) == found["map"]["grid"][0]
    pixels = np.asarray(opened(shown)).astype(int)
    assert pixels.shape == (320, 352, 3)
    assert pixels[144, 160, 0] > pixels[144, 160, 1] + 20, "red in the middle of what was pasted"
    plain = run("detect", edited, "--map", shown).stdout
    assert "no mark in" in plain
    assert "without mark: left" in plain
    whole = said(run("detect", marked, "--map", shown, "--json"))
    assert whole["map"]["absent"] == 0


def test_without_a_mark_there_is_no_map(keys: Path, picture: Path, tmp_path: Path) -> None:
    found = said(run("detect", picture, "--map", tmp_path / "map.png", "--json"), 1)
    assert found["verdict"] == "not-detected"
    assert "map" not in found
    assert not (tmp_path / "map.png").exists()


def test_a_map_is_of_one_picture_and_replaces_none(keys: Path, picture: Path, tmp_path: Path) -> None:
    before = picture.read_bytes()
    assert "one picture" in refused(run("detect", picture, picture, "--map", tmp_path / "map.png"))
    assert "one picture" in refused(run("detect", tmp_path, "--map", tmp_path / "map.png"))
    assert "PNG" in refused(run("detect", picture, "--map", tmp_path / "map.jpg"))
    assert "replace the picture" in refused(run("detect", picture, "--map", picture))
    assert "check the path" in refused(run("detect", tmp_path / "nothing.png", "--map", tmp_path / "map.png"))
    assert picture.read_bytes() == before


def test_a_map_needs_a_key(picture: Path, tmp_path: Path) -> None:
    assert said(run("detect", picture, "--map", tmp_path / "map.png", "--json"), 4)["verdict"] == "no-key"


def test_the_layer_in_the_noise_is_read_on_request(keys: Path, picture: Path, tmp_path: Path) -> None:
    from platemark.models import embedded
    from platemark.provenance.watermark.latent import noise
    from platemark.runtime.bundle import open_bundle
    from platemark.runtime.pipeline import Pipeline
    from platemark.runtime.request import GenerationRequest

    pipeline = Pipeline.load(open_bundle(embedded()))
    latents = noise(901, (4, 16, 16), 5013, held_keys(keys)[0].watermark)[None]
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt="blossom", seed=901)
    Image.fromarray(pipeline.generate(request, latents=latents).images[0]).save(tmp_path / "noise.png")
    done = run("detect", tmp_path / "noise.png", picture, "--latent", "--json")
    assert done.exit_code == 1
    made, plain = lines(done)
    assert made["verdict"] == "not-detected", "it carries no mark in its pixels"
    assert (made["latent"]["verdict"], made["latent"]["content_id_mod_4096"]) == ("detected", 5013 % 4096)
    assert made["latent"]["p_value"] < 1e-6
    assert (plain["latent"]["verdict"], plain["latent"]["content_id_mod_4096"]) == ("not-detected", None)
    assert "modulo 4096 is 917" in run("detect", tmp_path / "noise.png", "--latent").stdout
    assert "latent" not in lines(run("detect", picture, "--json"))[0]


@pytest.fixture
def make_key() -> Callable[[int], WatermarkKey]:
    return lambda number: WatermarkKey.from_secret(bytes([number]) * 32)
