"""Encoders: image → `Features(summary, spatial)`."""
