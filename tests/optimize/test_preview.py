"""The colours of previews are fitted at build; those that are shipped are those that would be fitted."""

from __future__ import annotations

import numpy as np
import pytest

from platemark.models import embedded
from platemark.optimize.pictures import shaded
from platemark.optimize.preview import fit_colours
from platemark.runtime.bundle import open_bundle
from platemark.runtime.codec import Codec
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.preview import ColourMap


def test_the_shipped_colours_are_those_of_the_shipped_vae() -> None:
    pipeline = Pipeline.load(open_bundle(embedded()), threads=1)
    manifest = pipeline.bundle.manifest
    fitted = fit_colours(manifest, Codec(manifest, pipeline.engine))
    shipped = manifest.latent_colours
    assert shipped is not None
    np.testing.assert_allclose(fitted.weights, shipped.weights, atol=1e-3)
    np.testing.assert_allclose(fitted.bias, shipped.bias, atol=1e-3)
    assert fitted.r2 == pytest.approx(shipped.r2, abs=1e-3)
    assert shipped.r2 > 0.8


class LinearCodec:
    """A VAE whose latents are the picture's own means, mixed and moved."""

    def encode(self, picture: np.ndarray) -> np.ndarray:
        side = len(picture) // 8
        means = picture.reshape(side, 8, side, 8, 3).mean(axis=(1, 3)) / 255
        mixed = np.concatenate([means * 2 - 1, means[..., :1] - means[..., 1:2]], axis=-1)
        return np.ascontiguousarray(mixed.transpose(2, 0, 1)[None], np.float32)


def test_a_linear_vae_is_read_exactly() -> None:
    manifest = open_bundle(embedded()).manifest
    colours = fit_colours(manifest, LinearCodec())  # type: ignore[arg-type]
    assert colours.r2 > 0.9999
    picture = shaded(64, 1, 5)[0]
    means = picture.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    assert np.abs(ColourMap(colours)(LinearCodec().encode(picture)) - means).max() < 1.5
