"""What transformers would do to a residual net behind our back, and that it does not.

Each trap has a test that fails when its guard is taken away.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import safetensors
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

import resbackbones as rb
from resbackbones import pretrained
from resbackbones.core.heads import Head
from resbackbones.speech import ResidualForAudioClassification
from resbackbones.text import ResidualForSequenceClassification, train_tokenizer
from resbackbones.vision import ResidualForImageClassification, ResidualVisionConfig

LABELS = ("cat", "dog", "owl")


def small(**changes) -> ResidualForImageClassification:
    torch.manual_seed(0)
    return ResidualForImageClassification.build("resnet20", labels=LABELS, **changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_save_and_load_give_the_same_bits(saved: Path) -> None:
    model = small().eval()
    loaded = ResidualForImageClassification.from_pretrained(saved)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x).logits, loaded(x).logits)
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert loaded.processor.to_dict() == model.processor.to_dict()


def test_t1_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 3
    rows = [{"pixel_values": a, "labels": b} for a, b in zip(x, labels, strict=True)]

    def trained(**options) -> torch.Tensor:
        model = small(norm="layer")  # batch statistics would differ between the halves
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, learning_rate=1.0, optim="sgd", use_cpu=True,
            lr_scheduler_type="constant", max_grad_norm=0, report_to="none", disable_tqdm=True,
            save_strategy="no", **options,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=rows).train()
        return model.head.linear.weight.detach()

    whole = trained(per_device_train_batch_size=8)
    halves = trained(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    torch.testing.assert_close(halves, whole, rtol=1e-3, atol=1e-4)  # the trap is a factor of two


def test_t2_and_t7_names_that_transformers_reads() -> None:
    assert "resnet" not in ResidualVisionConfig.model_type
    assert "ForImageClassification" in ResidualForImageClassification.__name__


def test_t3_norms_stay_stock_modules() -> None:
    norms = [m for m in small().modules() if "BatchNorm" in type(m).__name__]
    assert norms and {type(m) for m in norms} == {torch.nn.BatchNorm2d}


def test_t4_initial_weights_are_the_specs() -> None:
    model = small()
    torch.manual_seed(0)
    bare = rb.backbone("resnet20")
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, model.backbone.state_dict()[name]), name


def test_t5_nothing_is_left_out_of_a_checkpoint() -> None:
    model = small(branch_scale="layerscale", attention="se", norm="group")
    assert set(dict(model.named_buffers())) <= set(model.state_dict())


def test_t5_a_missing_weight_is_refused(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    del weights["backbone.stem.0.convolutions.0.conv.weight"]
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(rb.InputError, match=r"lacks backbone\.stem\.0\.convolutions"):
        ResidualForImageClassification.from_pretrained(saved)


def test_t5_a_new_head_is_drawn(saved: Path) -> None:
    old = small()
    new = ResidualForImageClassification.from_pretrained(
        saved, num_labels=5, ignore_mismatched_sizes=True
    )
    name = "stem.0.convolutions.0.conv.weight"
    assert torch.equal(old.backbone.state_dict()[name], new.backbone.state_dict()[name])
    weight = new.head.linear.weight  # torch's own: uniform up to 1 / sqrt(64)
    assert weight.shape == (5, 64) and 0.9 / 8 < weight.abs().max() <= 1 / 8
    assert len(new.config.id2label) == 5


@pytest.mark.parametrize(
    ("spec", "changes"), [("tc_resnet8", {}), ("resnet20", {"in_channels": 1})]
)
def test_t6_no_front_end_inside_the_model(spec: str, changes: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ResidualForAudioClassification.build(spec, labels=LABELS, **changes).eval()
    assert not any("torchaudio" in type(m).__module__ for m in model.modules())
    # Constant tables outside the checkpoint would come back as whatever the memory held.
    assert set(dict(model.named_buffers())) <= set(model.state_dict())
    model.save_pretrained(tmp_path)
    loaded = ResidualForAudioClassification.from_pretrained(tmp_path)
    clips = [torch.randn(3000), torch.randn(1700)]
    batch, again = (m.processor(clips, return_tensors="pt") for m in (model, loaded))
    assert torch.equal(batch["input_features"], again["input_features"])
    assert torch.equal(batch["attention_mask"], again["attention_mask"])
    assert torch.equal(model(**batch).logits, loaded(**again).logits)


def test_a_configuration_is_plain_json(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert rb.BackboneSpec.from_dict(config["spec"]) == rb.SPECS["resnet20"]
    assert Head.of(config["head"]) == Head()
    with pytest.raises(rb.InputError, match="no spec"):
        _ = ResidualVisionConfig().backbone_spec


def test_a_misspelt_field_in_a_configuration_is_refused(saved: Path) -> None:
    path = saved / "config.json"
    path.write_text(path.read_text().replace('"shortcut"', '"shortcuts"'))
    with pytest.raises(rb.InputError, match="did you mean 'shortcut"):
        ResidualForImageClassification.from_pretrained(saved)


def test_a_checkpoint_of_another_shape_is_refused(saved: Path) -> None:
    with pytest.raises(rb.InputError, match=r"has shape \(3,\) where this model needs \(5,\)"):
        ResidualForImageClassification.from_pretrained(saved, num_labels=5)
    with pytest.raises(rb.InputError, match="lacks backbone"):
        ResidualForImageClassification.from_pretrained(
            saved, config=ResidualForImageClassification.build("resnet32", num_labels=3).config
        )
    with pytest.raises(rb.InputError, match="has backbone"):
        ResidualForImageClassification.from_pretrained(
            saved,
            config=ResidualForImageClassification.build(
                rb.BackboneSpec(rb.SPECS["resnet20"].stages[:2], stem=rb.Stem(16), shortcut="pad"),
                num_labels=3,
            ).config,
            ignore_mismatched_sizes=True,
        )


def test_what_is_no_model_is_refused(saved: Path, tmp_path: Path) -> None:
    load = ResidualForImageClassification.from_pretrained
    with pytest.raises(rb.InputError, match="there is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(rb.InputError, match="there is no folder"):
        load("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(rb.InputError, match=r"no config\.json"):
        load(tmp_path / "empty")
    shutil.move(saved / "model.safetensors", saved / "weights.safetensors.gone")
    with pytest.raises(rb.InputError, match="holds no weights"):
        load(saved)
    torch.save({}, saved / "pytorch_model.bin")
    with pytest.raises(rb.InputError, match=r"only a pickle \(pytorch_model\.bin\)"):
        load(saved)
    (saved / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(rb.InputError, match="cannot load"):
        load(saved)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(rb.InputError, match=re.escape(str(tmp_path / "file"))):
        small().save_pretrained(tmp_path / "file" / "model")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(rb.InputError, match=r"cannot write .* \(I/O error: No space left"):
        small().save_pretrained(tmp_path)


class Hub:
    """Stands in for the hub: keeps what is asked of it."""

    response: Any = SimpleNamespace(headers={}, request=None)

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        fault: Exception | None = None,
        card: str | None = "---\ntags: []\n---\n",
    ) -> None:
        self.fault, self.card = fault, card
        self.repos: list[tuple] = []
        self.branches: list[tuple] = []
        self.commits: list[dict] = []
        api = huggingface_hub.HfApi
        monkeypatch.setattr(api, "create_repo", lambda _, name, **options: self.repo(name, options))
        monkeypatch.setattr(api, "create_branch", lambda _, **o: self.branches.append(o["branch"]))
        monkeypatch.setattr(api, "create_commit", lambda _, **options: self.commits.append(options))
        monkeypatch.setattr(huggingface_hub.ModelCard, "load", lambda *_, **__: self.load())

    def load(self) -> huggingface_hub.ModelCard:
        if self.card is None:
            raise RemoteEntryNotFoundError("404", response=self.response)
        return huggingface_hub.ModelCard(self.card)

    def repo(self, name: str, options: dict) -> SimpleNamespace:
        if self.fault:
            raise self.fault
        self.repos.append((name, options["private"], options["token"]))
        return SimpleNamespace(repo_id=f"me/{name}")


def test_a_push_holds_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("not the model's")
    small().save_pretrained(
        tmp_path / "model", push_to_hub=True, private=True, token="t", commit_message="all",
        revision="next",
    )  # fmt: skip
    assert hub.repos == [("model", True, "t")] and hub.branches == ["next"]
    (commit,) = hub.commits
    assert {file.path_in_repo for file in commit["operations"]} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md",
    }  # fmt: skip
    told = {name: commit[name] for name in ("repo_id", "token", "revision", "commit_message")}
    assert told == {
        "repo_id": "me/model", "token": "t", "revision": "next", "commit_message": "all",
    }  # fmt: skip
    small().save_pretrained(tmp_path / "other", push_to_hub=True, is_main_process=False)
    small().save_pretrained(tmp_path / "other", repo_id="unused")
    assert len(hub.commits) == 1


def test_a_card_says_what_opens_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, card=None)
    model = small()
    model.add_model_tags("mine")
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="pets")
    card = huggingface_hub.ModelCard((tmp_path / "README.md").read_text())
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["resbackbones", "mine"]
    assert "after `import resbackbones.vision`" in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    model.save_pretrained(tmp_path / "me" / "pets")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert type(names["model"]) is type(model)
    # A card that is there stays, tags apart.
    Hub(monkeypatch, card="---\ntags: [old]\n---\nOurs.\n")
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="pets")
    card = huggingface_hub.ModelCard((tmp_path / "README.md").read_text())
    assert card.text.strip() == "Ours." and card.data.tags == ["old", "mine"]


def test_what_the_hub_answers_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    response: Any = SimpleNamespace(headers={}, request=None)
    forbidden = HfHubHTTPError("403 Forbidden: not yours", response=response)
    no_line = HfHubHTTPError.__bases__[0]("no route to host")  # as where there is no connection
    for number, fault in enumerate((forbidden, no_line, TimeoutError())):
        Hub(monkeypatch, fault)
        folder = tmp_path / str(number)
        with pytest.raises(
            rb.InputError, match=f"its answer: {str(fault) or 'TimeoutError'}"
        ) as caught:
            small().save_pretrained(folder, push_to_hub=True, repo_id="you/model")
        assert "for you/model" in str(caught.value) and "disk" not in str(caught.value)
        assert ResidualForImageClassification.from_pretrained(folder).processor is not None


def test_the_processor_is_loaded_from_where_the_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's cache holds them: two revisions whose processors differ."""
    repo = tmp_path / "cache" / "models--me--model"
    for name, commit, mean in (("main", "a" * 40, 0.1), ("next", "b" * 40, 0.2)):
        model = small()
        model.processor.image_mean = [mean] * 3
        model.save_pretrained(repo / "snapshots" / commit / "sub")
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / name).write_text(commit)
    load = ResidualForImageClassification.from_pretrained
    options = {"cache_dir": tmp_path / "cache", "subfolder": "sub", "local_files_only": True}
    for name, mean in (("main", 0.1), ("next", 0.2)):
        loaded = load("me/model", revision=name, token=False, force_download=False, **options)
        assert tuple(loaded.processor.image_mean) == (mean,) * 3


