"""The configuration: one file, ``echolm.toml``, one validated object."""

from echolm.settings.environment import ENV_CONFIG as ENV_CONFIG
from echolm.settings.environment import ENV_PREFIX as ENV_PREFIX
from echolm.settings.loading import load_settings as load_settings
from echolm.settings.schema import Settings as Settings
from echolm.settings.sections import EmbeddingSettings as EmbeddingSettings
from echolm.settings.sections import ExamplesSettings as ExamplesSettings
from echolm.settings.sections import FeedbackSettings as FeedbackSettings
from echolm.settings.sections import GatewaySettings as GatewaySettings
from echolm.settings.sections import JudgingSettings as JudgingSettings
from echolm.settings.sections import LearningSettings as LearningSettings
from echolm.settings.sections import Limits as Limits
from echolm.settings.sections import LLMSettings as LLMSettings
from echolm.settings.sections import ReplaySettings as ReplaySettings
from echolm.settings.sections import RetrievalSettings as RetrievalSettings
from echolm.settings.sections import RoutingSettings as RoutingSettings
from echolm.settings.sections import TritonSettings as TritonSettings
