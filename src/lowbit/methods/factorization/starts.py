"""Float factors to start from: regularized alternating least squares, and the paper's error-preserving correction.

Plain alternating least squares finds components that are huge and cancel each other, and rounding destroys what is left
of them. A ridge keeps them small: with X of norm 1 and R balanced components, the fourth power of a column's norm is
about R^(-2/3), so a ridge of that order is a fixed share of G's diagonal. tensorly computes both.

The authors correct instead: of all factors with the error that alternating least squares reached, they look for those
with the least sum_r |a_r|^2 |b_r|^2 |c_r|^2 (Phan et al., Error preserving correction, 2019,
https://arxiv.org/abs/1709.08349). With the other factors' columns at norm 1 that is the norm of the present one, so
each step is a ridge regression, G = V diag(l) V^T, with the ridge mu that just meets the error, found by bisection:

    H = F V diag(1 / (l + mu)) V^T,   err^2(mu) = |X|^2 - sum_j |F V|_j^2 (l_j + 2 mu) / (l_j + mu)^2
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.methods.factorization.tensors import balanced, gram, relative_error, targets

RIDGE = 1e-2
_FREE = 3  # passes without it


def float_factors(x: Tensor, rank: int, *, ridge: float = RIDGE, iterations: int = 100, seed: int = 0) -> list[Tensor]:
    """Balanced factors of a tensor `[o, i, s]` by alternating least squares; of a matrix, by its singular values.

    Args:
        x: float64, finite, not all zero.
        rank: R.
        ridge: see above; 0 for plain alternating least squares.
        iterations: the most passes over all factors.
        seed: draws the start.
    """
    if x.dim() == 2:
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        root = s[:rank].sqrt()
        return [u[:, :rank] * root, v.mT[:, :rank] * root]
    import tensorly
    from tensorly.decomposition import parafac

    norm = float(x.norm())
    with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ill-conditioned systems, without a ridge
        whole, same = (x / norm).numpy(), {"tol": 1e-6, "random_state": seed}
        # zero is a minimum of the ridge: not from a random start, but from one that has found the tensor
        near = parafac(whole, rank, n_iter_max=_FREE, init="random", **same)
        found = parafac(whole, rank, n_iter_max=iterations, init=near, l2_reg=ridge * rank ** (-2 / 3), **same)
    factors = [torch.from_numpy(factor) for factor in found.factors]
    factors[0] = factors[0] * (norm * torch.from_numpy(found.weights))
    return balanced(factors)


def corrected(x: Tensor, factors: Sequence[Tensor], *, iterations: int = 50) -> list[Tensor]:
    """The factors with the same error and components as small as possible, see above; balanced."""
    now = [factor.clone() for factor in factors]
    whole = float(x.square().sum())
    allowed = relative_error(x, now) ** 2 * whole
    for _ in range(iterations):
        for mode in range(len(now)):
            for other in range(len(now)):
                if other != mode:
                    now[other] = now[other] / now[other].norm(dim=0).clamp(min=1e-150)
            values, vectors = torch.linalg.eigh(gram(now, mode))
            turned = targets(x, now, mode) @ vectors
            mu = _ridge(values.clamp(min=0), turned.square().sum(0), whole - allowed)
            now[mode] = turned / (values.clamp(min=0) + mu).clamp(min=1e-12 * float(values[-1])) @ vectors.mT
    return balanced(now)


def _ridge(values: Tensor, weights: Tensor, explained: float) -> float:
    """The largest mu with sum_j weights_j (l_j + 2 mu) / (l_j + mu)^2 >= explained, by bisection."""
    floor = 1e-12 * float(values[-1])

    def enough(mu: float) -> bool:
        reached = weights * (values + 2 * mu) / (values + mu).clamp(min=floor).square()
        return float(reached.sum()) >= explained

    low, high = 0.0, float(values[-1])
    while enough(high) and high < 1e6 * float(values[-1]):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low
