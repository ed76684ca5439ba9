"""Waveforms in, classes, voices and texts out. Importing this registers the models with
transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoProcessor,
    AutoTokenizer,
)

from resbackbones.speech import decode
from resbackbones.speech.augment import Augment
from resbackbones.speech.data import AudioItems
from resbackbones.speech.detection import Detection, Detector, Listener
from resbackbones.speech.error_rates import ErrorRates
from resbackbones.speech.explain import grad_cam
from resbackbones.speech.frontend import FrontEnd, ResidualFeatureExtractor
from resbackbones.speech.long import Segment, departure, joined, transcribe_long
from resbackbones.speech.models import ResidualForAudioClassification, ResidualSpeechConfig
from resbackbones.speech.normalization import learn_normalization
from resbackbones.speech.operating import operating_curve
from resbackbones.speech.pipeline import register
from resbackbones.speech.recognition import ResidualCTCConfig, ResidualForCTC
from resbackbones.speech.recordings import Clips, audio_blocks, decode_audio, read_clips
from resbackbones.speech.resampling import resample
from resbackbones.speech.speaker_data import SpeakerItems, TrialItems, speakers_of, spoken
from resbackbones.speech.speakers import ResidualForAudioXVector, ResidualSpeakerConfig
from resbackbones.speech.streaming import ChunkedSpeech, SpeechStream, WordStream
from resbackbones.speech.subtitles import write_subtitles
from resbackbones.speech.transcripts import TranscriptItems
from resbackbones.speech.trials import Trials, make_trials, read_trials
from resbackbones.speech.verification import (
    Verification,
    adaptive_norm,
    draw_det,
    equal_error_rate,
    min_detection_cost,
)
from resbackbones.speech.vocabulary import (
    CTCTokenizer,
    ResidualCTCProcessor,
    given_vocabulary,
    learn_vocabulary,
)

AutoConfig.register(ResidualSpeechConfig.model_type, ResidualSpeechConfig)
AutoFeatureExtractor.register(ResidualSpeechConfig, ResidualFeatureExtractor)
AutoModelForAudioClassification.register(ResidualSpeechConfig, ResidualForAudioClassification)
AutoConfig.register(ResidualSpeakerConfig.model_type, ResidualSpeakerConfig)
AutoFeatureExtractor.register(ResidualSpeakerConfig, ResidualFeatureExtractor)
AutoModelForAudioXVector.register(ResidualSpeakerConfig, ResidualForAudioXVector)
AutoConfig.register(ResidualCTCConfig.model_type, ResidualCTCConfig)
AutoFeatureExtractor.register(ResidualCTCConfig, ResidualFeatureExtractor)
AutoTokenizer.register(ResidualCTCConfig, fast_tokenizer_class=CTCTokenizer)
AutoProcessor.register(ResidualCTCConfig, ResidualCTCProcessor)
AutoModelForCTC.register(ResidualCTCConfig, ResidualForCTC)
register()

__all__ = [
    "AudioItems",
    "Augment",
    "CTCTokenizer",
    "ChunkedSpeech",
    "Clips",
    "Detection",
    "Detector",
    "ErrorRates",
    "FrontEnd",
    "Listener",
    "ResidualCTCConfig",
    "ResidualCTCProcessor",
    "ResidualFeatureExtractor",
    "ResidualForAudioClassification",
    "ResidualForAudioXVector",
    "ResidualForCTC",
    "ResidualSpeakerConfig",
    "ResidualSpeechConfig",
    "Segment",
    "SpeakerItems",
    "SpeechStream",
    "TranscriptItems",
    "TrialItems",
    "Trials",
    "Verification",
    "WordStream",
    "adaptive_norm",
    "audio_blocks",
    "decode",
    "decode_audio",
    "departure",
    "draw_det",
    "equal_error_rate",
    "given_vocabulary",
    "grad_cam",
    "joined",
    "learn_normalization",
    "learn_vocabulary",
    "make_trials",
    "min_detection_cost",
    "operating_curve",
    "read_clips",
    "read_trials",
    "resample",
    "speakers_of",
    "spoken",
    "transcribe_long",
    "write_subtitles",
]
