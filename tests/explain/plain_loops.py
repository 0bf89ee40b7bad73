"""Equations of relevance and products of matrices, with lists and loops."""

from __future__ import annotations

import numpy as np

from padapter.architectures import weight_gradients


def bar(weights, gradient):
    """Equation (5), entry by entry."""
    heads, rows, columns = weights.shape
    return [
        [sum(max(weights[h, i, j] * gradient[h, i, j], 0.0) for h in range(heads)) / heads for j in range(columns)]
        for i in range(rows)
    ]


def times(a, b):
    return [[sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def plus(a, b):
    return [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]


def eye(n):
    return [[float(i == j) for j in range(n)] for i in range(n)]


def bar_of(r):
    """Equations (8)-(9), entry by entry."""
    n = len(r)
    found = eye(n)
    for i in range(n):
        hat = [r[i][j] - float(i == j) for j in range(n)]
        for j in range(n):
            found[i][j] += hat[j] / sum(hat) if sum(hat) > 0 else 0.0
    return found


def transposed(a):
    return [list(row) for row in zip(*a, strict=True)]


def of_steps(steps, target):
    """Weights (H, N1, N2) of steps that a module adds up, their gradients, and own shares (H, N1) with theirs."""

    def heads(tensors):
        return np.concatenate([tensor.detach()[0].double().numpy() for tensor in tensors])

    found = weight_gradients(target, steps, retain_graph=True)
    # Two steps side by side add up: as many heads more, whose mean is taken over half of them.
    weights = heads([step.weights for step in steps]) * len(steps)
    own = heads([step.own for step in steps]) * len(steps)
    return weights, heads([pair[0] for pair in found]), (own, heads([pair[1] for pair in found]))
