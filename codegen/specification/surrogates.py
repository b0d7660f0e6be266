"""The surrogates: one class each, which states its gradient and, where it has one, its smooth primitive.

The gradient stands for the derivative of the spike in back-propagation; the primitive is a smooth function with that
derivative, which `spiking=False` puts in the place of the spike. x is h - v_threshold. Every gradient is finite for every
finite x in float32: forms that overflow are avoided. To add a surrogate, add a class here and name it in SURROGATES.
"""

from __future__ import annotations

import math
from typing import Any

from ..graph.expr import series, where
from .base import FINITE, NOT_NEGATIVE, POSITIVE, Float, Range, Surrogate

# What a class needs, whoever writes it.
__all__ = ["POSITIVE", "SURROGATES", "Float", "Range", "Surrogate", "series", "where"]

ALPHA = "steepness"
HALF_PI = math.pi / 2
WHOLE = 2.0**53  # at and beyond this every double is a whole number


def logistic(x: Any) -> Any:
    """1 / (1 + e^-x), without overflow or cancellation at either end."""
    e = (-x.abs()).exp()
    return where(x >= 0, 1 / (1 + e), e / (1 + e))


def logistic_slope(x: Any) -> Any:
    """The derivative of logistic."""
    e = (-x.abs()).exp()
    return e / ((1 + e) * (1 + e))


def normal(x: Any, sigma: Any) -> Any:
    """The normal density of mean 0."""
    z = x / sigma
    return (z * z * -0.5).exp() * (1 / math.sqrt(2 * math.pi)) / sigma


def sign(x: Any, magnitude: Any) -> Any:
    """The magnitude with the sign of x."""
    return where(x < 0, -magnitude, magnitude)


class Sigmoid(Surrogate):
    name = "sigmoid"
    gradient_text = "alpha L(alpha x) (1 - L(alpha x))"
    primitive_text = "L(alpha x)"
    parameters = (Float("alpha", 4.0, ALPHA, POSITIVE),)

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return logistic_slope(p.alpha * x) * p.alpha

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        return logistic(p.alpha * x)


class ATan(Surrogate):
    name = "atan"
    gradient_text = "alpha / (2 (1 + (pi/2 alpha x)^2))"
    primitive_text = "atan(pi/2 alpha x) / pi + 1/2"
    parameters = (Float("alpha", 2.0, ALPHA, POSITIVE),)
    source = "Fang et al., ICCV 2021"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        z = HALF_PI * p.alpha * x
        return p.alpha * 0.5 / (1 + z * z)

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        return (HALF_PI * p.alpha * x).atan() * (1 / math.pi) + 0.5


class PiecewiseQuadratic(Surrogate):
    name = "piecewise_quadratic"
    gradient_text = "max(0, alpha - alpha^2 |x|)"
    primitive_text = "0 for x < -1/alpha; 1 for x > 1/alpha; else -alpha^2/2 x^2 sgn(x) + alpha x + 1/2"
    parameters = (Float("alpha", 1.0, ALPHA, POSITIVE),)
    source = "Esser et al., PNAS 2016"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        y = p.alpha * (1 - p.alpha * x.abs())
        return where(y < 0, 0.0, y)

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        z = p.alpha * x
        inside = z - sign(z, z * z * 0.5) + 0.5
        return where(z < -1, 0.0, where(z > 1, 1.0, inside))


class PiecewiseExp(Surrogate):
    name = "piecewise_exp"
    gradient_text = "alpha/2 e^(-alpha |x|)"
    primitive_text = "H(x) - sgn(x)/2 e^(-alpha |x|)"
    parameters = (Float("alpha", 1.0, ALPHA, POSITIVE),)
    source = "Neftci et al., 2019"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return (-(p.alpha * x.abs())).exp() * (p.alpha * 0.5)

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        e = (-(p.alpha * x.abs())).exp() * 0.5
        return where(x < 0, e, 1 - e)


class SoftSign(Surrogate):
    name = "soft_sign"
    gradient_text = "1 / (2 alpha (1/alpha + |x|)^2)"
    primitive_text = "(alpha x / (1 + |alpha x|) + 1) / 2"
    parameters = (Float("alpha", 2.0, ALPHA, POSITIVE),)

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        d = 1 + p.alpha * x.abs()  # a / (2 (1 + a|x|)^2), which cannot overflow for small a
        return p.alpha * 0.5 / (d * d)

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        d = 1 + p.alpha * x.abs()
        return where(x < 0, 0.5 / d, 1 - 0.5 / d)


class SuperSpike(Surrogate):
    name = "super_spike"
    gradient_text = "alpha / (1 + |x|)^2"
    parameters = (Float("alpha", 1.0, "height", POSITIVE),)
    source = "Zenke and Ganguli, 2018"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        d = 1 + x.abs()
        return p.alpha / (d * d)


