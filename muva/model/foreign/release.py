"""Checkpoints of MUVA's authors' release (Li, Gong, Zhang, arXiv 2603.14012).

Known, from the names of the release's modules: `image_encoder` is CLIP's visual tower, its
position embedding with a row for each part behind the class token's; `local_token` are the part
tokens, zeros that nothing reads where they are means of patches; `residual_mask_predictor.blocks.i`
the mask predictor; `bnneck` and `fc` neck and classifier; `prompt_learner.learnable_ctx` the
contexts (N, 1 + R, 4, width); `text_encoder` CLIP's text transformer. CLIP's token embedding is not
among the modules, so a file has none. The release loads a bare state dict.

Not known: the file of any published model. The paper announces github.com/RikoLi/MUVA; no weights
were at hand, so this form is tested on files written from parameters whose results in the release
were recorded, not on the authors' own. A file does not tell the predictor's heads and shortcut,
gating, the parts' names where there are fewer than three, nor image size and normalisation: those
are the recipe's.
"""

from muva.model.foreign.form import (
    BN_NECK,
    CLASSIFIER,
    CONTEXTS,
    MASK_PREDICTOR,
    PART_TOKENS,
    VISUAL,
    Form,
)

RELEASE = Form(
    name="muva",
    title="MUVA's authors' release",
    names={
        "image_encoder.": VISUAL,
        "local_token": PART_TOKENS,
        "residual_mask_predictor.": MASK_PREDICTOR,
        "bnneck.": BN_NECK,
        "fc.weight": CLASSIFIER,
        "prompt_learner.learnable_ctx": CONTEXTS,
        "text_encoder.": "",
    },
    signature="residual_mask_predictor.",
    needs=(PART_TOKENS, MASK_PREDICTOR, f"{BN_NECK}running_mean", f"{BN_NECK}running_var",
           f"{BN_NECK}weight", f"{BN_NECK}bias"),
    has_parts=True,
)  # fmt: skip
