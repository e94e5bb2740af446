"""What the accuracies of a few chips say of all chips.

The sampling unit is the chip: a fault map, drawn independently, and the accuracy under it. Letters:
M chips, N test images, the same for all chips. Values are shares, not percent; all is float64.

References:
    Student, The probable error of a mean, Biometrika 6 (1908).
    Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 26 (1934).
    David and Nagaraja, Order Statistics, 3rd ed. (2003), §7.1.
    Searle, Casella and McCulloch, Variance Components (1992), ch. 4.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import scipy  # whose stats take a second to import, and do at their first use
from numpy.typing import ArrayLike

Bounds = tuple[float, float]
SHARES: Bounds = (0.0, 1.0)
DIFFERENCES: Bounds = (-1.0, 1.0)

_ROUNDING = 1e-7
"""Accuracies nearer to each other than this are alike: an image is 1e-7 of ten million, and
float32 rounds next to 1 by less."""


class Interval(NamedTuple):
    """An estimate between the ends of a confidence interval, low <= estimate <= high.

    Attributes:
        estimate: of the quantity.
        low: lower end.
        high: upper end.
        level: share of such intervals that hold the true value, in (0, 1).
    """

    estimate: float
    low: float
    high: float
    level: float

    @property
    def half_width(self) -> float:
        """The longer arm: what may stand behind a ± if the ends are at unlike distances."""
        return max(self.estimate - self.low, self.high - self.estimate)


def mean(
    values: ArrayLike,
    *,
    level: float = 0.95,
    critical: float | None = None,
    bounds: Bounds = SHARES,
) -> Interval:
    """The mean over all chips: x ± t_{M-1} s / √M, cut at the bounds.

    One value alone says nothing of the spread: the interval is all that the bounds allow.

    Where all M values are alike (to 1e-7), s / √M is no error: a share of chips may differ and none
    of them was drawn. At most b = 1 - (α/2)^(1/M) of all chips do (Clopper and Pearson's bound for
    0 of M, α = 1 - level), at worst as far as the bounds allow, so from the common value v

        v - b (v - low) <= mean <= v + b (high - v).

    The level is kept although v, and perhaps M, come from the same chips. Let p_i be the mass of
    values v_i that the mean lies too far below, common to M_i chips, and c_i = (α/2)^(1/M_i). From
    mean - low < c_i (v_i - low) follows Σ p_i / c_i < 1, so that such values are common to all
    chips with probability Σ p_i^M_i < α/2; likewise on the other side.

    Student's interval is for means that are near to normal. It knows nothing of failures so rare
    that no chip among M has one.

    Args:
        values: float [M], an accuracy for each chip, within `bounds`.
        level: of confidence.
        critical: in the place of t_{M-1}, for campaigns that stopped by what they saw; chips that
            are all alike do without.
        bounds: ends of the values' range.

    Raises:
        ValueError: values of another shape, none, or outside the bounds.
    """
    check_level(level)
    values = _checked(values, bounds)
    low, high = bounds
    estimate, chips = float(values.mean()), values.size
    if chips == 1:
        return Interval(estimate, low, high, level)
    if np.ptp(values) <= _ROUNDING:
        b = alike_bound(chips, level)
        return Interval(
            estimate, estimate - b * (estimate - low), estimate + b * (high - estimate), level
        )
    if critical is None:
        critical = float(scipy.stats.t.isf((1 - level) / 2, chips - 1))
    arm = critical * deviation(values) / math.sqrt(chips)
    return Interval(estimate, max(estimate - arm, low), min(estimate + arm, high), level)


def alike_bound(chips: int, level: float) -> float:
    """1 - (α/2)^(1/M): at most this share of all chips differs from M that are alike."""
    return -math.expm1(math.log((1 - level) / 2) / chips)


def deviation(values: ArrayLike) -> float:
    """Standard deviation over chips, s² = Σ (x - mean)² / (M - 1); NaN for one value."""
    values = np.asarray(values, np.float64)
    return float(values.std(ddof=1)) if values.size > 1 else math.nan


def quantile(
    values: ArrayLike, q: float, *, level: float = 0.95, bounds: Bounds = SHARES
) -> Interval:
    """A quantile over all chips by order statistics, whatever their distribution.

    The estimate is the smallest value with at least a share q of the values at or below it. With
    B ~ binomial(M, q), the ends are the order statistics x_(l) of the largest l with
    P(B <= l - 1) <= α/2, and x_(u) of the smallest u with P(B >= u) <= α/2. Each end is wrong with
    probability α/2 at most, so the level is a lower bound; ties do no harm.

    Where no rank is far enough out the end is the bound: the 5 % quantile has a lower end of its
    own from 72 chips on at 95 %, the median from 6.

    Args:
        values: float [M], an accuracy for each chip, within `bounds`.
        q: in (0, 1); at 0.05, what all but the worst 5 % of chips reach.
        level: of confidence.
        bounds: ends of the values' range.

    Raises:
        ValueError: a q outside (0, 1); values of another shape, none, or outside the bounds.
    """
    check_level(level)
    if not 0 < q < 1:
        raise ValueError(f"q is {q}; a quantile lies between 0 and 1, as 0.05")
    ordered = np.sort(_checked(values, bounds))
    chips, tail = ordered.size, (1 - level) / 2
    # Ranks from 1 to M; M q may be a whole number but for rounding.
    rank = max(1, math.ceil(round(chips * q, 9)))
    lower = int(scipy.stats.binom.ppf(tail, chips, q))
    upper = int(scipy.stats.binom.isf(tail, chips, q)) + 1
    low = float(ordered[lower - 1]) if lower >= 1 else bounds[0]
    high = float(ordered[upper - 1]) if upper <= chips else bounds[1]
    return Interval(float(ordered[rank - 1]), low, high, level)


def proportion(
    count: int,
    n: int,
    *,
    level: float = 0.95,
    method: Literal["wilson", "clopper_pearson"] = "wilson",
) -> Interval:
    """A share of independent trials, of which `count` of `n` succeeded.

    Wilson: all p with |p̂ - p| <= z √(p (1 - p) / n); near the level on average over p. Clopper
    and Pearson: all p that neither binomial tail refuses at α/2; never below the level.

    Args:
        count: 0 to n.
        n: trials, at least 1.
        level: of confidence.
        method: of the interval.

    Raises:
        ValueError: a count that is not among 0 to n, no trials, or an unknown method.
    """
    check_level(level)
    check_count(count, n)
    if method == "wilson":
        low, high = _wilson(count, n, level)
    elif method == "clopper_pearson":
        low, high = _clopper_pearson(count, n, level)
    else:
        raise ValueError(f"method is {method!r}; choose wilson or clopper_pearson")
    # Rounding must not leave the estimate outside where an end touches it.
    return Interval(count / n, min(low, count / n), max(high, count / n), level)


def paired(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean difference a - b over chips that both have met: `mean` of the differences.

    Common fault maps leave the differences less spread than each of the two.

    Args:
        a: float [M] in [0, 1], an accuracy for each chip.
        b: float [M] in [0, 1], the other's on the same chips in the same order.
        level: of confidence.

    Raises:
        ValueError: unlike numbers of chips, or values that `mean` refuses.
    """
    a, b = _checked(a, SHARES), _checked(b, SHARES)
    if a.size != b.size:
        raise ValueError(f"paired: {a.size} and {b.size} chips; give both on the same chips")
    return mean(a - b, level=level, bounds=DIFFERENCES)


