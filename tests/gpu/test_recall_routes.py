"""A routed batch on a CUDA device: blocks, rows and heads by cuDNN and flash, against one masked attention."""

import pytest
import torch
import torch.nn.functional as F

from kvfoot.train.recall.mix import GROUPS
from kvfoot.train.recall.model import GPU_BACKENDS, Net, init_parameters
from kvfoot.train.recall.options import ModelShape
from kvfoot.train.recall.spread import far_mask

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_routed_attention_is_attention_under_its_mask(layer):
    torch.manual_seed(layer)
    shape, rows, length = ModelShape(), 8, 1024
    device = torch.device("cuda")
    parameters = {name: value.to(device) for name, value in init_parameters(shape, 0, 1.4).items()}
    net = Net(shape, parameters, torch.bfloat16)
    net.backends = list(GPU_BACKENDS)
    split = net.router.split(torch.tensor([0, 1, 3, 0, 2, 2, 2, 1]))
    assert len(GROUPS) == len(split.rows)
    flat = [
        torch.randn(rows * length, heads, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
        for heads in (6, 3, 3)
    ]
    got = net._attend(*flat, length, layer, split, None)
    wide = [x.float().view(rows, length, -1, 64).transpose(1, 2) for x in flat]
    wide[1:] = [x.repeat_interleave(2, 1) for x in wide[1:]]
    mask = far_mask(net.router, layer, split, rows, length, 3).repeat_interleave(2, 1).to(device)
    expected = F.scaled_dot_product_attention(*wide, attn_mask=mask).transpose(1, 2).reshape(got.shape)
    assert (got.float() - expected).abs().max() < 0.03
    weight = torch.randn_like(expected)
    mine = torch.autograd.grad((got.float() * weight).sum(), flat)
    theirs = torch.autograd.grad((expected * weight).sum(), flat)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).float().abs().max() < 0.05 * b.float().abs().max()
