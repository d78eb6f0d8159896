"""The scores of one model that are in the store, for the card of the model on the hub."""

from __future__ import annotations

from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.lineage import Lineage, Role
from muva.data.store import Store
from muva.retrieval.results import Scores


def scores_of_model(store: Store, model: Artifact) -> dict[str, dict[str, float]]:
    """Target -> mAP, rank-1 and mINP as fractions, of the newest evaluation on each target.

    Evaluations on held-out training images are left out, and so are re-ranked ones, which measure
    more than the model.
    """
    lineage = Lineage.of(store)
    newest: dict[str, str] = {}
    found: dict[str, dict[str, float]] = {}
    for node in lineage.complete("metrics"):
        features = node.inputs.get(Role.FEATURES, ())
        models = [one for given in features for one in lineage.inputs(given, Role.MODEL)]
        if node.manifest is None or node.manifest["format_version"] != formats.METRICS:
            continue
        if models != [model.address] or node.facts.get("held_out"):
            continue
        scores, target = Scores.from_json(node.manifest["summary"]), node.facts["target"]
        if scores.reranked or node.manifest["created"] < newest.get(target, ""):
            continue
        newest[target] = node.manifest["created"]
        found[target] = {
            "mAP": scores.mean_ap,
            "rank-1": scores.rank1,
            "mINP": scores.mean_inp,
        }
    return dict(sorted(found.items()))
