"""Checkpoints of CLIP-ReID (Li, Sun, Li, AAAI 2023; github.com/Syliz517/CLIP-ReID), the ViT ones.

Names by `model/make_model_clipreid.py` and `model/make_model.py` (its baseline, without text). The
program judges on two features side by side: the class token behind `ln_post` (768 wide) and the
projected one (512 wide), each behind a BN neck of its own if TEST.NECK_FEAT says so. Ours is the
projected one behind its neck, of unit length: half of theirs, so its figures are not theirs.
"""

from torch import Tensor

from muva.model.foreign.form import BN_NECK, CLASSIFIER, CONTEXTS, VISUAL, Form, Weights

_UNPROJECTED = "of the unprojected feature (behind ln_post), which has no place here"
_CONTEXTS = "prompt_learner.cls_ctx"


def _with_grains(weights: Weights) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The contexts (N, 4, width) with an axis for their only grain, the person."""
    named = {n: value[:, None] if n == _CONTEXTS else value for n, value in weights.items()}
    return named, {name: name for name in weights}


CLIP_REID = Form(
    name="clip-reid",
    title="CLIP-ReID",
    names={
        "image_encoder.": VISUAL,
        "bottleneck_proj.": BN_NECK,
        "classifier_proj.weight": CLASSIFIER,
        _CONTEXTS: CONTEXTS,
        "text_encoder.": "",
    },
    signature="bottleneck_proj.",
    needs=(f"{BN_NECK}running_mean", f"{BN_NECK}running_var", f"{BN_NECK}weight",
           f"{BN_NECK}bias"),
    left_out={
        "bottleneck.": _UNPROJECTED,
        "classifier.weight": _UNPROJECTED,
        "cv_embed": "added to the class token by camera or view: what is learned here knows none, "
        "so features are those of an image without one",
        "prompt_learner.token_prefix": "words of the prompt, which CLIP's token embedding has",
        "prompt_learner.token_suffix": "words of the prompt, which CLIP's token embedding has",
    },
    prepare=_with_grains,
    remarks={
        BN_NECK: "of the projected feature; CLIP-ReID joins it with the unprojected one, so its "
        "own figures are of another feature",
        CONTEXTS: "learned before `person.`, whose full stop the prompts here have not",
    },
)  # fmt: skip