class Erf(Surrogate):
    name = "erf"
    gradient_text = "alpha/sqrt(pi) e^(-(alpha x)^2)"
    primitive_text = "erfc(-alpha x) / 2"
    parameters = (Float("alpha", 2.0, ALPHA, POSITIVE),)
    source = "Yin et al., 2020"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        z = p.alpha * x
        return (-(z * z)).exp() * (p.alpha * (1 / math.sqrt(math.pi)))

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        return (-(p.alpha * x)).erfc() * 0.5


class NonzeroSignLogAbs(Surrogate):
    name = "nonzero_sign_log_abs"
    gradient_text = "1 / (1/alpha + |x|)"
    primitive_text = "sgn(x) ln(alpha |x| + 1)"
    parameters = (Float("alpha", 1.0, ALPHA, POSITIVE),)

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return p.alpha / (1 + p.alpha * x.abs())

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        return sign(x, (p.alpha * x.abs() + 1).log())


class PiecewiseLeakyReLU(Surrogate):
    name = "piecewise_leaky_relu"
    gradient_text = "1/(2 w) for |x| < w; else c"
    primitive_text = "c x + c w for x < -w; c x - c w + 1 for x > w; else x/(2 w) + 1/2"
    parameters = (Float("w", 1.0, "half-width", POSITIVE), Float("c", 0.01, "slope outside", NOT_NEGATIVE))
    source = "Wu et al., 2018; Yin et al., 2017"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return where(x.abs() < p.w, 0.5 / p.w, p.c)

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        inside = x / (2 * p.w) + 0.5
        return where(x < -p.w, p.c * x + p.c * p.w, where(x > p.w, p.c * x - p.c * p.w + 1, inside))


def _turns(x: Any, p: Any) -> Any:
    """The fraction of the period at x, so that the argument of a cosine stays small."""
    y = x / p.T_period
    return where(y.abs() < WHOLE, y - y.floor(), 0.0)


class SquarewaveFourierSeries(Surrogate):
    name = "squarewave_fourier_series"
    gradient_text = "4/T_period sum_{i=1}^{n-1} cos((2i - 1) 2 pi x/T_period)"
    primitive_text = "1/2 + 2/pi sum_{i=1}^{n-1} sin((2i - 1) 2 pi x/T_period) / (2i - 1)"
    parameters = (
        Float("n", 2.0, "number of terms plus one", Range(2, 2**24, integer=True)),
        Float("T_period", 8.0, "period", POSITIVE),
    )

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        turns = _turns(x, p)
        return series(p.n, lambda i: ((2 * i - 1) * turns * (2 * math.pi)).cos()) * (4 / p.T_period)

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        turns = _turns(x, p)
        return series(p.n, lambda i: ((2 * i - 1) * turns * (2 * math.pi)).sin() / (2 * i - 1)) * (2 / math.pi) + 0.5


class S2NN(Surrogate):
    name = "s2nn"
    gradient_text = "alpha L(alpha x) (1 - L(alpha x)) for x < 0; else beta/(x + 1)"
    primitive_text = "L(alpha x) for x < 0; else beta ln(|x + 1| + 1e-5) + 1/2"
    parameters = (Float("alpha", 4.0, ALPHA + " below 0", POSITIVE), Float("beta", 1.0, "height above 0", FINITE))
    source = "Suetake et al., 2022"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return where(x < 0, logistic_slope(p.alpha * x) * p.alpha, p.beta / (x.abs() + 1))

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        return where(x < 0, logistic(p.alpha * x), p.beta * ((x + 1).abs() + 1e-5).log() + 0.5)


class QPseudoSpike(Surrogate):
    name = "q_pseudo_spike"
    gradient_text = "(1 + 2|x|/(alpha - 1))^-alpha"
    primitive_text = "H(x) - sgn(x)/2 (1 + 2|x|/(alpha - 1))^(1 - alpha)"
    parameters = (Float("alpha", 2.0, "tail: heavier when smaller", Range(1, low_open=True)),)
    source = "Herranz-Celotti and Rouat, 2022"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return ((1 + 2 * x.abs() / (p.alpha - 1)).log() * -p.alpha).exp()

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        y = ((1 + 2 * x.abs() / (p.alpha - 1)).log() * (1 - p.alpha)).exp() * 0.5
        return where(x < 0, y, 1 - y)


class LeakyKReLU(Surrogate):
    name = "leaky_k_relu"
    gradient_text = "k for x >= 0; else leak"
    primitive_text = "k x for x >= 0; else leak x"
    parameters = (Float("leak", 0.0, "slope below 0", NOT_NEGATIVE), Float("k", 1.0, "slope above 0", POSITIVE))

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return where(x >= 0, p.k, p.leak)

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        return where(x >= 0, p.k, p.leak) * x


class FakeNumericalGradient(Surrogate):
    name = "fake_numerical_gradient"
    gradient_text = "alpha for x = 0; else min((2 H(x) - 1)/x, alpha)"
    parameters = (Float("alpha", 0.3, "largest value", POSITIVE),)

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        y = 1 / x.abs()
        return where(y > p.alpha, p.alpha, y)


