r"""Train a residual language model on any text, and have it write.

    python -m tasks.text.model_language --data ../shared/data/tinyshakespeare \
        --name "Tiny Shakespeare" --all-rows --prompt "ROMEO:" --record

reached 1.429 nats per character (the n-grams alone 1.517, the net alone 1.524) in four minutes of
training on two cores of an EPYC with bfloat16, 22 on one without. GPT-2 of as many parameters, on
the same characters, reached 1.655 (--peer gpt2 --dropout 0 --learning-rate 1e-3 --length 128
--batch-size 16, the best of four settings that were tried).

Data are a text file, a folder of them, or any data set with a column of texts, larger than memory
too. A short text is modelled by its characters, a long one by byte pairs (--tokenizer).

Every token is told by the net and by counted n-grams (interpolated Kneser-Ney), which on a few
million characters are often the better of the two, each with the share that does best on the end of
the training text, which is held out; --no-kneser-ney leaves the net alone. What is measured is the
mean surprise at every token but the first, all that stands before it being read, in nats, in bits
and as perplexity, on the test split, else on the validation split, else on the end of the text.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from resbackbones.data import NoTarget, Source
from resbackbones.text import ResidualForCausalLM as Model
from resbackbones.text import TokenWindows, tokenize
from resbackbones.train.options import Arguments, Kind
from tasks._fields import Recipe, Spec
from tasks._recipe import Task
from tasks._using import run
from tasks.text._language import experiment, read, refuse, texts_of, windows, write_all
from tasks.text._pretrained import Pretrained


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """The fields of this recipe."""

    spec: Spec = "char_gcnn12"
    """A causal net in resbackbones.SPECS, as char_gcnn12, bytenet, tcn or gcnn14."""
    tokenizer: Literal["auto", "character", "byte", "bpe", "unigram", "word"] = "auto"
    """What a token is; "auto": a character where the training text has up to ten million of them,
    else a byte pair."""
    vocab_size: int | None = None
    """Different tokens at most (as many as the kind of token usually has)."""
    length: int = 512
    """Tokens that a window of training tells."""
    context: int = 0
    """Tokens before each window of training that are read and not told; in evaluation all are that
    the net can reach."""
    kneser_ney: bool = True
    """Answer by the net and by counted n-grams (--no-kneser-ney: by the net alone)."""
    all_rows: bool = False
    """Train on the end of the training text too, which otherwise chooses the weights and the shares
    of the n-grams; they then have half a share."""
    prompt: str = ""
    """Write on from this text, once trained, or with a model behind --predict."""
    new_tokens: int = 500
    """How many tokens to write."""
    temperature: float = 0.8
    """How bold to write: below 1 likely tokens are likelier still, at 0 the likeliest is taken."""
    dropout: float = 0.1
    """Inside the net's branches."""
    embedding_dropout: float = 0.0
    """On the numbers of the token vectors."""
    peer: Literal["none", "gpt2"] = "none"
    """Train GPT-2 with as many parameters instead of the net, to compare."""
    epochs: int = 4
    most_tokens: int = 6_000_000
    """Tokens that a training reads about: of a long text it takes fewer epochs than --epochs, but
    one at least (0: as many as it says)."""
    batch_size: int = 4
    evaluation_batch_size: int = 8
    optimizer: Kind = "adamw"
    optimizer_arguments: Arguments = field(
        default_factory=lambda: {"fused": True, "betas": (0.9, 0.99)}
    )
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    metric: str = "loss"
    higher_is_better: bool = False
    folds: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self)

    @property
    def asks(self) -> bool:
        return bool(self.prompt)

    @property
    def arm(self) -> str:
        saved, name = Pretrained.find(self.weights), str(self.spec)
        own = self.peer if saved is None else saved.name
        return super().arm.replace(name, name if own == "none" else own, 1)

    @property
    def variant(self) -> str:
        said = "" if self.tokenizer == "auto" else f"-{self.tokenizer}"
        said += "-pretrained" * (self.weights is not None)
        said += "-kneser-ney" * (self.kneser_ney and self.peer == "none")
        return super().variant + said + "-all-rows" * self.all_rows

    def open_alone(self, kind: str, target: Any) -> Source:
        found = texts_of(self)
        return found.get("test") or found.get("validation") or found["train"]


def items(config: Config, source: Source, model: Model) -> TokenWindows:
    return windows(tokenize(source, model.processor), model)


USE = """
import transformers
import resbackbones.text

write = transformers.pipeline("text-generation", model="{model}")
print(write("a text of yours", max_new_tokens=100)[0]["generated_text"])
"""
GPU = {"batch_size": 64, "most_tokens": 200_000_000, "epochs": 40, "dropout": 0.3}
TASK = Task(
    *("model_language", "text", Config, experiment, items, (Model,), read, USE, GPU),
    figures=("loss", "bits", "perplexity", "net_loss"),
    target=lambda model: NoTarget(),
    answer=None,
    predicted=write_all,
    by_model=True,
    higher_is_better=False,
)

if __name__ == "__main__":
    run(TASK)
