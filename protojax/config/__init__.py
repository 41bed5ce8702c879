"""Typed, validated, immutable settings of an experiment, read from TOML.

One file describes one experiment: what data, which encoder, which method, how it is trained, evaluated and
explained. Unknown keys, wrong types and impossible values are refused before anything is compiled, with one
line that names the file, the key and, for a misspelt key, the nearest valid one.
"""

from protojax.config.data import AugmentSettings as AugmentSettings
from protojax.config.data import DataSettings as DataSettings
from protojax.config.data import NumericColumn as NumericColumn
from protojax.config.data import TableSettings as TableSettings
from protojax.config.data import TextSettings as TextSettings
from protojax.config.encoders import AutoencoderSettings as AutoencoderSettings
from protojax.config.encoders import ConvSettings as ConvSettings
from protojax.config.encoders import EncoderSettings as EncoderSettings
from protojax.config.encoders import LSTMSettings as LSTMSettings
from protojax.config.encoders import ResNetSettings as ResNetSettings
from protojax.config.encoders import VDCNNSettings as VDCNNSettings
from protojax.config.encoders import ViTSettings as ViTSettings
from protojax.config.frozen import FeaturesSettings as FeaturesSettings
from protojax.config.frozen import FrozenSettings as FrozenSettings
from protojax.config.frozen import ViewSettings as ViewSettings
from protojax.config.methods import AttentionAutoencoderSettings as AttentionAutoencoderSettings
from protojax.config.methods import EncoderBaselineSettings as EncoderBaselineSettings
from protojax.config.methods import FineTuningSettings as FineTuningSettings
from protojax.config.methods import MethodSettings as MethodSettings
from protojax.config.methods import ProtoAttendSettings as ProtoAttendSettings
from protojax.config.methods import ProtoQuantSettings as ProtoQuantSettings
from protojax.config.methods import PrototypeAutoencoderSettings as PrototypeAutoencoderSettings
from protojax.config.mixing import MixSettings as MixSettings
from protojax.config.reading import SettingsError as SettingsError
from protojax.config.reading import from_tree as from_tree
from protojax.config.reading import load as load
from protojax.config.reading import override as override
from protojax.config.reading import to_tree as to_tree
from protojax.config.settings import EvaluateSettings as EvaluateSettings
from protojax.config.settings import ExplainSettings as ExplainSettings
from protojax.config.settings import OptimizerSettings as OptimizerSettings
from protojax.config.settings import Settings as Settings
from protojax.config.settings import TrainSettings as TrainSettings
