from __future__ import annotations

import pytest
import torch
from functional_cases import DH, N1, N2, B, H, inputs

from padapter.functional import p_laplacian_attention, p_laplacian_attention_reference, p_laplacian_weights

REFUSED = {
    "query of 3 dimensions": ({"query": torch.ones(B, N1, DH)}, r"query: got shape \(2, 5, 6\), accepted is"),
    "integer query": ({"query": torch.ones(B, H, N1, DH, dtype=torch.long)}, r"query: got dtype torch.int64"),
    "heads that do not divide": (
        {"key": torch.ones(B, 3, N2, DH)},
        r"key: got shape \(2, 3, 7, 6\), .*dividing 4",
    ),
    "key of another width": ({"key": torch.ones(B, 2, N2, 5)}, r"key: got shape \(2, 2, 7, 5\), accepted"),
    "key of another batch": ({"key": torch.ones(1, 2, N2, DH)}, r"key: got shape \(1, 2, 7, 6\), accepted"),
    "no key at all": ({"key": torch.ones(B, 2, 0, DH)}, r"key: .*N2 at least 1"),
    "value of another length": (
        {"value": torch.ones(B, 2, 6, DH)},
        r"value: got .* accepted .* \(2, 2, 7, dh\)",
    ),
    "other width, no node_query": (
        {"value": torch.ones(B, 2, N2, 3)},
        r"node_query: needed .* \(2, 4, 5, 3\)",
    ),
    "node_query": ({"node_query": torch.ones(B, H, N1, 3)}, r"node_query: got .* accepted is \(2, 4, 5, 6\)"),
    "metric_factor": (
        {"metric_factor": torch.ones(H, DH, 9)},
        r"metric_factor: got .* accepted is \(4, 6, 6\)",
    ),
    "mask shape": (
        {"attention_mask": torch.ones(N2, N1).bool()},
        r"attention_mask: got shape \(7, 5\), .*\(2, 4, 5, 7\)",
    ),
    "mask of 5 dimensions": ({"attention_mask": torch.ones(1, 1, 1, N1, N2)}, r"attention_mask: got shape"),
    "0/1 mask": (
        {"attention_mask": torch.ones(N2, dtype=torch.long)},
        r"attention_mask: got dtype .*mask.bool\(\)",
    ),
    "p below 1": ({"p": 0.9}, r"p: got 0.9, accepted is a finite number >= 1"),
    "p infinite": ({"p": float("inf")}, r"p: got inf"),
    "p not a number": ({"p": float("nan")}, r"p: got nan"),
    "p of wrong shape": ({"p": torch.ones(3)}, r"p: got shape \(3,\), accepted are \(\), \(1,\) and \(4,\)"),
    "negative mu": ({"mu": -0.1}, r"mu: got -0.1, accepted is a finite number >= 0"),
    "mu of wrong shape": ({"mu": torch.ones(1, H)}, r"mu: got shape \(1, 4\)"),
    "degree": ({"degree": "col"}, r"degree: got 'col', accepted are 'row', 'symmetric'"),
}


@pytest.mark.parametrize("function", [p_laplacian_attention, p_laplacian_weights, p_laplacian_attention_reference])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_arguments_name(function, case):
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        function(**{**inputs(), "p": 1.25, "mu": 0.1, **change})


@pytest.mark.parametrize("dropout_p", [-0.1, 1.1])
def test_dropout_outside_its_range_is_refused(dropout_p):
    with pytest.raises(ValueError, match="dropout_p: got"):
        p_laplacian_attention(**inputs(), p=1.25, mu=0.1, dropout_p=dropout_p)


@pytest.mark.parametrize("shape", [(), (1,), (N2,), (N1, 1), (N1, N2), (H, 1, N2), (B, 1, 1, N2), (B, H, N1, N2)])
def test_every_broadcastable_mask_is_accepted(shape):
    tensors = {**inputs(), "p": 1.25, "mu": 0.1, "degree": "symmetric"}
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.3
    full = keep.expand(B, H, N1, N2)
    torch.testing.assert_close(
        p_laplacian_attention(**tensors, attention_mask=keep),
        p_laplacian_attention(**tensors, attention_mask=full),
    )


@pytest.mark.parametrize("parameter", [2.5, torch.tensor(2.5), torch.tensor([2.5]), torch.full((H,), 2.5)])
def test_every_form_of_a_parameter_is_the_same(parameter):
    torch.testing.assert_close(
        p_laplacian_attention(**inputs(), p=parameter, mu=parameter),
        p_laplacian_attention(**inputs(), p=2.5, mu=2.5),
        rtol=0,
        atol=0,
    )
