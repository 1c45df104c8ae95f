"""How far two computations of self-attention in f64 may lie apart: bounds derived from their roundings."""
import math

EPSILON = 2.0**-53


def gamma(roundings):
    """The bound of Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1, on so many roundings."""
    return roundings * EPSILON / (1 - roundings * EPSILON)


def product_bounds(a, b, da, db, more_roundings=0):
    """How much two computations of the product `a b` may differ, whose factors differ by `da` and `db`, in any order of
    addition and with some roundings more."""
    inner = range(len(b))
    g = 2 * gamma(len(b) + more_roundings)

    def bound(i, j):
        return sum(
            abs(a[i][k]) * db[k][j] + da[i][k] * (abs(b[k][j]) + db[k][j])
            + g * (abs(a[i][k]) + da[i][k]) * (abs(b[k][j]) + db[k][j])
            for k in inner
        )

    return [[bound(i, j) for j in range(len(b[0]))] for i in range(len(a))]


def softmax_bounds(scores, dscores, weights, causal):
    """Likewise for the weights: relative errors of e^(s - m) are errors of s, of the difference (which is below 800 where
    the power is not 0), and two of exp; those of the sum and the division follow."""
    bounds = []
    for i, row in enumerate(scores):
        seen = range(i + 1 if causal else len(row))
        largest = max(row[j] for j in seen)
        error = [dscores[i][j] + 2 * EPSILON * (min(abs(row[j] - largest), 800) + 2) for j in seen]
        sums = max(error) + 2 * gamma(len(row) + 1)
        line = [weights[i][j] * math.expm1(error[j] + sums) + 1e-300 for j in seen]
        bounds.append(line + [0.0] * (len(row) - len(line)))
    return bounds


def transposed(matrix):
    return [list(column) for column in zip(*matrix)]


def bounds_of(case):
    """By how much the page's numbers may differ from the library's."""
    expected, zero = case["expected"], lambda matrix: [[0.0] * len(row) for row in matrix]
    bounds = {
        name: product_bounds(case["x"], case[matrix], zero(case["x"]), zero(case[matrix]))
        for name, matrix in [("q", "wq"), ("k", "wk"), ("v", "wv")]
    }
    factor = 1 / math.sqrt(len(case["wq"])) if case["scale"] == "inverse_sqrt" else 1
    # Four roundings more: the root, its inverse, and the product, on either factor.
    keys, dkeys = transposed(expected["k"]), transposed(bounds["k"])
    dots = product_bounds(expected["q"], keys, bounds["q"], dkeys, more_roundings=4)
    bounds["scores"] = [[factor * (1 + 4 * EPSILON) * bound for bound in row] for row in dots]
    bounds["weights"] = softmax_bounds(expected["scores"], bounds["scores"], expected["weights"], case["causal"])
    bounds["output"] = product_bounds(expected["weights"], expected["v"], bounds["weights"], bounds["v"])
    return bounds
