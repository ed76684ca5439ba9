"""espeak-ng as a program of its own: utterances in as JSON, samples out.

It is GPL, comes with the package espeakng-loader (the extra `wakeword`), and is loaded by nothing
but this program, which `tasks.speech._voices` starts when speech is to be made. A process begins
anew each time, as espeak-ng remembers what it said before: only so does the same list of utterances
give the same samples.
"""

import ctypes
import json
import sys
from typing import Any

RATE, PITCH, RANGE = 1, 3, 4  # numbers of espeak-ng's parameters
SYNCHRONOUS, DO_NOT_EXIT = 2, 0x8000
UTF8, PHONEMES = 0x1, 0x100  # of a text: its encoding, and that [[…]] are phonemes
CHARACTERS = 1  # what positions count


class Espeak:
    """The library, after it has read its voices. `rate` is what it speaks at, in Hz."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
        if self.rate <= 0:
            raise SystemExit(
                f"it cannot read its voices in {data}; a path longer than 160 letters is known to "
                "do this"
            )
        self.said = bytearray()

        @ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        def collect(samples: Any, count: int, events: Any) -> int:
            if samples and count > 0:
                self.said += ctypes.string_at(samples, 2 * count)
            return 0

        self._collect = collect  # the library keeps only an address: this object must live
        self.library.espeak_SetSynthCallback(collect)
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def voice(self, name: str) -> None:
        """Speak so from now on."""
        if self.library.espeak_SetVoiceByName(name.encode()):
            raise SystemExit(f"it has no voice {name!r}")

    def say(self, text: str, speed: int, pitch: int, range: int) -> bytes:
        """int16 samples."""
        for parameter, value in ((RATE, speed), (PITCH, pitch), (RANGE, range)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self.said.clear()
        spoken = text.encode() + b"\0"
        size, flags = ctypes.c_size_t(len(spoken)), UTF8 | PHONEMES
        if self.library.espeak_Synth(spoken, size, 0, CHARACTERS, 0, flags, None, None):
            raise SystemExit(f"it cannot say {text!r}")
        return bytes(self.said)

    def phonemes(self, text: str) -> str:
        """espeak-ng's names of the phonemes of a text, with _ between them."""
        place = ctypes.c_char_p(text.encode())
        found = []
        while place.value:  # a clause each time
            parts = self.library.espeak_TextToPhonemes(ctypes.byref(place), UTF8, ord("_") << 8)
            found.append((parts or b"").decode())
        return " ".join(found)


def main() -> None:
    """Read `{"seed", "utterances"}` or `{"phonemes"}`, and write the rate and then each utterance's
    count of samples and samples, or a list."""
    asked = json.load(sys.stdin)
    espeak = Espeak()
    if "phonemes" in asked:
        espeak.voice("en-us")
        json.dump([espeak.phonemes(text) for text in asked["phonemes"]], sys.stdout)
        return
    ctypes.CDLL(None).srand(asked["seed"])  # of breath and whisper
    out = sys.stdout.buffer
    out.write(espeak.rate.to_bytes(4, "little"))
    for voice, *said in asked["utterances"]:
        espeak.voice(voice)
        samples = espeak.say(*said)
        out.write((len(samples) // 2).to_bytes(4, "little") + samples)
        out.flush()


if __name__ == "__main__":
    main()