def test_a_subfolder_is_checked_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    speech = ResidualForAudioClassification.build("tc_resnet8", labels=LABELS)
    text = ResidualForSequenceClassification.build(
        "dpcnn", labels=LABELS, processor=train_tokenizer(["who is it", "what is it"], "word")
    )
    for model in (small(), speech, text):
        model.save_pretrained(tmp_path / "sub")
        loaded = type(model).from_pretrained(tmp_path, subfolder="sub")
        assert type(loaded.processor) is type(model.processor)
        with pytest.raises(rb.InputError, match=r"there is no folder .*/sup; give a subfolder"):
            type(model).from_pretrained(tmp_path, subfolder="sup")
        shutil.rmtree(tmp_path / "sub")
    (tmp_path / "sub").mkdir()
    with pytest.raises(rb.InputError, match=r"sub holds no config\.json"):
        type(model).from_pretrained(tmp_path, subfolder="sub")


def test_weights_that_are_no_numbers_are_refused(saved: Path) -> None:
    model = small()
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.head.linear.weight[1, 2] = value
            model.head.linear.bias[0] = value
        model.save_pretrained(saved)
        with pytest.raises(rb.InputError, match=r"infinity in head\.linear\.weight \(and 1 more\)"):
            ResidualForImageClassification.from_pretrained(saved)
    loaded = ResidualForImageClassification.from_pretrained(
        saved, num_labels=5, ignore_mismatched_sizes=True
    )  # the head, which was broken, is drawn anew
    assert loaded.head.linear.weight.isfinite().all()