def image_error(rights: ArrayLike, values: ArrayLike, squares: ArrayLike | None = None) -> float:
    """Standard error of the mean accuracy from having drawn N test images out of many.

    How far the mean over *all* chips would move with other images: √(σ_I² / N), where σ_I² is the
    variance over images of π_i, the share of all chips that classify image i rightly. Seen are
    p̂_i = rights_i / M, which vary over images also because M is finite. By the two-way analysis
    of variance of chips and images, crossed and both random, an unbiased estimate is

        σ_I² = s²(p̂) - (N / (N-1)) (w - s_c²) / M,    w = mean_i p̂_i (1 - p̂_i) M / (M-1),

    with s_c the deviation over chips. What is taken off, the interaction of chips and images, is
    within the interval over chips already; so the squares of this error and of s_c / √M add up to
    the variance of the mean under other chips and other images.

    The estimate is cut at 0. A single chip cannot tell the two apart: nothing is taken off then,
    and the error is that of its own accuracy, too large for the mean over chips.

    Args:
        rights: int [N] in 0 to M, how many of the chips classified each image rightly.
        values: float [M], the accuracies of these chips over these images.
        squares: int [N] in 0 to M, of a difference between two networks: `rights` are then those
            of one minus those of the other, from -M to M, `values` differences of accuracies, and
            this says how many of the chips classified each image rightly by one of them alone.

    Returns:
        In units of accuracy, >= 0; NaN for one image.

    Raises:
        ValueError: counts outside 0 to M, or that are not of these values.
    """
    bounds = SHARES if squares is None else DIFFERENCES
    values = _checked(values, bounds)
    shares = _shares_of_chips(rights, values, bounds)
    images, chips = shares.size, values.size
    if images == 1:
        return math.nan
    variance = float(shares.var(ddof=1))
    if chips > 1:
        of_squares = shares if squares is None else np.asarray(squares, np.float64) / chips
        within = float(np.mean(of_squares - shares**2)) * chips / (chips - 1)
        variance -= images / (images - 1) * (within - deviation(values) ** 2) / chips
    return math.sqrt(max(variance, 0.0) / images)


