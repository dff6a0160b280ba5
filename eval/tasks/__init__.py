"""Cached features of a data set → scores."""
