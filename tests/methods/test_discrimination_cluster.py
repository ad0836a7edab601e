"""The same sweep on a Dask cluster: two workers on this machine, each a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dask
import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import lowbit as lb


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    forks = multiprocessing.get_context("forkserver")  # whose server imports once what both workers need
    forks.set_forkserver_preload(["distributed.nanny", "lowbit.methods.discrimination.verdict"])
    forkserver.ensure_running()
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as workers,
        Client(workers) as client,
    ):
        yield client


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:distributed")
def test_counts_of_a_cluster_are_those_of_one_process(tmp_path: Path, cluster: Client) -> None:
    x, y = load_digits(return_X_y=True)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    chunks = lb.ArrayFiles(tmp_path / "x.npy", tmp_path / "y.npy", rows=200)
    small: dict[str, Any] = {"splits": 2, "codes": ("ternary",), "classifiers": {"kNN": KNeighborsClassifier(3)}}
    here = lb.count_features(chunks)
    with joblib.parallel_config("dask"):
        there = lb.count_features(chunks, n_jobs=2)
        judged = lb.judge(x[:200], y[:200], **small)
    assert np.array_equal(here.counts, there.counts)
    assert here.sweep("ternary").best() == there.sweep("ternary").best()
    assert judged.scores == lb.judge(x[:200], y[:200], **small).scores
    done = [worker["metrics"] for worker in cluster.scheduler_info(n_workers=-1)["workers"].values()]
    assert len(done) == 2
