"""The same problem by Cooper (cooper-org/cooper, PyTorch) and by a plain loop in NumPy, iterate by iterate."""

from typing import Any, NamedTuple

import numpy as np


class Plan(NamedTuple):
    """Gradient descent on x, and how each of two constraints is held: g(x) <= 0 and h(x) = 0."""

    order: str = "simultaneous"
    form: str = "lagrangian"
    rate: float = 0.05
    step: float = 0.1
    rho: float = 2.0
    gains: tuple[float, float, float] | None = None  # kp, ki, nu of nuPI
    start: str = "zero"
    steps: int = 40


# min |A x - b|^2 / 2 + sum x^4 / 4  subject to  |x|^2 <= 1/2 and c'x = 0.3 in three unknowns.
A = np.array([[1.0, 0.5, -0.2], [0.3, 2.0, 0.4], [0.0, -0.6, 1.5]])
B = np.array([1.0, 2.0, -1.0])
C = np.array([1.0, -1.0, 0.5])
START = np.array([0.3, -0.2, 0.8])


def slope(x: np.ndarray) -> np.ndarray:
    return A.T @ (A @ x - B) + x**3


def broken(x: np.ndarray) -> np.ndarray:
    return np.array([x @ x - 0.5, C @ x - 0.3])


def jacobian(x: np.ndarray) -> np.ndarray:
    return np.stack([2 * x, C])


def by_hand(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The iterates x `(steps, 3)` and y `(steps, 2)`, from the formulas of the papers."""
    x, y, xi = START.copy(), np.zeros(2), None
    found = []

    def price(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        v = broken(x)
        if plan.form == "lagrangian":
            return y
        y = y + plan.rho * v if plan.form == "augmented" else plan.rho * v
        return np.array([max(0.0, y[0]), y[1]])

    def ascend(y: np.ndarray, v: np.ndarray) -> np.ndarray:
        nonlocal xi
        if plan.form == "penalty":
            return y
        move = plan.step * v
        if plan.gains is not None:
            kp, ki, nu = plan.gains
            before = (np.zeros(2) if plan.start == "zero" else v) if xi is None else xi
            xi = nu * before + (1 - nu) * v
            move = plan.step * (ki * v + kp * (xi - before))
        y = y + move
        return np.array([max(0.0, y[0]), y[1]])

    def descend(x: np.ndarray, at: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x - plan.rate * (slope(at) + jacobian(at).T @ price(at, y))

    for _ in range(plan.steps):
        if plan.order == "simultaneous":
            x, y = descend(x, x, y), ascend(y, broken(x))
        elif plan.order == "dual_first":
            y = ascend(y, broken(x))
            x = descend(x, x, y)
        elif plan.order == "primal_first":
            x = descend(x, x, y)
            y = ascend(y, broken(x))
        else:
            ahead, guess = descend(x, x, y), ascend(y, broken(x))
            x, y = descend(x, ahead, guess), ascend(y, broken(ahead))
        found.append((x, y))
    return np.stack([x for x, _ in found]), np.stack([y for _, y in found])


def by_cooper(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The same by Cooper's own classes, float64."""
    import cooper
    import torch
    from cooper.optim import nuPI
    from cooper.optim.torch_optimizers import ExtraSGD
    from cooper.optim.torch_optimizers.nupi_optimizer import nuPIInitType

    x = torch.nn.Parameter(torch.tensor(START))
    forms = {
        "lagrangian": cooper.formulations.Lagrangian,
        "augmented": cooper.formulations.AugmentedLagrangian,
        "penalty": cooper.formulations.QuadraticPenalty,
    }

    def constraint(kind: Any) -> Any:
        given = {}
        if plan.form != "penalty":
            given["multiplier"] = cooper.multipliers.DenseMultiplier(num_constraints=1, dtype=torch.float64)
        if plan.form != "lagrangian":
            rho = torch.tensor([plan.rho], dtype=torch.float64)
            given["penalty_coefficient"] = cooper.penalty_coefficients.DensePenaltyCoefficient(init=rho)
        return cooper.Constraint(constraint_type=kind, formulation_type=forms[plan.form], **given)

    class Problem(cooper.ConstrainedMinimizationProblem):
        def __init__(self) -> None:
            super().__init__()
            self.ball = constraint(cooper.ConstraintType.INEQUALITY)
            self.plane = constraint(cooper.ConstraintType.EQUALITY)

        def compute_cmp_state(self) -> Any:
            loss = ((torch.tensor(A) @ x - torch.tensor(B)) ** 2).sum() / 2 + (x**4).sum() / 4
            dual = plan.form != "penalty"
            ball = cooper.ConstraintState((x @ x - 0.5)[None], contributes_to_dual_update=dual)
            plane = cooper.ConstraintState((torch.tensor(C) @ x - 0.3)[None], contributes_to_dual_update=dual)
            return cooper.CMPState(loss, {self.ball: ball, self.plane: plane})

    problem = Problem()
    extra = plan.order == "extragradient"
    primal = (ExtraSGD if extra else torch.optim.SGD)([x], lr=plan.rate)
    if plan.form == "penalty":
        optimiser = cooper.optim.UnconstrainedOptimizer(problem, primal)
    else:
        step = plan.step
        if plan.gains is not None:
            kp, ki, nu = plan.gains
            kind = nuPIInitType.ZEROS if plan.start == "zero" else nuPIInitType.SGD
            dual = nuPI(
                list(problem.dual_parameters()), lr=step, Kp=torch.tensor(kp), Ki=torch.tensor(ki), ema_nu=nu,
                init_type=kind, maximize=True,
            )  # fmt: skip
        else:
            dual = (ExtraSGD if extra else torch.optim.SGD)(problem.dual_parameters(), lr=step, maximize=True)
        kinds = {
            "simultaneous": cooper.optim.SimultaneousOptimizer,
            "dual_first": cooper.optim.AlternatingDualPrimalOptimizer,
            "primal_first": cooper.optim.AlternatingPrimalDualOptimizer,
            "extragradient": cooper.optim.ExtrapolationConstrainedOptimizer,
        }
        optimiser = kinds[plan.order](problem, primal, dual)
    found = []
    for _ in range(plan.steps):
        optimiser.roll()
        multipliers = [m.weight.detach().numpy().copy() for m in problem.multipliers()]
        found.append((x.detach().numpy().copy(), np.concatenate([*multipliers, np.zeros(2 - len(multipliers))])))
    return np.stack([x for x, _ in found]), np.stack([y for _, y in found])
