"""How a model of Hugging Face becomes a plain network: tensors in, one tensor out, as a graph where it can be traced.

`hf:<folder>` reads what `save_pretrained` wrote, `hf:<name>` what is in the local cache. Nothing is downloaded, and no
code or pickle in the folder is run: weights are safetensors. What the network returns follows from the folder:

- a sequence or image classifier: its logits `[N, classes]`;
- any other encoder: one embedding a text, `[N, width]`, pooled and normalized as `modules.json` of
  sentence-transformers says; without that file the mean over the tokens that are there.

Text networks take `input_ids` and `attention_mask`, images `pixel_values`. The tokenizer's other inputs (types of
tokens in sentence pairs) are left at their default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit import files
from lowbit.errors import DataError
from lowbit.tracing import trace_on

PREFIX = "hf:"
TEXT_INPUTS = ("input_ids", "attention_mask")
_LOCAL = {"local_files_only": True, "trust_remote_code": False}  # nor is anybody asked whether to run code
Kind = Literal["embedder", "text classifier", "image classifier"]
Pooling = Literal["mean", "cls", "max"]
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


@final
class Embedder(nn.Module):
    """An encoder and what makes one embedding of its last hidden states: pooling over the mask, then length 1."""

    def __init__(self, network: nn.Module, pooling: Pooling, normalize: bool) -> None:
        super().__init__()
        self.network, self.pooling, self.normalize = network, pooling, normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token numbers and mask `[N, T]` to embeddings `[N, width]`."""
        hidden = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        match self.pooling:
            case "cls":
                pooled = hidden[:, 0]
            case "max":
                pooled = (hidden * mask + (mask - 1) * 1e9).amax(1)
            case _:
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return functional.normalize(pooled, dim=1) if self.normalize else pooled


@final
class TextClassifier(nn.Module):
    """A sequence classifier's logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token numbers and mask `[N, T]` to logits `[N, classes]`."""
        logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


@final
class ImageClassifier(nn.Module):
    """An image classifier's logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images `[N, channels, height, width]` to logits `[N, classes]`."""
        logits: Tensor = self.network(pixel_values=pixel_values).logits
        return logits


def load(reference: str, folder: Path | None = None, *, trace: bool = True) -> nn.Module:
    """The network of `hf:<folder or name>` in evaluation mode; nothing is downloaded.

    It is a traced graph where tracing gives one that computes the same, else a module of this file.

    Args:
        reference: a folder that `save_pretrained` wrote, or the name of a model in the local cache.
        folder: where a relative path begins; the current folder by default.
        trace: False returns the module of this file.

    Raises:
        DataError: transformers is not installed, the model is not here, or is of a kind that returns no single tensor.
    """
    path = local_folder(reference, folder)
    config = _json(path / "config.json")
    network = _network(path, config, reference)
    if not trace:
        return network
    examples, others = _examples(network, config, path)
    traced = trace_on(network, examples, others)
    return network if isinstance(traced, str) else traced.eval()


def kind_of(reference: str, folder: Path | None = None) -> Kind:
    """What the network of `hf:<folder or name>` returns, as its `config.json` tells.

    Raises:
        DataError: the model is not here.
    """
    path = local_folder(reference, folder)
    return _kind(path, _json(path / "config.json"))


def _kind(path: Path, config: Mapping[str, Any]) -> Kind:
    architecture = next(iter(config.get("architectures") or []), "")
    if architecture.endswith("ForImageClassification"):
        return "image classifier"
    classifies = architecture.endswith("ForSequenceClassification") and not (path / "modules.json").exists()
    return "text classifier" if classifies else "embedder"


def local_folder(reference: str, folder: Path | None = None) -> Path:
    """The folder of `hf:<folder or name>`; a name is looked up in the local cache.

    Raises:
        DataError: transformers is not installed, or the model is not here.
    """
    name = reference.removeprefix(PREFIX)
    _transformers()
    path = (folder or Path()) / Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"model '{reference}': there is no folder '{path}', and no such name in the local cache of Hugging Face; "
            f"nothing is downloaded behind your back: run `hf download {name}` first, or correct the path"
        ) from error


