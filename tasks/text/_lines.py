"""Texts to answer, line by line, and why they were answered so."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resbackbones.errors import InputError
from resbackbones.text import ResidualForSequenceClassification, attribute, attribution_page
from resbackbones.text.tokenizer import cuts


def read(path: Path, tokenizer: Any) -> list[str]:
    """The lines of a file, or of standard input where it is called "-", but for empty ones.

    Warns:
        UserWarning: lines longer than the tokenizer reads, as in training.
    """
    content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    found = tokenizer(lines, truncation=cuts(tokenizer)).encodings if lines else []
    if cut := sum(bool(line.overflowing) for line in found):
        warnings.warn(
            f"{cut} of {len(lines)} texts of {path} are longer than "
            f"{tokenizer.model_max_length} tokens and were cut, as in training; in Python "
            "model.predict(text, chunk=…) reads them to their end",
            UserWarning,
            stacklevel=2,
        )
    return lines


def explain(config: Any, model: ResidualForSequenceClassification, texts: Sequence[str]) -> None:
    """Which words spoke for the answers: on the page that `--explain` names and, where standard
    output is a terminal, there too.

    Raises:
        InputError: the page cannot be written.
    """
    where: Path | None = config.explain
    if where is None:
        return
    found = [attribute(model, text) for text in texts]
    try:
        where.write_text(attribution_page(found), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write the page {where} ({error.strerror}); name another with --explain"
        ) from error
    if sys.stdout.isatty():
        print("", *(f"{each.label}: {each.ansi()}" for each in found), sep="\n")
    print(f"\n{where} shows which words spoke for each answer")
