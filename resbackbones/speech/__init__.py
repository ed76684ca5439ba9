"""Waveforms in, classes out. Importing this registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification

from resbackbones.speech.augment import Augment
from resbackbones.speech.data import AudioItems
from resbackbones.speech.frontend import FrontEnd, ResidualFeatureExtractor
from resbackbones.speech.models import ResidualForAudioClassification, ResidualSpeechConfig
from resbackbones.speech.normalization import learn_normalization
from resbackbones.speech.pipeline import register
from resbackbones.speech.recordings import Clips, decode, read_clips
from resbackbones.speech.resampling import resample

AutoConfig.register(ResidualSpeechConfig.model_type, ResidualSpeechConfig)
AutoFeatureExtractor.register(ResidualSpeechConfig, ResidualFeatureExtractor)
AutoModelForAudioClassification.register(ResidualSpeechConfig, ResidualForAudioClassification)
register()

__all__ = [
    "AudioItems",
    "Augment",
    "Clips",
    "FrontEnd",
    "ResidualFeatureExtractor",
    "ResidualForAudioClassification",
    "ResidualSpeechConfig",
    "decode",
    "learn_normalization",
    "read_clips",
    "resample",
]
