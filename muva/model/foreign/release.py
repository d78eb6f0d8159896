"""Checkpoints of MUVA's authors' release (Li, Gong, Zhang; github.com/RikoLi/MUVA).

Known, from the release's sources: it saves bare state dicts, `ViT-B-16_stage1_120.pth` with trained
prompts alone and `ViT-B-16_stage2_60.pth` with everything. `image_encoder` is CLIP's visual tower,
its position embedding with a row for each part behind the class token's; `local_token` are the part
tokens, zeros that nothing reads where they are means of patches; `residual_mask_predictor.blocks.i`
the mask predictor; `bnneck` and `fc` neck and classifier; `prompt_learner.learnable_ctx` the
contexts (N, 1 + R, 4, width); `text_encoder` CLIP's text transformer. CLIP's token embedding is not
among the modules, so a file has none. Features are compared behind the neck, as here.

Not known: any published weights. None were announced or at hand, so this form is tested on files
written from parameters whose results in the release were recorded. A file does not tell the
predictor's heads and shortcut, gating, the parts' names where there are fewer than three, nor image
size and normalisation: those are the recipe's.
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