def tokenize(reference: str, texts: list[str], length: int, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Token numbers and mask of texts, int64 `[N, length]`: longer ones are cut, shorter ones filled up.

    Raises:
        DataError: the folder has no tokenizer that can be read.
    """
    path = local_folder(reference, folder)
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(path, **_LOCAL)
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
        return {name: np.asarray(tokens[name], dtype=np.int64) for name in TEXT_INPUTS}
    except Exception as error:  # a folder from outside may hold anything
        raise DataError(
            f"tokenizer '{reference}' cannot be used ({files.one_line(error)}); give the folder of a model that has one"
        ) from error


def preprocessing(reference: str, folder: Path | None = None) -> dict[str, Any]:
    """The `preprocess` section for images as the model's image processor has it; empty where the folder has none.

    A processor that resizes the shortest edge and cuts out the middle becomes a resize to that cut's size.

    Raises:
        DataError: the model is not here, or its settings cannot be read.
    """
    path = local_folder(reference, folder) / "preprocessor_config.json"
    if not path.exists():
        return {}
    said, section = _json(path), dict[str, Any]()
    size = said.get("crop_size") if said.get("do_center_crop") else None
    size = said.get("size") if size is None else size
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if isinstance(size, dict) and said.get("do_resize", True):
        edge = size.get("shortest_edge", 0)
        section["size"] = [int(size.get("height", edge)), int(size.get("width", edge))]
    if said.get("do_rescale", True):
        section["scale"] = round(1 / float(said.get("rescale_factor", 1 / 255)), 6)
    if said.get("do_normalize", True) and said.get("image_mean") is not None:
        section |= {"mean": [float(x) for x in said["image_mean"]], "std": [float(x) for x in said["image_std"]]}
    return section


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise DataError("models of Hugging Face need transformers; install lowbit[hf]") from error
    return transformers


def _network(path: Path, config: Mapping[str, Any], reference: str) -> nn.Module:
    transformers = _transformers()
    match _kind(path, config):
        case "image classifier":
            return ImageClassifier(_read(transformers.AutoModelForImageClassification, path, reference)).eval()
        case "text classifier":
            return TextClassifier(_read(transformers.AutoModelForSequenceClassification, path, reference)).eval()
    architecture = next(iter(config.get("architectures") or []), "model without an architecture")
    listed = (path / "modules.json").exists()
    if config.get("is_encoder_decoder") or not (listed or architecture.endswith(("Model", "ForMaskedLM"))):
        raise DataError(
            f"model '{reference}' is a {architecture}; expected an encoder, or a classifier of texts or images; write "
            "a module:function that returns the part you mean"
        )
    pooling, normalize = _pooling(path) if listed else ("mean", False)
    return Embedder(_read(transformers.AutoModel, path, reference), pooling, normalize).eval()


def _read(kind: Any, path: Path, reference: str) -> nn.Module:
    for attention in ("sdpa", "eager"):  # the first can be traced; some models have the second alone
        try:
            with _quiet():
                network: nn.Module = kind.from_pretrained(
                    path, **_LOCAL, use_safetensors=True, attn_implementation=attention, dtype="float32"
                )
        except Exception as error:  # a folder from outside may hold anything
            if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            raise DataError(
                f"model '{reference}' cannot be read ({files.one_line(error)}); save it again with save_pretrained, "
                "which writes config.json and model.safetensors"
            ) from error
        return network
    raise AssertionError("the second attempt returns or raises")


def _pooling(path: Path) -> tuple[Pooling, bool]:
    """What `modules.json` of sentence-transformers says: how tokens are pooled, and whether embeddings get length 1."""
    pooling: Pooling | None = None
    normalize = False
    for module in _json(path / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        match kind:
            case "Transformer":
                continue
            case "Normalize":
                normalize = True
            case "Pooling":
                said = _json(path / str(module.get("path", "")) / "config.json")
                modes = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
                if len(modes) != 1 or modes[0] not in _POOLINGS:
                    raise DataError(f"'{path}': pooling by {', '.join(modes) or 'nothing'}; expected mean, cls or max")
                pooling = _POOLINGS[modes[0]]
            case _:
                raise DataError(
                    f"'{path / 'modules.json'}' has a module {kind}, expected Transformer, Pooling and Normalize; "
                    "write a module:function that builds the network"
                )
    return pooling or "mean", normalize


def _examples(
    network: nn.Module, config: Mapping[str, Any], path: Path
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Made-up inputs to trace with: two numbers of samples, and the same with other sizes."""
    draw = torch.Generator().manual_seed(0)
    if not isinstance(network, ImageClassifier):
        words = int(config.get("vocab_size", 2))

        def text(count: int, length: int, shortest: int) -> dict[str, Tensor]:
            lengths = torch.linspace(length, shortest, count).long()[:, None]
            numbers = torch.randint(0, words, (count, length), generator=draw)
            return dict(zip(TEXT_INPUTS, (numbers, (torch.arange(length) < lengths).long()), strict=True))

        return [text(2, 8, 5), text(3, 8, 8)], [text(2, 12, 4)]
    channels = int(config.get("num_channels", 3))
    (size, *_), own = preprocessing(str(path)).get("size", [0]), config.get("image_size")
    size = own if isinstance(own, int) else size or 64

    def images(count: int, edge: int) -> dict[str, Tensor]:
        return {"pixel_values": torch.rand((count, channels, edge, edge), generator=draw) - 0.5}

    return [images(2, size), images(3, size)], [images(2, size + 16)] if not isinstance(own, int) else []


def _json(path: Path) -> Any:
    try:
        return json.loads(files.read_bytes(path))
    except ValueError as error:
        raise DataError(f"'{path}' is no JSON ({files.one_line(error)}); save the model again") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar while weights are read."""
    logging: Any = _transformers().utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