def test_a_processor_of_another_model_is_refused(tmp_path: Path) -> None:
    model = ResidualForAudioClassification.build("tc_resnet8", labels=LABELS)
    model.save_pretrained(tmp_path)
    other = ResidualForAudioClassification.build("tc_resnet8", labels=LABELS, in_channels=64)
    other.processor.save_pretrained(tmp_path)
    with pytest.raises(rb.InputError, match=r"makes 64 features .* takes 40"):
        ResidualForAudioClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe"], ids=repr)
@pytest.mark.parametrize("wing", ["vision", "text"])
def test_a_damaged_processor_is_told(wing: str, damage: bytes, tmp_path: Path) -> None:
    model: Any
    if wing == "vision":
        model, file = small(), "preprocessor_config.json"
    else:
        tokenizer = train_tokenizer(["who is it", "what is it"], "word")
        spec = rb.BackboneSpec((rb.Stage(8, 1),), dims=1, in_channels=8)
        model = ResidualForSequenceClassification.build(spec, labels=LABELS, processor=tokenizer)
        file = "tokenizer.json"
    model.save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(damage)
    with pytest.raises(rb.InputError, match=r"cannot load the processor of .* damaged"):
        type(model).from_pretrained(tmp_path)


def test_weights_are_read_from_safetensors_only(saved: Path) -> None:
    load = ResidualForImageClassification.from_pretrained
    assert load(saved, use_safetensors=True) and load(saved, use_safetensors=None)
    with pytest.raises(rb.InputError, match="use_safetensors=False asks for a pickle"):
        load(saved, use_safetensors=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "give num_labels=, or labels="),
        ({"num_labels": 1}, "1 class cannot be told apart"),
        ({"num_labels": 3, "labels": ["a", "b"]}, "num_labels=3 contradicts labels"),
        ({"labels": 10}, "labels=10 are no names; list them, or give num_labels= a number"),
        ({"labels": "abc"}, "labels='abc' are no names"),
        ({"labels": [1, 2]}, "the label 1 is no name"),
        ({"num_labels": "ten"}, "num_labels='ten' is no count"),
        ({"num_labels": 2.0}, r"num_labels=2\.0 is no count"),
        ({"num_labels": 2, "head": "max"}, "'max' is no head; give its fields"),
        ({"num_labels": 2, "stages": [{"channels": 8}]}, r"BackboneSpec\.from_dict"),
        ({"labels": ["a", "b", "a"]}, "'a' occurs twice"),
        ({"num_labels": 2, "dims": 1}, "needs a spec with dims=2"),
        ({"num_labels": 2, "skipp": "none"}, "did you mean 'skip'"),
        ({"num_labels": 2, "head": {"poling": "max"}}, "did you mean 'pooling'"),
        ({"num_labels": 2, "head": {"pooling": "median"}}, "pooling='median' is not known"),
        ({"num_labels": 2, "head": {"dropout": 1.0}}, "from 0 to below 1"),
    ],
)
def test_wrong_builds_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        ResidualForImageClassification.build("resnet20", **arguments)


