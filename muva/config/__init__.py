"""The settings of an experiment: sections, recipes that set them, and search spaces."""

from muva.config.augmentation import AugmentationConfig
from muva.config.parts import PARTS, PHRASES, Part, check_part, words_of
from muva.config.recipes import (
    differences,
    experiment,
    flat,
    load_recipe,
    shipped_recipes,
    to_yaml,
    with_overrides,
    with_settings,
)
from muva.config.schema import (
    SHIPPED_CLIPS,
    BoxRule,
    EvaluationConfig,
    ExecutionConfig,
    ExperimentConfig,
    GroundingConfig,
    ModelConfig,
    PromptConfig,
    Stage1Config,
    Stage2Config,
    SyntheticConfig,
    TuneConfig,
    clip_editions,
    patch_size,
)
from muva.config.section import Count, Section

__all__ = [
    "PARTS",
    "PHRASES",
    "SHIPPED_CLIPS",
    "AugmentationConfig",
    "BoxRule",
    "Count",
    "EvaluationConfig",
    "ExecutionConfig",
    "ExperimentConfig",
    "GroundingConfig",
    "ModelConfig",
    "Part",
    "PromptConfig",
    "Section",
    "Stage1Config",
    "Stage2Config",
    "SyntheticConfig",
    "TuneConfig",
    "check_part",
    "clip_editions",
    "differences",
    "experiment",
    "flat",
    "load_recipe",
    "patch_size",
    "shipped_recipes",
    "to_yaml",
    "with_overrides",
    "with_settings",
    "words_of",
]
