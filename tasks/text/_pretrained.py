"""What a text classifier takes over from a saved text model beside its weights."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import SPECS
from resbackbones.errors import InputError
from resbackbones.text import ResidualTextConfig


@dataclass(frozen=True)
class Pretrained:
    """A saved text model, without its weights.

    Attributes:
        name: of its net in `SPECS`; "net" where it is none of these.
    """

    folder: Path
    spec: BackboneSpec
    name: str

    @classmethod
    def find(cls, folder: Path | None) -> "Pretrained | None":
        """What lies there; None where no folder is named.

        Raises:
            InputError: no text model of ours.
        """
        if folder is None:
            return None
        told = folder / "config.json"
        try:
            fields = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
        except ValueError as error:
            raise InputError(
                f"cannot read {told} ({error}); save the model anew, or name another with --weights"
            ) from error
        if fields.get("model_type") != ResidualTextConfig.model_type:
            raise InputError(
                f"--weights {folder} is no text model; give a folder that model_language or a "
                "recipe of text classifiers saved (…/seed-0/model)"
            )
        spec = BackboneSpec.from_dict(fields["spec"])
        same = [n for n, s in SPECS.items() if replace(spec, dropout=s.dropout, skip=s.skip) == s]
        return cls(folder, spec, next(iter(same), "net"))

    @staticmethod
    def refuse(config: Any, names: Sequence[str]) -> None:
        """Refuse what a command line says beside --weights and the saved model says itself.

        Raises:
            InputError: name it.
        """
        for field in dataclasses.fields(config):
            if field.name in names and getattr(config, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise InputError(f"--{flag} is the saved model's to say; leave it or --weights out")

    def tokenizer(self, max_length: int) -> Any:
        """Its tokenizer, which from now on cuts texts at so many tokens."""
        found: Any = AutoTokenizer.from_pretrained(self.folder)
        found.model_max_length, found.tfidf = max_length, None
        return found
