"""Scores → the report: what a reader is told of each figure, the pictures, and the files `report.*` and `scores.*`."""

from eval.report.page import write

__all__ = ["write"]
