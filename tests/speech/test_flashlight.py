"""torchaudio's beam search finds what ours finds, where it is installed, and says so where not."""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from resbackbones.errors import InputError
from resbackbones.ngrams import BackoffModel
from resbackbones.speech.decode import BeamSearch, FlashlightSearch

CHARACTERS = ["_", " ", "a", "b"]
WORDS = BackoffModel.fit([s.split() for s in ("a ab", "ab a b", "b ab ab")], 2)
TOKENS = BackoffModel.fit(["ab ab", "a b", "ba"], 3)
installed = pytest.mark.skipif(
    importlib.util.find_spec("flashlight") is None, reason="needs the extra flashlight"
)


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torchaudio.models.decoder"
    for module in (f"{name}._ctc_decoder", "flashlight"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(sys.modules.get(name, object), "ctc_decoder", raising=False)
    with pytest.raises(InputError, match=r"install 'resbackbones\[flashlight\]' under Python 3.11"):
        FlashlightSearch(CHARACTERS)


@installed
@pytest.mark.parametrize(
    "known",
    [
        {},
        {"lm": TOKENS, "lm_weight": 0.7},
        {"lexicon": ["ab", "b"]},
        {"lexicon": ["ab", "b", "a"], "lm": WORDS, "length_bonus": 0.5},
    ],
)
def test_it_finds_what_ours_finds(known: dict[str, Any]) -> None:
    """Scores are nearly the same: flashlight also counts paths with separators at the edges."""
    generator = torch.Generator().manual_seed(0)
    texts = ["ab b", "b", "ab ab ab", "b ab", "ab"]
    logits = torch.randn(len(texts), 40, 4, generator=generator) / 2
    logits[..., 1] -= 8  # none but those between words
    for item, text in enumerate(texts):
        path = [part for c in text for part in (CHARACTERS.index(c), 0)]
        logits[item, range(len(path)), path] += torch.tensor([4.0, 12, 4, 4])[path]
        logits[item, len(path) :, 0] += 8
    lengths = torch.tensor([2 * len(text) + 1 for text in texts])
    unit = {"lm_unit": "token"} if known.get("lm") is TOKENS else {}
    theirs = FlashlightSearch(CHARACTERS, 100, **known).n_best(logits, lengths, 3)
    ours = BeamSearch(CHARACTERS, 100, **known, **unit).n_best(logits, lengths, 30)
    for text, found, wanted in zip(texts, theirs, ours, strict=True):
        assert found[0].text(CHARACTERS) == wanted[0].text(CHARACTERS) == text
        scores = {h.tokens: h for h in wanted}
        for h in (h for h in found if h.tokens in scores):
            assert h.score == pytest.approx(scores[h.tokens].score, abs=0.1)
            assert (h.starts, h.ends) == (scores[h.tokens].starts, scores[h.tokens].ends)
            assert h.confidences == pytest.approx(scores[h.tokens].confidences)
            assert h.log_prob <= scores[h.tokens].log_prob + 1e-4  # one path of all


@installed
def test_kenlm_reads_our_files_and_tells_the_same(tmp_path: Path) -> None:
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    texts = ["a dog", "the cat", "a cat ran to the dog"]
    for order in (2, 3, 4):
        model = BackoffModel.fit(texts, order)
        model.write(tmp_path / "model.arpa")
        words = ["<space>" if word == " " else word for word in model.vocabulary]
        kenlm = KenLM(str(tmp_path / "model.arpa"), Dictionary(words))
        for text in (*texts, "", "a", "got a cart", "xx a"):
            state, total = kenlm.start(False), 0.0
            for character in text:
                number = model.ids.get(character, model.unknown)
                state, told = kenlm.score(state, number)
                total += told
            assert float(model.log_probs_of([text], end=False)) == pytest.approx(
                total * math.log(10), rel=1e-5
            )
            total += kenlm.finish(state)[1]
            assert float(model.log_probs_of([text])) == pytest.approx(
                total * math.log(10), rel=1e-5
            )


@installed
def test_there_may_be_no_frames_and_no_items() -> None:
    for lexicon in (None, ["ab"]):
        search = FlashlightSearch(CHARACTERS, 5, lexicon=lexicon)
        assert search(torch.zeros(1, 0, 4), torch.tensor([0]))[0].tokens == ()
        assert search(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64)) == []


@installed
def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="flashlight needs a token between words, ' ' or '▁'"):
        FlashlightSearch(["_", "a"])
    with pytest.raises(InputError, match="length_bonus=1 is per word of a lexicon"):
        FlashlightSearch(CHARACTERS, length_bonus=1)
    with pytest.raises(InputError, match="the lexicon's word 'ax' has 'x', which is no token of"):
        FlashlightSearch(CHARACTERS, lexicon=["ax"])
    with pytest.raises(InputError, match="the lexicon has no word"):
        FlashlightSearch(CHARACTERS, lexicon=[])
    with pytest.raises(InputError, match="is no file; give the path of a language model"):
        FlashlightSearch(CHARACTERS, lm=tmp_path / "none.bin")
    with pytest.raises(InputError, match="width=0 is no number of prefixes"):
        FlashlightSearch(CHARACTERS, 0)
    with pytest.raises(InputError, match="logits are of 3 tokens, but the vocabulary has 4"):
        FlashlightSearch(CHARACTERS)(torch.randn(1, 3, 3), torch.tensor([3]))
