"""Checkpoints of MUVA's authors' release (Li, Gong, Zhang; github.com/RikoLi/MUVA).

According to its source code, the release saves plain state dicts: `ViT-B-16_stage1_120.pth`, in
which only the prompts are trained, and `ViT-B-16_stage2_60.pth`. `image_encoder` is CLIP's visual
tower, with a row in the position embedding for each part after that of the class token;
`local_token` are the part tokens, unused zeros if they start as means of patches;
`residual_mask_predictor.blocks.i` is the mask predictor; `bnneck` and `fc` are neck and classifier;
`prompt_learner.learnable_ctx` are the contexts (N, 1 + R, 4, width); `text_encoder` is CLIP's text
transformer. CLIP's token embedding is not one of the modules, so a file lacks it. Features are
compared after the neck, as here.

No published weights are known, so this form is tested on files written from parameters whose
outputs in the release were recorded. A file does not record the predictor's heads and shortcut, the
gating, the names of the parts if there are fewer than three, the image size or the normalisation:
the recipe sets them.
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
