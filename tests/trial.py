"""One tiny run, started in the test's own process as the command line would start it."""

from __future__ import annotations

from pathlib import Path

import yaml


class Trial:
    """A recipe in a file, its run folder, and what the run has told."""

    def __init__(self, recipe: dict, folder: Path):
        self.recipe, self.file, self.run = recipe, folder / "tiny.yaml", Path(recipe["run"])
        self.file.write_text(yaml.safe_dump(recipe, sort_keys=False))

    def train(self, *overrides: str) -> int:
        """The exit code of `train.py tiny.yaml overrides...`."""
        from radio_distill import train

        return train.main([str(self.file), *overrides])

    def journal(self, kind: str = "step") -> list[dict]:
        """The journal's records of a kind, without what only measures time."""
        from radio_distill import journal

        records = [record for record in journal.read(self.run) if record["kind"] == kind]
        return [{key: value for key, value in record.items() if key not in journal.TIMES} for record in records]

    def checkpoints(self) -> list[int]:
        """The steps of the checkpoints that are there."""
        return sorted(int(path.name.split("-")[1]) for path in (self.run / "checkpoints").glob("step-*"))