def test_a_model_round_trips_through_the_auto_classes(saved: Path) -> None:
    assert type(transformers.AutoConfig.from_pretrained(saved)) is ResidualVisionConfig
    model = transformers.AutoModelForImageClassification.from_pretrained(saved)
    assert type(model) is ResidualForImageClassification
    assert model.processor is not None
    assert pretrained.ResidualConfig.model_type != ResidualVisionConfig.model_type


def test_gradient_checkpointing_goes_by_its_names() -> None:
    model = small()
    assert model.supports_gradient_checkpointing and not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing and model.backbone.gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    if hasattr(model, "activation_checkpointing_enable"):  # the newer name for it
        model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing
        model.activation_checkpointing_disable()
        assert not model.is_activation_checkpointing
    for refused in ({"use_reentrant": True}, {"preserve_rng_state": False}):
        with pytest.raises(rb.InputError, match=r"has no choices here, but .* were asked for"):
            model.gradient_checkpointing_enable(refused)


def test_gradient_checkpointing_under_fit() -> None:
    """Two epochs end in the same weights to the last bit."""
    spec = rb.BackboneSpec(
        (rb.Stage(8, 3), rb.Stage(16, 2, stride=2)), stem=rb.Stem(8), dropout=0.2, drop_path=0.3
    )
    images, labels = torch.randn(24, 3, 8, 8), torch.arange(24) % 3
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]

    def trained(recompute: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = ResidualForImageClassification.build(spec, labels=LABELS)
        calls = []
        if recompute:
            model.gradient_checkpointing_enable()
            model.backbone.stages[0].blocks[0].register_forward_pre_hook(
                lambda *_: calls.append(torch.is_grad_enabled())
            )
        options = rb.train.Options(epochs=2, batch_size=8, device="cpu")
        rb.train.fit(model, rows, rows, options)
        assert calls.count(True) == (2 * 2 * 3 if recompute else 0)
        return model.state_dict()

    expected = trained(False)
    for name, tensor in trained(True).items():
        assert torch.equal(tensor, expected[name]), name
