"""Decides whether a prompt or a picture may pass, and says why. Knows nothing of pipelines, watermarks or signatures."""
