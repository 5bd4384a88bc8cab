"""Bundle → images, with numpy and an engine library only. Knows nothing of torch, safety or provenance."""
