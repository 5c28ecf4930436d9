import pytest
import torch

from mmfuse.model.heads import Head

WIDTH, ANCHORS = 4, 3


@pytest.fixture
def head():
    torch.manual_seed(0)
    return Head(WIDTH, 2, 2, ANCHORS, 5, prior=-4.0, bias=True).eval()


def levels(batch=2):
    return [torch.randn(batch, WIDTH, 3, 2), torch.randn(batch, WIDTH, 2, 1)]


def test_rows_are_levels_then_places_then_anchors(head):
    inputs = levels()
    rows = []
    for level, x in enumerate(inputs):
        for conv, norms in zip(head.convs, head.norms, strict=True):
            x = norms[level](conv(x))
        x = head.predict(x)
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                for anchor in range(ANCHORS):
                    rows.append(x[:, anchor * 5 : anchor * 5 + 5, row, column])
    out = head(inputs)
    assert out.shape == (2, (6 + 2) * ANCHORS, 5)
    torch.testing.assert_close(out, torch.stack(rows, 1))


def test_a_head_starts_at_its_prior(head):
    out = head([torch.zeros(1, WIDTH, 2, 2), torch.zeros(1, WIDTH, 1, 1)])
    assert torch.equal(out, torch.full_like(out, -4.0))


def test_norms_belong_to_a_level_and_convolutions_to_all(head):
    inputs = levels()
    before = head(inputs)
    head.norms[0][1].bias.data += 1
    after = head(inputs)
    assert torch.equal(after[:, :18], before[:, :18])
    assert not torch.allclose(after[:, 18:], before[:, 18:])
    head.convs[0].pointwise.weight.data += 1
    both = head(inputs)
    assert not torch.allclose(both[:, :18], after[:, :18])
    assert not torch.allclose(both[:, 18:], after[:, 18:])


def test_bias_is_a_choice_except_for_the_prediction():
    head = Head(WIDTH, 1, 1, 1, 1, prior=0.0, bias=False)
    assert head.convs[0].pointwise.bias is None
    assert head.convs[0].depthwise.bias is None
    assert head.predict.depthwise.bias is None
    assert head.predict.pointwise.bias is not None
