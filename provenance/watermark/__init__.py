"""The invisible watermark: `embed.embed` writes a `payload.Payload` under a `key.WatermarkKey`, `detect.detect` reads it back."""
