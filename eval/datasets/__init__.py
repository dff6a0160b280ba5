"""Data sets in their standard layouts → samples that tasks can score."""
