"""Typed, validated, immutable settings of an experiment, read from TOML.

One file describes one experiment: what data, which encoder, which method, how it is trained, evaluated and
explained. Unknown keys, wrong types and impossible values are refused before anything is compiled, with one
line that names the file, the key and, for a misspelt key, the nearest valid one.
"""

from protojax.config.frozen import FeaturesSettings as FeaturesSettings
from protojax.config.frozen import FrozenSettings as FrozenSettings
from protojax.config.frozen import ViewSettings as ViewSettings
from protojax.config.mixing import MixSettings as MixSettings
from protojax.config.reading import SettingsError as SettingsError
from protojax.config.reading import from_tree as from_tree
from protojax.config.reading import load as load
from protojax.config.reading import override as override
from protojax.config.reading import to_tree as to_tree
from protojax.config.settings import AttentionAutoencoderSettings as AttentionAutoencoderSettings
from protojax.config.settings import AugmentSettings as AugmentSettings
from protojax.config.settings import AutoencoderSettings as AutoencoderSettings
from protojax.config.settings import ConvSettings as ConvSettings
from protojax.config.settings import DataSettings as DataSettings
from protojax.config.settings import EncoderBaselineSettings as EncoderBaselineSettings
from protojax.config.settings import EncoderSettings as EncoderSettings
from protojax.config.settings import EvaluateSettings as EvaluateSettings
from protojax.config.settings import ExplainSettings as ExplainSettings
from protojax.config.settings import FineTuningSettings as FineTuningSettings
from protojax.config.settings import LSTMSettings as LSTMSettings
from protojax.config.settings import MethodSettings as MethodSettings
from protojax.config.settings import NumericColumn as NumericColumn
from protojax.config.settings import OptimizerSettings as OptimizerSettings
from protojax.config.settings import ProtoAttendSettings as ProtoAttendSettings
from protojax.config.settings import ProtoQuantSettings as ProtoQuantSettings
from protojax.config.settings import PrototypeAutoencoderSettings as PrototypeAutoencoderSettings
from protojax.config.settings import ResNetSettings as ResNetSettings
from protojax.config.settings import Settings as Settings
from protojax.config.settings import TableSettings as TableSettings
from protojax.config.settings import TextSettings as TextSettings
from protojax.config.settings import TrainSettings as TrainSettings
from protojax.config.settings import VDCNNSettings as VDCNNSettings
