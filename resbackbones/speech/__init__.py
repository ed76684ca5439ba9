"""Waveforms in, classes out. Importing this registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification

from resbackbones.speech.data import AudioItems, Augment, Clips, decode, read_clips
from resbackbones.speech.frontend import FrontEnd, ResidualFeatureExtractor, resample
from resbackbones.speech.models import ResidualForAudioClassification, ResidualSpeechConfig

AutoConfig.register(ResidualSpeechConfig.model_type, ResidualSpeechConfig)
AutoFeatureExtractor.register(ResidualSpeechConfig, ResidualFeatureExtractor)
AutoModelForAudioClassification.register(ResidualSpeechConfig, ResidualForAudioClassification)

__all__ = [
    "AudioItems",
    "Augment",
    "Clips",
    "FrontEnd",
    "ResidualFeatureExtractor",
    "ResidualForAudioClassification",
    "ResidualSpeechConfig",
    "decode",
    "read_clips",
    "resample",
]
