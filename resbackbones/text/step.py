"""One token of a language model as a function, to be exported."""

import torch
from torch import Tensor, nn

from resbackbones.text.generation import Memory, ResidualForCausalLM


class Step(nn.Module):
    """A language model that is given a token, and all that it remembers, and gives both back.

    `torch.export` takes it, as it keeps nothing itself:

    >>> from resbackbones.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["who is it", "what is it"], "character")
    >>> model = ResidualForCausalLM.build("char_gcnn12", processor=tokenizer).eval()
    >>> step = Step(model)
    >>> token, states = torch.tensor([[4]]), step.begin(batch=1)
    >>> program = torch.export.export(step, (token, states)).module()
    >>> logits, states = program(token, states)
    >>> tuple(logits.shape), len(states)
    ((1, 11), 12)

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: ResidualForCausalLM) -> None:
        super().__init__()
        self.model = model
        memory = self._read(torch.zeros(1, 1, dtype=torch.int64, device=model.device))
        self._remembering = list(memory.kept)

    def begin(self, batch: int) -> list[Tensor]:
        """What is remembered of nothing: of each convolution its states `(batch, C, 1, reach)` and,
        where the model has n-grams, the tokens before, `(batch, order - 1)`."""
        token = torch.zeros(batch, 1, dtype=torch.int64, device=self.model.device)
        memory = self._read(token)
        states = [torch.zeros_like(kept) for kept, _ in memory.kept.values()]
        return states if memory.tokens is None else [*states, memory.tokens.fill_(-1)]

    def forward(self, input_ids: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Read one token of each text, `(B, 1)`: the logits of the next, `(B, V)`, and what is
        remembered then."""
        memory = Memory(self.model.backbone)
        inside = len(self._remembering)
        memory.kept = {m: (s, 0) for m, s in zip(self._remembering, states[:inside], strict=True)}
        memory.tokens = states[inside] if len(states) > inside else None
        logits = self.model(input_ids, cache=memory).logits[:, -1]
        found = [memory.kept[module][0] for module in self._remembering]
        return logits, found if memory.tokens is None else [*found, memory.tokens]

    @torch.no_grad()
    def _read(self, tokens: Tensor) -> Memory:
        memory = Memory(self.model.backbone)
        self.model(tokens, cache=memory)
        return memory