class LogTailedReLU(Surrogate):
    name = "log_tailed_relu"
    gradient_text = "alpha for x <= 0; 1 for x <= 1; else 1/x"
    primitive_text = "alpha x for x <= 0; x for x <= 1; else ln(x) + 1"
    parameters = (Float("alpha", 0.0, "slope below 0", NOT_NEGATIVE),)
    source = "Cai et al., 2017"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return where(x <= 0, p.alpha, where(x <= 1, 1.0, 1 / x))

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        above = where(x <= 1, 1.0, x)  # the logarithm never sees a number below 1
        return where(x <= 0, p.alpha * x, where(x <= 1, x, above.log() + 1))


class Rect(Surrogate):
    name = "rect"
    gradient_text = "alpha for |x| < 1/(2 alpha); else 0"
    primitive_text = "clamp(alpha x + 1/2, 0, 1)"
    parameters = (Float("alpha", 1.0, "height; 1 / alpha is the width", POSITIVE),)
    source = "Wu et al., 2018"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return where(x.abs() < 0.5 / p.alpha, p.alpha, 0.0)

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        y = p.alpha * x + 0.5
        return where(y < 0, 0.0, where(y > 1, 1.0, y))


class FastSigmoid(Surrogate):
    name = "fast_sigmoid"
    gradient_text = "1 / (1 + slope |x|)^2"
    parameters = (Float("slope", 25.0, "steepness", POSITIVE),)
    source = "Zenke and Ganguli, 2018; snnTorch"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        d = 1 + p.slope * x.abs()
        return 1 / (d * d)


class Triangle(Surrogate):
    name = "triangle"
    gradient_text = "max(0, gamma (1 - |x|))"
    parameters = (Float("gamma", 1.0, "height", POSITIVE),)
    source = "Bellec et al., 2018; Norse"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        y = p.gamma * (1 - x.abs())
        return where(y < 0, 0.0, y)


class Gaussian(Surrogate):
    name = "gaussian"
    gradient_text = "scale N(x; 0, sigma)"
    parameters = (Float("sigma", 0.5, "width", POSITIVE), Float("scale", 1.0, "factor", FINITE))
    source = "Yin et al., 2020"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return p.scale * normal(x, p.sigma)


class MultiGaussian(Surrogate):
    name = "multi_gaussian"
    gradient_text = "scale ((1 + h) N(x; 0, sigma) - h N(x; sigma, s sigma) - h N(x; -sigma, s sigma))"
    parameters = (
        Float("sigma", 0.5, "width", POSITIVE),
        Float("h", 0.15, "depth of the side lobes", NOT_NEGATIVE),
        Float("s", 6.0, "width of the side lobes over sigma", POSITIVE),
        Float("scale", 1.0, "factor", FINITE),
    )
    source = "Yin, Corradi and Bohte, 2021"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        wide = p.s * p.sigma
        lobes = normal(x - p.sigma, wide) + normal(x + p.sigma, wide)
        return p.scale * ((1 + p.h) * normal(x, p.sigma) - p.h * lobes)


class SingleExponential(Surrogate):
    name = "single_exponential"
    gradient_text = "1/grad_width e^(-|x|/grad_width)"
    parameters = (Float("grad_width", 0.5, "width", POSITIVE),)
    source = "Shrestha and Orchard, 2018; Sinabs"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return (-(x.abs() / p.grad_width)).exp() / p.grad_width


class PeriodicExponential(Surrogate):
    name = "periodic_exponential"
    gradient_text = "scale e^(x/grad_width) for x < 0; else scale e^(-2 |x - period floor(x/period + 1/2)|/grad_width)"
    parameters = (
        Float("grad_width", 0.5, "width below the threshold; half of it is that above", POSITIVE),
        Float("period", 1.0, "distance of the peaks above the threshold: v_threshold, for max_spikes", POSITIVE),
        Float("scale", 1.0, "height", FINITE),
    )
    source = "Weidel and Sheik, 2021; Sinabs"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        above = 2 * (x - p.period * (x / p.period + 0.5).floor()).abs()
        return p.scale * (-(where(x < 0, x.abs(), above) / p.grad_width)).exp()


class StraightThrough(Surrogate):
    name = "straight_through"
    gradient_text = "1"
    source = "Bengio et al., 2013"

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return 1.0


SURROGATES: tuple[type[Surrogate], ...] = (
    Sigmoid,
    ATan,
    PiecewiseQuadratic,
    PiecewiseExp,
    SoftSign,
    SuperSpike,
    Erf,
    NonzeroSignLogAbs,
    PiecewiseLeakyReLU,
    SquarewaveFourierSeries,
    S2NN,
    QPseudoSpike,
    LeakyKReLU,
    FakeNumericalGradient,
    LogTailedReLU,
    Rect,
    FastSigmoid,
    Triangle,
    Gaussian,
    MultiGaussian,
    SingleExponential,
    PeriodicExponential,
    StraightThrough,
)
