"""Marks, signs and records pictures, and reads all of that back. Knows nothing of pipelines or of how a decision was made."""
