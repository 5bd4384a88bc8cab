"""The recipe's parts, and the shipped weights as the libraries they are made for load them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from platemark.models import embedded

pytestmark = pytest.mark.torch
FONT_SHA256 = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"  # NotoColorEmoji.ttf of Debian's 2.042
NAMES = (embedded() / "names.txt").read_text(encoding="utf-8").splitlines()


def test_names_are_plain_and_enough() -> None:
    assert 650 <= len(NAMES) <= 900
    assert len(set(NAMES)) == len(NAMES)
    assert all(name == name.lower().strip() and "-" not in name and "_" not in name for name in NAMES)


def test_the_glyph_list_is_reproducible() -> None:
    from training.glyphs import FONT, choose

    if not FONT.is_file():
        pytest.skip("the Debian package fonts-noto-color-emoji is not installed")
    if hashlib.sha256(FONT.read_bytes()).hexdigest() != FONT_SHA256:
        pytest.skip("another version of the font than 2.042, whose glyphs the names were chosen from")
    assert [glyph.name for glyph in choose()] == NAMES


def test_captions_keep_half_plain_and_mind_articles() -> None:
    from training.captions import article, caption, main_colour
    from training.glyphs import Glyph

    rng = np.random.default_rng(0)
    said = [caption(Glyph("x", "apple", ("pomme", "apple2")), "red", rng) for _ in range(2000)]
    assert 0.45 < said.count("apple") / len(said) < 0.62
    assert not any("apple2" in text or "a apple" in text for text in said)
    assert any(text.endswith("red apple") for text in said)
    assert article("a photo of a orange cat") == "a photo of an orange cat"
    assert main_colour(np.full((8, 8, 3), (200, 20, 20), np.uint8)) == "red"
    assert main_colour(np.full((8, 8, 3), 255, np.uint8)) == "white"


def test_orthogonalize_flattens_the_spectrum() -> None:
    import torch

    from training.optim import orthogonalize

    torch.manual_seed(0)
    for shape in ((16, 64), (64, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_the_pipeline_folder_loads_in_diffusers() -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(embedded(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images[0]
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 0.02
    parameters = sum(p.numel() for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters())
    assert sum(p.numel() for p in pipeline.unet.parameters()) <= 15e6
    assert parameters < 22e6


def test_open_clip_loads_the_clip_offline_and_its_text_tower_is_the_pipelines() -> None:
    import open_clip
    import torch
    from transformers import CLIPTextModel

    from training.clip import text_embedding, text_states

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{embedded() / 'clip'}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{embedded() / 'clip'}")
    ids = tokenize(["a red apple", "crossed swords"])
    tower = CLIPTextModel.from_pretrained(embedded() / "text_encoder", dtype=torch.float32)
    with torch.no_grad():
        ours = text_states(model.eval(), ids)
        torch.testing.assert_close(ours, tower.eval()(ids).last_hidden_state, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(text_embedding(model, ours, ids), model.encode_text(ids, normalize=True), atol=1e-5, rtol=1e-5)
