"""The configuration: one file, ``echolm.toml``, one validated object."""

from echolm.settings.environment import ENV_CONFIG, ENV_PREFIX
from echolm.settings.loading import load_settings
from echolm.settings.schema import Settings
from echolm.settings.sections import (
    EmbeddingSettings,
    ExamplesSettings,
    FeedbackSettings,
    JudgingSettings,
    LearningSettings,
    Limits,
    LLMSettings,
    ReplaySettings,
    RetrievalSettings,
    RoutingSettings,
)

__all__ = [
    "ENV_CONFIG",
    "ENV_PREFIX",
    "EmbeddingSettings",
    "ExamplesSettings",
    "FeedbackSettings",
    "JudgingSettings",
    "LLMSettings",
    "LearningSettings",
    "Limits",
    "ReplaySettings",
    "RetrievalSettings",
    "RoutingSettings",
    "Settings",
    "load_settings",
]
