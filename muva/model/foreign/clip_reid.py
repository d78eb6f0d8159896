"""ViT checkpoints of CLIP-ReID (Li, Sun, Li, AAAI 2023; github.com/Syliz517/CLIP-ReID).

The names are those of `model/make_model_clipreid.py` and `model/make_model.py` (its baseline
without text). CLIP-ReID evaluates two concatenated features: the class token after `ln_post` (768
wide) and the projected one (512 wide), each after a separate BN neck if TEST.NECK_FEAT says so.
Ours is only the projected one after its neck, of unit length, so results differ from CLIP-ReID's
own.
"""

from torch import Tensor

from muva.model.foreign.form import BN_NECK, CLASSIFIER, CONTEXTS, VISUAL, Form, Weights

_UNPROJECTED = "belongs to the unprojected feature (after ln_post), which is not used here"
_CONTEXTS = "prompt_learner.cls_ctx"


def _with_grains(weights: Weights) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Add a grain axis to the contexts (N, 4, width): their only grain is the person."""
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
        "cv_embed": "added to the class token depending on camera or view; models here have no "
        "such embedding, so features are those of an image without it",
        "prompt_learner.token_prefix": "words of the prompt, already in CLIP's token embedding",
        "prompt_learner.token_suffix": "words of the prompt, already in CLIP's token embedding",
    },
    prepare=_with_grains,
    remarks={
        BN_NECK: "of the projected feature; CLIP-ReID concatenates it with the unprojected one, so "
        "its published results belong to another feature",
        CONTEXTS: "learned for `person.` with a full stop, which the prompts here do not have",
    },
)  # fmt: skip
