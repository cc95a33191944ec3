"""Sets, moves inside them, proximal maps and Bregman divergences."""

from pdopt.geometry.balls import L1Ball, L2Ball, Simplex
from pdopt.geometry.calculus import Conjugate, Indicator, Scaled, Separable, Translated
from pdopt.geometry.cones import SecondOrderCone
from pdopt.geometry.divergences import Bregman, Divergence, FermiDirac, ItakuraSaito, KullbackLeibler, SquaredEuclidean
from pdopt.geometry.entropic import Entropic
from pdopt.geometry.moves import Euclidean, Interval, Move, Proximal, Sign
from pdopt.geometry.products import Product
from pdopt.geometry.proximals import L1, L2, Function, Linear, Linf, NegativeEntropy, Quadratic, Zero
from pdopt.geometry.sets import Box, ConvexSet, LinfBall, Orthant, Reals

__all__ = [
    "L1",
    "L2",
    "Box",
    "Bregman",
    "Conjugate",
    "ConvexSet",
    "Divergence",
    "Entropic",
    "Euclidean",
    "FermiDirac",
    "Function",
    "Indicator",
    "Interval",
    "ItakuraSaito",
    "KullbackLeibler",
    "L1Ball",
    "L2Ball",
    "Linear",
    "Linf",
    "LinfBall",
    "Move",
    "NegativeEntropy",
    "Orthant",
    "Product",
    "Proximal",
    "Quadratic",
    "Reals",
    "Scaled",
    "SecondOrderCone",
    "Separable",
    "Sign",
    "Simplex",
    "SquaredEuclidean",
    "Translated",
    "Zero",
]
