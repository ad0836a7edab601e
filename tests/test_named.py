from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lowbit.batches import inputs_of, labels_of, resized, shapes_of
from lowbit.data import Data, open_data
from lowbit.errors import DataError
from lowbit.named import named

IDS = np.arange(40, dtype=np.int32).reshape(10, 4)
MASK = (IDS % 3 > 0).astype(np.uint8)
LABELS = np.arange(10) % 2


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.npz"
    np.savez(path, input_ids=IDS, attention_mask=MASK, labels=LABELS, weight=np.full((10, 2), 0.5))
    return path


def batch(data: Data, size: int = 10) -> dict[str, torch.Tensor]:
    found = next(iter(data.batches(size)))
    assert isinstance(found, dict)
    return found


def test_npz_with_tokens_is_a_dict(npz: Path) -> None:
    data = open_data(npz)
    whole = batch(data)
    assert whole.keys() == {"input_ids", "attention_mask", "labels"}
    assert whole["input_ids"].dtype == torch.int64
    assert torch.equal(whole["input_ids"], torch.from_numpy(IDS).long())
    assert torch.equal(labels_of(whole), torch.from_numpy(LABELS))  # type: ignore[arg-type]
    assert data.shapes == "input_ids [4], attention_mask [4]"
    parts = [inputs_of(part)[1]["input_ids"] for part in data.batches(3)]
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    assert torch.equal(torch.cat(parts), whole["input_ids"])


def test_chosen_inputs_and_a_subset(npz: Path) -> None:
    data = open_data(npz, inputs=["weight", "input_ids"], limit=4, seed=1)
    found = batch(data)
    assert [*found] == ["weight", "input_ids", "labels"]
    assert found["weight"].dtype == torch.float32
    rows = found["input_ids"][:, 0] // 4
    assert torch.equal(found["labels"], torch.from_numpy(LABELS)[rows])
    assert data.hash != open_data(npz, inputs=["weight", "input_ids"], limit=4, seed=2).hash


def test_parquet_lists(npz: Path, tmp_path: Path) -> None:
    table = {"input_ids": IDS.tolist(), "attention_mask": MASK.tolist(), "label": LABELS}
    pq.write_table(pa.table({k: v[:6] for k, v in table.items()}), tmp_path / "part-0.parquet")
    pq.write_table(pa.table({k: v[6:] for k, v in table.items()}), tmp_path / "part-1.parquet")
    found, wanted = batch(open_data("part-*.parquet", folder=tmp_path)), batch(open_data(npz))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_a_function_may_return_a_dict(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\ndef data():\n    return {'a': torch.ones(3, 2), 'b': torch.ones(3)}\n"
    )
    found = batch(open_data("own.py:data", folder=tmp_path))
    assert [(name, list(t.shape)) for name, t in found.items()] == [("a", [3, 2]), ("b", [3])]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones((3, 2)), "b": np.ones((4, 2))}, r"different numbers of samples \(a 3, b 4\)"),
        ({"a": np.array([["x"]])}, "input 'a': got <U1"),
        ({"a": np.array([[np.nan]])}, "input 'a' holds NaN"),
        ({}, "has no inputs"),
    ],
)
def test_what_cannot_be_inputs(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        named("test", arrays)


def test_what_does_not_fit(npz: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no 'token_types' among input_ids, attention_mask, labels, weight"):
        open_data(npz, inputs=["input_ids", "token_types"])
    pq.write_table(pa.table({"input_ids": [[1, 2], [1]]}), tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match="'input_ids' has lists of several lengths"):
        open_data(tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match=r"several inputs and texts are read from \.npz and \.parquet"):
        open_data(tmp_path, inputs=["a", "b"])


def test_resized_repeats_samples() -> None:
    inputs = {"a": torch.tensor([[1], [2]]), "labels": torch.tensor([0, 1])}
    found = resized(inputs, 5)
    assert isinstance(found, dict)
    assert found.keys() == {"a"}
    assert found["a"].flatten().tolist() == [1, 2, 1, 2, 1]
    assert shapes_of(found) == "a [1]"
    assert shapes_of((torch.ones(2, 3), None)) == "[3]"
