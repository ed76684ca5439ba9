"""Language models: a causal backbone over tokens, and which token comes next.

`generate` is transformers' own. What it keeps from token to token is the core's memory: of every
convolution the positions that it will read again, which are as many after a million tokens as after
a thousand.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import AutoTokenizer, Cache, GenerationMixin, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from resbackbones.core.backbone import Backbone, modes_kept
from resbackbones.core.context import Context
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.data import Items
from resbackbones.errors import InputError
from resbackbones.ngrams import KneserNey
from resbackbones.pretrained import ResidualPreTrainedModel
from resbackbones.text.chunked import chunked_sum
from resbackbones.text.metrics import IGNORED, Perplexity, told
from resbackbones.text.models import Embedding, ResidualTextConfig, TokenEmbedding
from resbackbones.text.tokenizer import NgramTokenizer

LARGEST = 2**24  # logits held at once where only the loss is asked for
STEPS = 20  # of the shares that are tried
FEW = 100  # tokens that are too few to choose a share by


class Memory(Cache):
    """What a causal net remembers of the tokens so far, of a size that their number does not
    change; transformers calls it the cache.

    Attributes:
        net: whose it is.
        length: tokens so far, padding before them included.
        kept: of each convolution the positions that it will read again.
        tokens: the last ones, `(B, order - 1)`, where the model has n-grams.
    """

    def __init__(self, net: Backbone) -> None:
        super().__init__(layers=[])
        self.net = net
        self.length = 0
        self.kept: dict[nn.Module, tuple[Tensor, int]] = {}
        self.tokens: Tensor | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0

    @property
    def is_linear(self) -> list[bool]:
        # `generate` hands only new tokens to what says it has a length.
        return [False]

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def batch_size(self) -> int:
        """Texts; -1 before the first token."""
        return next((kept.shape[0] for kept, _ in self.kept.values()), -1)

    def reset(self) -> None:
        """Forget everything."""
        self.length, self.kept, self.tokens = 0, {}, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these of the texts, `(B,)`, as beam search does."""
        self._change(lambda kept: kept.index_select(0, beam_idx.to(kept.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Likewise."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each text so many times."""
        self._change(lambda kept: kept.repeat_interleave(repeats, 0))

    def _change(self, changed: Callable[[Tensor], Tensor]) -> None:
        """Whatever is remembered of a text stands in the first axis."""
        self.kept = {module: (changed(kept), skip) for module, (kept, skip) in self.kept.items()}
        self.tokens = None if self.tokens is None else changed(self.tokens)

    def crop(self, tokens_to_remove: int) -> None:
        raise InputError(
            "a convolution's memory cannot go back: what it has forgotten is gone; copy it with "
            "copy.deepcopy before the tokens that may have to be undone"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Memory":
        """A copy of what is remembered; the net stays one."""
        other = Memory(self.net)
        other.length, other.kept, other.tokens = self.length, self.kept, self.tokens
        other._change(Tensor.clone)
        return other


@dataclass
class LanguageModelOutput(CausalLMOutputWithPast):
    """What a language model makes of tokens.

    Attributes:
        loss, logits: by the net and, where it has some, by the n-grams.
        net_loss: the net's alone, where there are n-grams and labels.
        cache: what it remembers.
    """

    net_loss: Tensor | None = None


class ResidualForCausalLM(ResidualPreTrainedModel, GenerationMixin):
    """A residual language model over characters, bytes, words or byte-pair pieces.

    >>> from resbackbones.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["who is it", "what is it"], "character")
    >>> model = ResidualForCausalLM.build("tcn_char", processor=tokenizer).eval()
    >>> tuple(model.generate(**tokenizer("who", return_tensors="pt"), max_new_tokens=5).shape)
    (1, 9)
    """

    config_class = ResidualTextConfig
    config: ResidualTextConfig
    main_input_name = "input_ids"
    processor_class = AutoTokenizer
    processor_file = "tokenizer_config.json"
    _tied_weights_keys = {"head.weight": "embedding.tokens.weight"}  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["ngrams.shares", "ngrams.rests"]  # noqa: RUF012

    def __init__(self, config: ResidualTextConfig) -> None:
        super().__init__(config)
        spec = config.backbone_spec
        self.backbone = Backbone(spec)
        check_net(self.backbone)
        self.embedding = TokenEmbedding(config, spec.in_channels)
        tied = config.tie_word_embeddings
        if tied and self.backbone.channels[-1] != spec.in_channels:
            raise InputError(
                f"a tied embedding is as wide as the net's last feature, but in_channels is "
                f"{spec.in_channels} and that has {self.backbone.channels[-1]}; make them equal, "
                "or say tied=False"
            )
        self.head = nn.Linear(self.backbone.channels[-1], config.vocab_size, bias=not tied)
        self.ngrams: KneserNey | None = None
        if config.kneser_ney:
            self.add_ngrams(KneserNey(config.vocab_size, config.kneser_ney))
        self.post_init()

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        *,
        processor: PreTrainedTokenizerFast,
        tied: bool | None = None,
        embedding: Embedding | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained language model.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec: causal, without strides, of a finite
                reach. Its `in_channels` is the width of the embedding.
            processor: the tokenizer, as `train_tokenizer` makes it, or another fast one.
            tied: whether the head is the embedding's own table (Press & Wolf 2017), which takes a
                last feature as wide as it is; None does so where it is.
            embedding: dropout of the embedding; none by default.
            spec_changes: fields of the spec to replace.

        Raises:
            InputError: a net that looks ahead, strides, or looks at all of the past, a tied head of
                another width, an unknown name or field, or a tokenizer that gives n-grams.
        """
        spec = resolve(name_or_spec, **spec_changes)
        if tied is None:
            with torch.device("meta"):
                tied = Backbone(spec).channels[-1] == spec.in_channels
        config = ResidualTextConfig(
            spec=spec.to_dict(),
            vocab_size=len(processor),
            tie_word_embeddings=tied,
            embedding=dataclasses.asdict(embedding or Embedding()),
            pad_token_id=processor.pad_token_id,
            bos_token_id=processor.bos_token_id,
            eos_token_id=processor.eos_token_id,
        )
        model = cls(config)
        model.check_processor(processor)
        model.processor = processor
        return model

    def check_processor(self, processor: PreTrainedTokenizerFast) -> None:
        if isinstance(processor, NgramTokenizer) or processor.pad_token_id is None:
            raise InputError(
                "a language model reads tokens alone and needs a padding token; train a tokenizer "
                "without ngrams=, with one"
            )
        if len(processor) != self.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(processor)} tokens, but the model was built for "
                f"{self.config.vocab_size}; use the tokenizer that it was trained with"
            )

    def add_ngrams(self, ngrams: KneserNey, share: float = 0.5) -> None:
        """Answer by counted n-grams of the same tokens too, but for training.

        Args:
            ngrams: fitted to the training tokens; the model has a copy of its own.
            share: theirs in the probability of a token, until `choose_ngram_share` finds others.

        Raises:
            InputError: n-grams of another number of tokens, or no share from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise InputError(f"share={share} is none; give a number from 0 to 1")
        if ngrams.vocab_size != self.config.vocab_size:
            raise InputError(
                f"the n-grams are of {ngrams.vocab_size} tokens and the model of "
                f"{self.config.vocab_size}; fit them to what the model's tokenizer gives"
            )
        self.config.kneser_ney = ngrams.sizes
        self.ngrams = copy.deepcopy(ngrams).to(self.device)
        # The more tokens before this one they have met, the more they know of it.
        shares = torch.full((ngrams.order,), share, device=self.device)
        self.ngram_share: Tensor
        self.register_buffer("ngram_share", shares)

    @torch.no_grad()
    def choose_ngram_share(self, items: Items, batch_size: int = 16) -> None:
        """Give the n-grams the share in the answers that makes these items, which nothing was
        trained on, likeliest: one for each number of tokens before that they have met.

        Raises:
            InputError: the model has none.
        """
        if self.ngrams is None:
            raise InputError("the model has no n-grams to give a share; add some with add_ngrams")
        tried = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64, device=self.device)
        sums = tried.new_zeros(self.ngrams.order, len(tried))
        counts = sums[:, 0].clone()
        rows_at_once = max(1, LARGEST // self.config.vocab_size)
        with modes_kept(self):
            self.eval()
            for start in range(0, len(items), batch_size):
                rows = range(start, min(start + batch_size, len(items)))
                batch = {k: v.to(self.device) for k, v in items.__getitems__(rows).items()}
                labels = batch.pop("labels")[:, 1:]
                feature, history = self._feature(batch["input_ids"], batch["attention_mask"])
                assert history is not None
                told = labels != IGNORED
                inputs = feature[:, :-1][told], history[:, :-1][told], labels[told]
                for part in zip(*(each.split(rows_at_once) for each in inputs), strict=True):
                    features, before, wanted = part
                    logits = self.head(features).float()
                    net = functional.cross_entropy(logits, wanted, reduction="none").neg().exp()
                    counted, known = self.ngrams(before, wanted[:, None])
                    together = net.double()[:, None].lerp(counted.double(), tried).log()
                    sums.index_add_(0, known, together)
                    counts += known.bincount(minlength=len(counts))
        sums[counts < FEW] = sums.sum(0)
        self.ngram_share.copy_(tried[sums.argmax(1)])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> LanguageModelOutput:
        """Tell the next token at every position.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, S)`, 1 where a token is real; with a cache S counts what it has
                read too. Texts that are continued are padded on the left.
            cache: what the model remembers, from an output of its own; it reads on from there. The
                backbone has no gradient then.
            use_cache: whether to begin a cache where none is given.
            labels: `(B, T)`, the tokens themselves, or -100 where what comes is not to be told. The
                loss of a position is that of the token after it.
            logits_to_keep: how many of the last positions get logits; 0 means all.
            return_dict: there for `generate`; an output is always an object.

        Returns:
            `.loss` where labels are given, the mean over the tokens to be told, whose logits are
            never held at once; else `.logits` `(B, T, V)`. `.cache` where there is one. Where the
            model has n-grams, and is not in training, both are theirs too.

        Raises:
            InputError: ids that the embedding does not have, a mask of another size, padding
                within a text or behind one that is to go on, or another model's cache.
        """
        if cache is None and use_cache:
            cache = Memory(self.backbone)
        feature, history = self._feature(input_ids, attention_mask, cache)
        if labels is not None:
            loss, net_loss = self._losses(feature, history, labels)
            return LanguageModelOutput(loss=loss, net_loss=net_loss, cache=cache)
        if logits_to_keep:
            feature = feature[:, -logits_to_keep:]
            history = history if history is None else history[:, -logits_to_keep:]
        logits = self.head(feature)
        if history is not None:
            every = torch.arange(self.config.vocab_size, device=logits.device)
            logits = self._together(logits.float().log_softmax(-1), history, every)
        return LanguageModelOutput(logits=logits, cache=cache)

    def _feature(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the head reads at each token, `(B, T, C)`, and what the n-grams read there, where
        they are asked."""
        context = self._context(input_ids, attention_mask, cache)
        # What is remembered must not hold on to how it was computed.
        with torch.set_grad_enabled(cache is None and torch.is_grad_enabled()):
            x = self.embedding(input_ids)
            (feature,) = self.backbone.features(x, context, [len(self.backbone.stages) - 1])
        history = None
        if self.ngrams is not None and not self.training:
            tokens = input_ids
            if attention_mask is not None:
                tokens = tokens.masked_fill(attention_mask[:, -tokens.shape[1] :] == 0, -1)
            before = cache.tokens if isinstance(cache, Memory) else None
            history = self.ngrams.history(tokens, before)
            if isinstance(cache, Memory):
                cache.tokens = history[:, -1]
        if isinstance(cache, Memory):
            cache.length += input_ids.shape[1]
        return feature.transpose(1, 2), history

    def _together(self, net: Tensor, history: Tensor, candidates: Tensor) -> Tensor:
        """Log-probabilities `(*, J)` of candidates by the net, whose own these are, and by the
        n-grams."""
        assert self.ngrams is not None
        counted, known = self.ngrams(history, candidates)
        share = self.ngram_share[known].unsqueeze(-1)
        return torch.logaddexp((1 - share).log() + net, share.log() + counted.log())

    def _context(self, tokens: Tensor, mask: Tensor | None, cache: Cache | None) -> Context:
        """What the net knows beside the tokens: where padding ends, and what came before."""
        kept = None
        before = 0
        if cache is not None:
            if not isinstance(cache, Memory) or cache.net is not self.backbone:
                what = "another model" if isinstance(cache, Memory) else type(cache).__name__
                raise InputError(
                    f"the cache is of {what}; give one that this very model returned, or none"
                )
            if cache.batch_size not in (-1, tokens.shape[0]):  # `len` would fix it in an export
                raise InputError(
                    f"the cache has read {cache.batch_size} texts, but there are {len(tokens)}; "
                    "go on with as many"
                )
            kept, before = cache.kept, cache.length
        batch, size = tokens.shape
        if mask is None or (before and size == 1):
            return Context(memory=kept)
        if mask.shape != (batch, before + size):
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}, but with {before} tokens before "
                f"these it has to be {(batch, before + size)}"
            )
        mask = mask.bool()
        real = mask[:, before:]
        if mask.device.type == "cpu" and not torch.compiler.is_compiling():
            if bool(real.all()):
                return Context(memory=kept)
            begun = mask.cumsum(1) > 0
            if bool((begun & ~mask).any()) and (cache is not None or _holes(mask)):
                raise InputError(
                    "attention_mask has padding within or behind a text, which a model that reads "
                    "on would take for its end; pad all texts on the left (padding_side='left')"
                )
        leading = (real.cumsum(1) == 0).sum(1)
        return Context(torch.full_like(leading, size), kept, leading)

    def _losses(
        self, feature: Tensor, history: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Mean cross-entropy of the tokens after each position, of features `(B, T, C)` and labels
        `(B, T)`: the answer's and, where that is another one, the net's."""
        found, wanted = feature[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        others = [wanted] if history is None else [wanted, history[:, :-1].flatten(0, 1)]

        def summed(found: Tensor, wanted: Tensor, *history: Tensor) -> Tensor:
            logits = self.head(found).float()
            each = functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="none")
            if not history:
                return each.sum(0, keepdim=True)
            candidates = wanted.clamp(min=0)[:, None]
            together = -self._together(-each[:, None], history[0], candidates)[:, 0]
            return torch.stack([together.masked_fill(wanted == IGNORED, 0), each], 1).sum(0)

        rows = max(1, LARGEST // self.config.vocab_size)
        total = chunked_sum(summed, rows, others, found, self.head.parameters())
        total = total / (wanted != IGNORED).sum().clamp(min=1)
        return total[0], None if history is None else total[1].detach()

    def weight(self, batch: Mapping[str, Any]) -> Tensor:
        """What the loss is a mean over: the tokens to be told."""
        return told(batch)

    def metric(self) -> Perplexity:
        """What this model is evaluated by."""
        return Perplexity()

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """transformers' `generate`.

        Raises:
            InputError: `max_new_tokens` below 1.
        """
        if (most := options.get("max_new_tokens")) is not None and most < 1:
            raise InputError(f"max_new_tokens={most} asks for no token; give 1 or more")
        with parametrize.cached():  # weights with a norm are made once, not for every token
            return super().generate(*arguments, **options)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # it would be one of keys and values

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *further: Any
    ) -> Any:
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = Memory(self.backbone)
            return None
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *further
        )


def check_net(net: Backbone) -> None:
    """Refuse a net that is no language model's.

    Raises:
        InputError: say why.
    """
    why = ""
    if net.spec.dims != 1 or not net.spec.causal:
        why = "looks at tokens to come; build it with dims=1 and causal=True"
    elif net.strides[-1] != (1,):
        why = "has strides, so that some tokens would not be told; take them out"
    elif net.spec.norm == "batch":
        why = "has batch norms, which in training see tokens to come; build it with norm='layer'"
    if why:
        raise InputError(f"a language model tells a token from those before it, but this net {why}")


def _holes(mask: Tensor) -> bool:
    """Whether a text has padding within, or some have it before and some behind."""
    starts, ends = mask[:, 1:] & ~mask[:, :-1], mask[:, :-1] & ~mask[:, 1:]
    return bool((mask[:, 0] + starts.sum(1) > 1).any() or (starts.any() and ends.any()))
