"""A pruned model as data: the layers that survive, and the scale of the stream entering each of them."""

from __future__ import annotations

from dataclasses import dataclass

from prunecomp.errors import OptionError


@dataclass(frozen=True)
class LayerStack:
    """Surviving layers with their seams, over weights that are never touched.

    ``alive`` holds original layer indices in order. ``seams[p]`` multiplies the residual stream on its way into
    ``alive[p]``. A seam above the last survivor is dropped: the final norm absorbs it.
    """

    num_layers: int
    alive: tuple[int, ...]
    seams: tuple[float, ...]

    @classmethod
    def dense(cls, num_layers: int) -> LayerStack:
        return cls(num_layers, tuple(range(num_layers)), (1.0,) * num_layers)

    @property
    def removed(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.num_layers)) - set(self.alive)))

    def position(self, layer: int) -> int:
        """Where an original layer stands among the survivors; raises :class:`OptionError` if it is gone."""
        try:
            return self.alive.index(layer)
        except ValueError:
            raise OptionError(f"layer {layer} is not among the surviving layers {list(self.alive)}") from None

    def remove(self, layer: int, scale: float = 1.0) -> LayerStack:
        """The stack without ``layer``, its place taken by a seam of ``scale``.

        Seams that meet multiply: the stream below the layer now runs through the layer's own seam, the new one and
        the one above it.
        """
        p = self.position(layer)
        seams = list(self.seams)
        merged = seams.pop(p) * scale
        if p < len(seams):
            seams[p] *= merged
        return LayerStack(self.num_layers, self.alive[:p] + self.alive[p + 1 :], tuple(seams))

    def seam_product_below(self) -> tuple[float, ...]:
        """For each survivor the product of all seams from the bottom up to and including its own."""
        products, product = [], 1.0
        for seam in self.seams:
            product *= seam
            products.append(product)
        return tuple(products)

    def seam_product_above(self) -> tuple[float, ...]:
        """For each survivor the product of all seams strictly above it."""
        products, product = [], 1.0
        for seam in reversed(self.seams):
            products.append(product)
            product *= seam
        return tuple(reversed(products))

    def seam_product(self) -> float:
        product = 1.0
        for seam in self.seams:
            product *= seam
        return product
