"""The invisible watermark: `embed.embed` writes a `payload.Payload` under a `key.WatermarkKey`, `detect.detect` reads it back.

Writing: `mask` (where a change does not show) → `spread` (a tile of keyed sinusoids, `layout`), or `dither` for pictures under 256 px →
`channel` (what happens to it after). Reading: `spectrum` → `samples` → `search` (`geometries`, `scan`, `refine`) → `reading` (`code`,
`payload`) → `detect`, with p-values from `calibration`.

It is made for what happens to pictures by themselves, not against an enemy who knows the algorithm: the lattice of frequencies is public,
and whoever averages a picture's tiles at the known period can take most of the mark off at little loss.
"""
