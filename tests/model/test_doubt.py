import pytest
import torch

from mmfuse.model.doubt import Doubt, blank, describe

CHANNELS = 12


def maps(images, seed, gain=1.0):
    """Maps whose channels go together as those of a backbone do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(5, CHANNELS, generator=torch.Generator().manual_seed(99))
    mixed = (torch.randn(images, 5, generator=generator) @ mixing)[:, :, None, None]
    return gain * (mixed + torch.randn(images, CHANNELS, 8, 8, generator=generator))


@pytest.fixture
def fitted():
    doubt = Doubt(CHANNELS)
    doubt.fit(describe(maps(200, 0)))
    doubt.threshold.fill_(3.0)
    return doubt


def test_a_fresh_one_believes_all_that_is_finite():
    wild = maps(3, 1, gain=1e6)
    wild[2, 0, 0, 0] = torch.nan
    assert Doubt(CHANNELS)(wild).tolist() == [0, 0, torch.inf]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e38])
def test_what_is_not_finite_is_never_believed(fitted, bad):
    given = maps(4, 2)
    given[1, 2, 3, 3] = bad
    assert (fitted(given) >= 1).tolist() == [False, True, False, False]


def test_new_images_of_the_kind_are_believed_and_others_are_not(fitted):
    assert fitted.distance(describe(maps(200, 0))).median() == pytest.approx(1, abs=1e-4)
    assert fitted(maps(200, 3)).max() < 1
    for other in (maps(20, 4, gain=4.0), maps(20, 4, gain=0.0)):
        assert fitted(other).min() > 2
    together, apart = fitted(maps(20, 4)), fitted(maps(20, 4).flip(1))
    assert apart.median() > 2 * together.median()  # each channel is as usual, but not together


def test_a_rare_kind_of_image_is_not_doubted_for_being_rare():
    def with_rare(seed):
        return torch.cat([maps(190, seed), 3 + 2 * maps(10, seed + 1)])

    doubt = Doubt(CHANNELS)
    doubt.fit(describe(with_rare(0)))
    usual, other = doubt.distance(describe(with_rare(7))).max(), doubt.distance(describe(maps(20, 5, gain=0.0))).min()
    assert other > 2 * usual


def test_fewer_images_than_numbers_do():
    doubt = Doubt(CHANNELS)
    doubt.fit(describe(maps(10, 0)))
    assert doubt.distance(describe(maps(9, 1))).isfinite().all()


def test_it_is_a_mahalanobis_distance_of_tamed_numbers(fitted):
    def tamed(described):
        return torch.asinh((described - fitted.centre) / fitted.spread).double()

    training, given = tamed(describe(maps(200, 0))), tamed(describe(maps(7, 6)))
    covariance = torch.cov(training.T, correction=0)
    shrunk = 0.8 * covariance + 0.2 * covariance.diag().diag()
    far = [((x - training.mean(0)) @ shrunk.inverse() @ (x - training.mean(0))).item() for x in (*training, *given)]
    usual = torch.tensor(far[:200]).median()
    torch.testing.assert_close(
        fitted.distance(describe(maps(7, 6))), torch.tensor(far[200:]) / usual, rtol=0.02, atol=0.01
    )


def test_it_judges_in_float32_under_autocast(fitted):
    given = maps(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = fitted(given)
    torch.testing.assert_close(found, fitted(given), rtol=0, atol=0)


def test_what_is_one_value_throughout_is_blank_padded_or_not():
    images = torch.randn(6, 3, 32, 40, generator=torch.Generator().manual_seed(7))
    images[1] = images[1, :, :1, :1].clone()
    images[2] = 0.5
    images[2, :, 24:] = images[2, :, :, 30:] = 0.0
    images[3] = 0.5
    images[3, 1, 16, 20] = 0.6
    images[4, 1:] = 0.25
    images[5] = torch.nan
    assert blank(images).tolist() == [False, True, True, False, False, False]
