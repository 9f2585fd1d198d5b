"""YAML and key=value to a pydantic config, or one clear error. Knows none of the configs: each stands beside its
owner.

May import: model.errors, model.storage.
"""

from model.settings.describe import describe as describe
from model.settings.load import Settings as Settings
from model.settings.load import apply_overrides as apply_overrides
from model.settings.load import build as build
from model.settings.load import dump_yaml as dump_yaml
from model.settings.load import load_settings as load_settings
from model.settings.messages import did_you_mean as did_you_mean
