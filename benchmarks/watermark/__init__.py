"""Measures the watermark: pictures, named attacks, the harness, peers and the calibration of false positives."""
