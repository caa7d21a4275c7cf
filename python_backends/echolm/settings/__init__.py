"""The configuration: one file, ``echolm.toml``, one validated object."""

from echolm.settings.environment import ENV_PREFIX
from echolm.settings.loading import ENV_CONFIG, load_settings
from echolm.settings.schema import (
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
    Settings,
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
