"""The format version of each kind of artifact, part of every address of that kind.

Raise a version when what is written changes, or when the same settings and inputs come to give
another result: artifacts of the old version keep their addresses, are refused by whoever names
them, and are computed again where a step needs them.
"""

from __future__ import annotations

SHARDS = 1
"""Data sets: see `muva.data.shards.write_shards`."""
LABELS = 1
"""Pseudo-labels: see `muva.grounding.labels.write_shard_labels`."""
PROMPTS = 1
BUNDLE = 1
"""Models: see `muva.model.bundle.save_bundle`."""
FEATURES = 2
METRICS = 4
"""Scores: 4 adds verification."""
CALIBRATION = 1
"""The calibration in a model: see `muva.retrieval.calibration_fit.calibrate`."""
DOMAIN_MAP = 1
STUDY = 2
"""Searches: 2 says `objective` for what 1 called `aim`."""
TRIAL = 1
