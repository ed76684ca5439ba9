"""One net per wing leaves Python whole: captured once, for every batch and length, masks included.

torch's guards hold a captured program to sizes at which no feature shrinks to one position: longer
than the net's total stride. An ONNX file has no such limit.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import resbackbones as rb
from resbackbones.speech import (
    ResidualFeatureExtractor,
    ResidualForAudioClassification,
    ResidualForAudioXVector,
    ResidualForCTC,
)
from resbackbones.text import (
    Ngrams,
    ResidualForSequenceClassification,
    TfidfClassifier,
    train_tokenizer,
)
from resbackbones.vision import ResidualForImageClassification
from tests.speech.test_recognition import SQUEEZED


def mask(batch: int, size: int) -> Tensor:
    lengths = torch.linspace(size, 1, batch).long()
    return (torch.arange(size) < lengths[:, None]).long()


SMALL = rb.BackboneSpec((rb.Stage(8, 1), rb.Stage(16, 1, 2)))
# With fewer blocks or channels than published, which takes less time.
BC_RESNET = replace(
    rb.SPECS["bc_resnet1"],
    stages=tuple(replace(stage, blocks=1) for stage in rb.SPECS["bc_resnet1"].stages),
)
ECAPA = replace(
    rb.SPECS["ecapa512"],
    stages=tuple(replace(stage, channels=32) for stage in rb.SPECS["ecapa512"].stages),
    stem=rb.Stem(32, 5),
    tail=(rb.Layer(48, 1),),
)


def vision(spec: str | rb.BackboneSpec = "resnet18", **head: Any) -> tuple[Any, Any, Any]:
    model = ResidualForImageClassification.build(spec, num_labels=3, head=head)
    sizes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    return model, lambda batch, size: {"pixel_values": torch.randn(batch, 3, size, size + 5)}, sizes


def speech(spec: str | rb.BackboneSpec = "matchboxnet_3x1") -> tuple[Any, Any, Any]:
    model = ResidualForAudioClassification.build(spec, num_labels=3)

    def example(batch: int, size: int) -> dict[str, Tensor]:
        features = torch.randn(batch, model.processor.feature_size, size)
        return {"input_features": features, "attention_mask": mask(batch, size)}

    sizes = {"input_features": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}}
    return model, example, sizes | {"attention_mask": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}


def recogniser() -> tuple[Any, Any, Any]:
    _, example, sizes = speech()
    return ResidualForCTC.build(SQUEEZED, vocabulary=list("ab "), in_channels=64), example, sizes


def speakers(spec: str | rb.BackboneSpec, **head: Any) -> tuple[Any, Any, Any]:
    changes = {"in_channels": 1} if isinstance(spec, rb.BackboneSpec) else {}
    _, example, sizes = speech()
    model = ResidualForAudioXVector.build(
        spec,
        num_labels=3,
        head=head,
        processor=ResidualFeatureExtractor(feature_size=64),
        **changes,
    )
    return model, example, sizes


def text(
    spec: str, ngrams: Ngrams | None = None, tfidf: bool = False, **changes: Any
) -> tuple[Any, Any, Any]:
    texts = ["who is it", "where is it"]
    tokenizer = train_tokenizer(texts, "word", ngrams=ngrams)
    if tfidf:
        tokenizer.tfidf = TfidfClassifier.fit(texts, torch.arange(2), 3)
    head = changes.pop("head", {"pooling": "mean_max"})
    model = ResidualForSequenceClassification.build(
        spec, num_labels=3, processor=tokenizer, head=head, **changes
    )

    def example(batch: int, size: int) -> dict[str, Tensor]:
        tokens = torch.randint(len(tokenizer), (batch, size))
        inputs = {"input_ids": tokens, "attention_mask": mask(batch, size)}
        if ngrams is not None:
            rows = torch.randint(ngrams.buckets, (batch, size, ngrams.most))
            inputs["ngram_ids"] = rows * inputs["attention_mask"][:, :, None]
        if tfidf:
            inputs["tfidf_logits"] = torch.randn(batch, 3)
        return inputs

    sizes: dict[str, dict[int, Any]] = {
        name: {0: Dim.DYNAMIC} if name == "tfidf_logits" else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
        for name in example(1, 1)
    }
    return model, example, sizes


CASES = {
    "resnet18": vision,
    "cosine": lambda: vision(SMALL, kind="cosine", pooling="mean_max"),
    "matchboxnet_3x1": speech,
    "bc_resnet": lambda: speech(BC_RESNET),
    "res8_narrow": lambda: speech("res8_narrow"),
    "ecapa": lambda: speech(ECAPA),
    "statistics": lambda: speakers(SMALL),
    "attentive statistics": lambda: speakers(
        "matchboxnet_3x1", pooling="attentive_statistics", norm="batch"
    ),
    "recogniser": recogniser,
    "dpcnn": lambda: text("dpcnn"),
    "word_resnet6": lambda: text("word_resnet6", Ngrams(buckets=50, most=4)),
    "word_resnet6, TF-IDF": lambda: text("word_resnet6", tfidf=True),
    "vdcnn9, k-max": lambda: text("vdcnn9", downsample="k_max", skip="none"),
    "k_max": lambda: text("dpcnn", head={"pooling": "k_max"}),
    "attentive": lambda: text("dpcnn", head={"pooling": "attentive"}),
}
SIZES = [(3, 151), (1, 90), (4, 97)]  # odd and even, a batch of one


@pytest.mark.parametrize("name", CASES)
def test_export(name: str) -> None:
    torch.manual_seed(0)
    model, example, sizes = CASES[name]()
    model.eval()
    program = torch.export.export(model, (), example(2, 120), dynamic_shapes=sizes).module()
    for batch, size in SIZES:
        inputs = example(batch, size)
        with torch.no_grad():
            torch.testing.assert_close(program(**inputs).logits, model(**inputs).logits)


# torch.onnx refuses the stable sort of k-max pooling.
@pytest.mark.parametrize("name", [name for name in CASES if "k-max" not in name])
def test_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, example, sizes = CASES[name]()
    model.eval()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of onnxscript and of torch's own converter
        torch.onnx.export(
            model, (), path, kwargs=example(2, 120), dynamic_shapes=sizes, dynamo=True,
            external_data=False, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path)
    for batch, size in [*SIZES, (2, 7), (1, 1)]:
        inputs = example(batch, size)
        logits, *_ = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(logits), model(**inputs).logits, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("name", CASES)
def test_compiles_without_a_graph_break(name: str) -> None:
    torch.manual_seed(0)
    model, example, _ = CASES[name]()
    model.eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for batch, size in SIZES:
        inputs = example(batch, size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
