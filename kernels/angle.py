"""The angular distance in float32 from operations that exist everywhere Triton runs, its interpreter included."""

import triton
import triton.language as tl


@triton.jit
def angle(cosine):
    """``acos(cosine) / pi`` for a cosine clamped to -1..1, to 1e-7 and, near 1, to a few roundings of the result.

    ``acos(c) = sqrt(1 - c) * P(c)`` for 0 <= c <= 1 with polynomial 4.4.46 of Abramowitz and Stegun (error 2e-8),
    and ``pi - acos(-c)`` below. One path for all values: the two of Cephes' asinf take twice the registers.
    """
    size = tl.minimum(tl.abs(cosine), 1.0)
    poly = -0.0012624911 * size + 0.0066700901
    poly = poly * size - 0.0170881256
    poly = poly * size + 0.0308918810
    poly = poly * size - 0.0501743046
    poly = poly * size + 0.0889789874
    poly = poly * size - 0.2145988016
    poly = poly * size + 1.5707963050
    result = tl.sqrt(1.0 - size) * poly * 0.318309886183791
    return tl.where(cosine < 0.0, 1.0 - result, result)
