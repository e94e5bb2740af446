"""Whether 95 % intervals hold the truth in 95 % of campaigns, with and without a margin.

The true mean accuracy of a small network is taken from 100,000 fault maps; 1,000 campaigns then
draw chips of their own. Their number of hits is binomial: an interval that holds the truth in 95 %
of campaigns is found between 93 and 97 % but for one time in 270 (and seeds are fixed).
"""

import jax
import numpy as np
import pytest
import small

from ftnas_jax.campaigns.points import Point, as_models
from ftnas_jax.campaigns.settings import Settings
from ftnas_jax.campaigns.statistics import mean
from ftnas_jax.campaigns.trials import Trials

FAULTS = "stuck_at:p0=0.15,p1=0.05"
MAPS, CAMPAIGNS, CHIPS, MARGIN = 100_000, 1_000, 24, 0.04
MOST = 160
"""Chips of a campaign that stops at a margin, at most."""


@pytest.fixture(scope="module")
def accuracies() -> np.ndarray:
    """Of MAPS chips for the truth, and then of those of the campaigns."""
    images, labels = small.data()
    own = small.subject(FAULTS)
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    shared = (jax.tree.map(np.float32, as_models(FAULTS)), key, np.bool_(True))
    trials = Trials(own.on_chip, own.variables, images, shared, chunk=100)
    numbers = np.arange(MAPS + CAMPAIGNS * MOST)[:, None]
    found = [(classes == labels[None]).mean(1) for _, classes in trials.run(shared, numbers)]
    return np.concatenate(found)


def _covered(accuracies: np.ndarray, settings: Settings) -> tuple[float, float]:
    """Share of campaigns whose interval holds the truth, and their mean number of chips."""
    truth, point = accuracies[:MAPS].mean(), Point(as_models(FAULTS))
    held, chips = [], []
    for own in accuracies[MAPS:].reshape(CAMPAIGNS, MOST):
        there = 0
        while True:
            verdict = settings.judge(point, own[:there])
            if verdict.enough:
                break
            there = verdict.chips
        counted = own[: verdict.chips]
        interval = mean(counted, level=settings.level, critical=verdict.critical)
        held.append(interval.low <= truth <= interval.high)
        chips.append(len(counted))
    return float(np.mean(held)), float(np.mean(chips))


def test_the_truth_is_known_much_better_than_any_campaign_knows_it(accuracies):
    error = accuracies[:MAPS].std() / np.sqrt(MAPS)
    assert error < accuracies.std() / np.sqrt(MOST) / 20


def test_intervals_of_a_fixed_number_of_chips_hold_the_truth(accuracies):
    covered, chips = _covered(accuracies, Settings(chips=CHIPS))
    assert chips == CHIPS
    assert 0.93 <= covered <= 0.97


def test_intervals_of_campaigns_that_stop_at_a_margin_hold_the_truth(accuracies):
    settings = Settings(chips=MOST, margin=MARGIN, min_chips=8)
    covered, chips = _covered(accuracies, settings)
    assert 8 < chips < MOST  # they do stop, and not at the first look
    assert 0.93 <= covered <= 0.97
