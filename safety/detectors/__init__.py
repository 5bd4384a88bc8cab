"""Detectors for pictures, each behind the contract of `safety.signals`; `registry` finds them by name."""
