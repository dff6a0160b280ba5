"""The losses of the tiny recipe, step by step, as they were when they were last looked at.

A change that should not change training must leave them alone. After one that should, look at the new ones and write
them with `GOLDEN_REFRESH=1 pytest tests/radio_distill/test_golden.py`; the file's difference belongs in the commit.
Other processors and library versions round otherwise, which eight steps let grow: hence the tolerance.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden_losses.json")
TOLERANCE = 1e-3  # relative: a hundred times what other vector units or threads do, a tenth of what 1 % more lr does


def test_losses_are_the_golden_ones(trial):
    assert trial.train() == 0
    kept = {"step": ["loss", "low/a/feature", "low/a/summary", "high/b/feature", "high/b/summary", "norm", "lr"],
            "heldout": ["low/a/feature_error", "high/b/feature_error", "high/b/summary_error"]}  # fmt: skip
    told = {
        kind: [{"step": record["step"], **{key: record[key] for key in keys}} for record in trial.journal(kind)]
        for kind, keys in kept.items()
    }
    if os.environ.get("GOLDEN_REFRESH") == "1":
        GOLDEN.write_text(json.dumps(told, indent=1) + "\n")
        pytest.skip(f"{GOLDEN.name} was written anew; look at its difference")
    golden = json.loads(GOLDEN.read_text())
    for kind, records in golden.items():
        assert len(told[kind]) == len(records)
        for one, wanted in zip(told[kind], records):
            assert one == pytest.approx(wanted, rel=TOLERANCE), f"{kind} {wanted['step']}"
