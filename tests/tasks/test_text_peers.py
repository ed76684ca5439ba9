"""The published nets of texts that ours are compared with have the published sizes, mind padding,
and learn in the house's loop."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import resbackbones as rb
from resbackbones.data import open_dataset
from resbackbones.text import TextItems, train_tokenizer
from resbackbones.train import Options
from tasks.text._peers import LARGEST, READ, CharCNN, KimCNN

LABELS = ("a", "b", "c", "d")


def test_kim_has_the_published_size() -> None:
    """Kim 2014, section 3.1: filters of 3, 4 and 5 words of 300 numbers, 100 of each."""
    windows = 100 * 300 * (3 + 4 + 5) + 3 * 100
    classes = 300 * 4 + 4
    with torch.device("meta"):
        assert rb.count_parameters(KimCNN(20_000, LABELS)) == 20_000 * 300 + windows + classes
    assert windows + classes == 361_504


def test_char_has_the_published_size() -> None:
    """Zhang et al. 2015, tables 1 and 2: 256 maps of kernels 7, 7, 3, 3, 3, 3, then
    (1014 - 96) / 27 positions of them to 1024 and 1024."""
    convolutions = (70 * 7 + 256 * 7 + 4 * 256 * 3) * 256 + 6 * 256
    dense = 34 * 256 * 1024 + 1024 * 1024 + 2 * 1024
    classes = 1024 * 4 + 4
    with torch.device("meta"):
        net = CharCNN(LABELS)
    assert (READ - 96) // 27 == 34
    assert rb.count_parameters(net) == convolutions + dense + classes == 11_339_780


PEERS = {
    "Kim": (lambda: KimCNN(9, LABELS, 16, 8), 9),
    "character": (lambda: CharCNN(LABELS, 6, 8, 16), 9),
}


@pytest.mark.parametrize("name", PEERS)
def test_batch_is_single(name: str) -> None:
    torch.manual_seed(0)
    make, size = PEERS[name]
    net = make().eval()
    for module in net.modules():  # as drawn, a net of small weights would hide much
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.normal_(module.bias, std=0.5)

    @settings(max_examples=8)
    @given(
        lengths=st.lists(st.one_of(st.integers(1, 12), st.integers(1000, 1030)), min_size=1,
                         max_size=3),
        extra=st.integers(0, 5), seed=st.integers(0, 99),
    )  # fmt: skip
    def check(lengths: list[int], extra: int, seed: int) -> None:
        torch.manual_seed(seed)
        batch = torch.randint(size, (len(lengths), max(lengths) + extra))  # in the padding too
        mask = (torch.arange(batch.shape[1]) < torch.tensor(lengths)[:, None]).long()
        with torch.no_grad():
            together = net(batch, mask).logits
            for row, ids, length in zip(together, batch, lengths, strict=True):
                alone = net(ids[None, :length]).logits[0]
                assert (row - alone).abs().max() <= 1e-5 * max(1.0, alone.abs().max())

    check()


def test_char_reads_the_end_first_and_no_further_than_it_does() -> None:
    net = CharCNN(LABELS, 6, 8, 16).eval()
    seen: list[Tensor] = []
    net.layers.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    net(torch.tensor([[2, 3, 8, 1]]))
    net(torch.cat([torch.full((1, 9), 4), torch.full((1, READ), 5)], 1))
    short, long = seen
    assert short.shape == long.shape == (1, 6, READ)
    assert short[0].nonzero().tolist() == [[0, 2], [5, 1]]  # unknown and beginning are zeros
    assert long[0, 2].all() and long.sum() == READ


def test_no_class_of_kims_has_long_weights() -> None:
    torch.manual_seed(0)
    net = KimCNN(9, LABELS, 16, 8).eval()
    ids = torch.randint(9, (2, 7))
    with torch.no_grad():
        net.linear.weight.mul_(100)
        once = net(ids).logits
        net.linear.weight.mul_(100)
        torch.testing.assert_close(net(ids).logits, once)
        lengths = net.linear.weight.norm(dim=1, keepdim=True)
        net.linear.weight.div_(lengths).mul_(LARGEST)
        torch.testing.assert_close(net(ids).logits, once)


@pytest.mark.parametrize("kind", ["word", "character"])
def test_learns_in_the_houses_loop(kind: str) -> None:
    torch.manual_seed(0)
    rows = [60 * (("who " if row % 2 else "where ") + f"is {row} ? ") for row in range(16)]
    source = open_dataset(Dataset.from_dict({"text": rows, "label": [0, 1] * 8}))
    tokenizer = train_tokenizer(rows, kind, max_length=1014)
    items = TextItems(source, tokenizer)
    names = source.target.names
    net = (
        KimCNN(len(tokenizer), names, 16, 8)
        if kind == "word"
        else CharCNN(names, len(tokenizer) - 3, 16, 32)
    )
    for module in net.modules():  # the published spread is for many more maps
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    options = Options(epochs=10, batch_size=8, learning_rate=5e-3)
    result = rb.train.fit(net, items, items, options)
    assert result.metrics["accuracy"] == 1.0
