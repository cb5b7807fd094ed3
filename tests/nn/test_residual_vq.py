"""Residual books: each codes what is left, the nearest code by angle, losses that move one side each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from speech_mtp.nn.residual_vq import COMMITMENT, ResidualVQ


def made(sizes: tuple[int, ...] = (16, 8)) -> ResidualVQ:
    torch.manual_seed(0)
    return ResidualVQ(sizes, dim=6, dim_code=4)


def test_each_book_codes_what_the_others_left() -> None:
    vq, x = made(), torch.randn(2, 5, 6)
    parts, codes, _ = vq(x, torch.ones(2, 5, 1))
    rest = x
    for k, book in enumerate(vq.books):
        place = book.enter(rest)  # type: ignore[operator, union-attr]
        near = F.cosine_similarity(place[..., None, :], book.codes.weight, dim=-1).argmax(-1)  # type: ignore[union-attr, arg-type]
        assert torch.equal(codes[:, k], near)
        rest = rest - parts[k]
    for one, other in zip(vq.parts(codes), parts, strict=True):
        torch.testing.assert_close(one, other)


def test_losses_are_those_of_vq_vae_over_the_frames_that_count() -> None:
    vq, x = made((16,)), torch.randn(1, 4, 6)
    mask = torch.tensor([1.0, 1, 0, 1]).view(1, 4, 1)
    _, codes, loss = vq(x, mask)
    book = vq.books[0]
    gaps = (book.codes(codes[:, 0]) - book.enter(x)).square().mean(-1)  # type: ignore[operator, union-attr]
    expected = (1 + COMMITMENT) * (gaps * mask[..., 0]).sum() / 3
    torch.testing.assert_close(loss, expected)


def test_gradients_pass_straight_through_to_the_encoder_and_codes_learn_from_their_loss_alone() -> None:
    vq, x = made((16,)), torch.randn(1, 4, 6, requires_grad=True)
    parts, _, loss = vq(x, torch.ones(1, 4, 1))
    parts[0].square().sum().backward(retain_graph=True)
    assert x.grad is not None
    assert float(x.grad.norm()) > 0
    codes = vq.books[0].codes.weight  # type: ignore[union-attr]
    assert codes.grad is None
    loss.backward()
    assert isinstance(codes.grad, torch.Tensor)
    assert float(codes.grad.norm()) > 0


def test_books_learn_vectors() -> None:
    vq, x = made((16, 16)), torch.randn(1, 16, 6).repeat(1, 4, 1)
    mask = torch.ones(1, 64, 1)
    optimizer = torch.optim.Adam(vq.parameters(), 1e-2)
    gaps = []
    for _ in range(300):
        parts, codes, loss = vq(x, mask)
        gap = (torch.stack(parts).sum(0) - x).square().mean()
        optimizer.zero_grad()
        (gap + loss).backward()
        optimizer.step()
        gaps.append(float(gap))
    assert gaps[-1] < 0.1 * gaps[0]
    assert len(codes[0, 0].unique()) >= 6


@pytest.mark.parametrize("sizes", [(), (1,), (4, 1)])
def test_books_without_codes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="every book needs 2 at least"):
        ResidualVQ(sizes, 4)


def test_the_sum_of_books_hands_the_gradient_on_once() -> None:
    """What is left for a book has a gradient through what the books before took (as in DAC): with maps that change
    nothing, the sum is straight-through, not once for every book."""
    quantiser = ResidualVQ((5, 4, 3), 2, dim_code=2)
    for book in quantiser.books:
        for name in ("enter", "leave"):
            linear = getattr(book, name)
            torch.nn.init.eye_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
    x = torch.randn(1, 6, 2, requires_grad=True)
    parts, _, _ = quantiser(x, torch.ones(1, 6, 1))
    torch.stack(parts).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.ones_like(x))