def check_level(level: float) -> None:
    """Raise ValueError where `level` is no confidence level, as 0.95 is."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a confidence level lies between 0 and 1, as 0.95")


def check_count(count: int, n: int) -> None:
    """Raise ValueError where `count` cannot be a number of successes among `n` trials."""
    if n < 1:
        raise ValueError(f"n is {n}; a share needs at least 1 trial")
    if not 0 <= count <= n or count != int(count):
        raise ValueError(f"count is {count}; of n = {n} trials it is a whole number from 0 to {n}")


def _checked(values: ArrayLike, bounds: Bounds) -> np.ndarray:
    """float64 [M] within the bounds."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values have shape {values.shape}; give one accuracy for each chip")
    outside = ~((bounds[0] <= values) & (values <= bounds[1]))
    if outside.any():
        chip = int(outside.argmax())
        raise ValueError(
            f"values: chip {chip} has {values[chip]}, outside [{bounds[0]:g}, {bounds[1]:g}]; "
            "give shares, not percent"
        )
    return values


def _shares_of_chips(rights: ArrayLike, values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """float64 [N]: rights / M, of which the mean is that of the values."""
    rights, chips = np.asarray(rights, np.float64), values.size
    if rights.ndim != 1 or not rights.size:
        raise ValueError(f"rights have shape {rights.shape}; give one count for each image")
    if not ((rights >= bounds[0] * chips) & (rights <= bounds[1] * chips)).all():
        raise ValueError(f"rights lie in {rights.min():g} to {rights.max():g}, not 0 to {chips}")
    if not math.isclose(rights.mean() / chips, values.mean(), abs_tol=1e-5):
        raise ValueError(
            f"rights say {rights.mean() / chips:.5f}, values {values.mean():.5f}; "
            "give both of the same chips and images"
        )
    return rights / chips


def _wilson(count: int, n: int, level: float) -> tuple[float, float]:
    z2 = float(scipy.stats.norm.isf((1 - level) / 2)) ** 2
    centre = (count + z2 / 2) / (n + z2)
    arm = math.sqrt(z2 * (count * (n - count) / n + z2 / 4)) / (n + z2)
    return max(centre - arm, 0.0), min(centre + arm, 1.0)


def _clopper_pearson(count: int, n: int, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = float(scipy.stats.beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(scipy.stats.beta.isf(tail, count + 1, n - count)) if count < n else 1.0
    return low, high
