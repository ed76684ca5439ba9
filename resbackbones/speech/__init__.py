"""Waveforms in, classes and voices out. Importing this registers the models with transformers' Auto
classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForAudioXVector,
)

from resbackbones.speech import decode
from resbackbones.speech.augment import Augment
from resbackbones.speech.data import AudioItems
from resbackbones.speech.detection import Detection, Detector, Listener
from resbackbones.speech.explain import grad_cam
from resbackbones.speech.frontend import FrontEnd, ResidualFeatureExtractor
from resbackbones.speech.models import ResidualForAudioClassification, ResidualSpeechConfig
from resbackbones.speech.normalization import learn_normalization
from resbackbones.speech.operating import operating_curve
from resbackbones.speech.pipeline import register
from resbackbones.speech.recordings import Clips, decode_audio, read_clips
from resbackbones.speech.resampling import resample
from resbackbones.speech.speaker_data import SpeakerItems, TrialItems, speakers_of, spoken
from resbackbones.speech.speakers import ResidualForAudioXVector, ResidualSpeakerConfig
from resbackbones.speech.trials import Trials, make_trials, read_trials
from resbackbones.speech.verification import (
    Verification,
    adaptive_norm,
    draw_det,
    equal_error_rate,
    min_detection_cost,
)

AutoConfig.register(ResidualSpeechConfig.model_type, ResidualSpeechConfig)
AutoFeatureExtractor.register(ResidualSpeechConfig, ResidualFeatureExtractor)
AutoModelForAudioClassification.register(ResidualSpeechConfig, ResidualForAudioClassification)
AutoConfig.register(ResidualSpeakerConfig.model_type, ResidualSpeakerConfig)
AutoFeatureExtractor.register(ResidualSpeakerConfig, ResidualFeatureExtractor)
AutoModelForAudioXVector.register(ResidualSpeakerConfig, ResidualForAudioXVector)
register()

__all__ = [
    "AudioItems",
    "Augment",
    "Clips",
    "Detection",
    "Detector",
    "FrontEnd",
    "Listener",
    "ResidualFeatureExtractor",
    "ResidualForAudioClassification",
    "ResidualForAudioXVector",
    "ResidualSpeakerConfig",
    "ResidualSpeechConfig",
    "SpeakerItems",
    "TrialItems",
    "Trials",
    "Verification",
    "adaptive_norm",
    "decode",
    "decode_audio",
    "draw_det",
    "equal_error_rate",
    "grad_cam",
    "learn_normalization",
    "make_trials",
    "min_detection_cost",
    "operating_curve",
    "read_clips",
    "read_trials",
    "resample",
    "speakers_of",
    "spoken",
]
