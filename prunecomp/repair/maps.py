"""A map of the whole stream at each gap, for what the fit below leaves, folded into every layer above.

Where the stream y above a gap is to become ``W y``, nothing multiplies it when the model runs: above the gap it is kept
as x with ``y = M x``, M the product of the maps so far. Writers there write ``M^-1`` times what they wrote. What reads
through an RMSNorm of gain g reads ``diag(g) M / c`` of an x that is over its root mean square and nothing else, and so
does the head. Up to c, one number a gap in the place of ``rms(M x) / rms(x)``, which differs from token to token by a
few per cent, this is the mapped model; what is measured and written is what was folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from prunecomp.engine.parallel import total
from prunecomp.engine.placement import Demand, ModelShape, Placement
from prunecomp.engine.progress import Advance
from prunecomp.engine.regression import NormalEquations, token_rows
from prunecomp.errors import NumericalError, OptionError
from prunecomp.model.adapter import names_parameter
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import Overlay
from prunecomp.repair.refit import TINY, Fit, Gap, GapRecord, fit_demand, fitted_error, gaps_of
from prunecomp.repair.writers import has, overlaid, standing

MAP_RIDGE = 0.3
"""Of the map towards the identity, in units of the ridge of the fit below it and of the mean diagonal of the Gram."""

LARGEST_CONDITION = 10.0
"""Of all maps up to a gap. On real models it is 1.2 to 2.2. Rounding all folded weights of the bundled model to 16 bits
moves its logits by 0.13 % at 1, 0.23 % at 10, 0.42 % at 30 and 1.0 % at 100."""


def check_mappable(decoder: Decoder) -> None:
    """Raise :class:`OptionError` naming what no map can go through; the model may be on the meta device."""
    family = decoder.family
    problem: str | None = None
    if family.norm != "RMSNorm":
        problem = f"{family.name} reads its stream through {family.norm}, which takes out a mean that a map moves"
    elif family.mlp_norm is not None or family.raw_readers:
        problem = f"in {family.name} a norm stands between a layer's last matrix and the stream"
    elif decoder.tied:
        own, a_layer = decoder.head.weight.numel(), sum(p.numel() for p in decoder.layers[0].parameters())
        problem = (
            f"the head is tied to the embedding and would need {own:,} parameters of its own, as many as "
            f"{own / a_layer:.1f} layers have; if that is worth it, save the model with a head of its own first"
        )
    else:
        known = (*family.writers, *(path for paths in family.read for path in paths))
        for number, layer in enumerate(decoder.layers):
            matrices = (name for name, parameter in layer.named_parameters() if parameter.ndim > 1)
            stray = next((name for name in matrices if not names_parameter(known, name)), None)
            if stray is not None and problem is None:
                problem = f"nothing is known of how {stray} of layer {number} reads the stream"
    if problem is not None:
        raise OptionError(f"--repair map: {problem}; or use --repair joint")


def demand_of(decoder: Decoder, shape: ModelShape, repair: str, models: int = 1) -> Demand:
    """The memory of a repair beside a pass of both streams: that of the fit, and with a map all weights once more for
    each of the ``models`` that are held at once."""
    fit = fit_demand(decoder, shape, joint=repair != "refit")
    if repair != "map":
        return fit
    weights = shape.num_layers * shape.layer_nbytes + shape.outer_nbytes
    if shape.itemsize < 4:  # the float32 that they are rounded from stays beside them
        weights += weights * 4 // shape.itemsize
    return Demand(lambda num_tokens: fit.nbytes(num_tokens) + models * weights, fit.boundaries)


def check_placed(placement: Placement) -> None:
    """Raise :class:`OptionError` where layers are streamed: what stands in for them has to stay on the device."""
    if placement.group_size is not None:
        raise OptionError(
            "--repair map puts new weights into every layer above the lowest gap, and they have no room here: layers "
            "are streamed; give more --device-memory, or use --repair joint"
        )


class MapFit(Fit):
    """The walk from gap to gap, in the basis that the maps so far leave."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        decoder = self.decoder
        self.map = torch.eye(decoder.hidden_size, dtype=torch.float64, device=decoder.device)
        self.ratio: float | None = None
        """c of the last map; None below the first."""
        self.folded = 0
        """Position of the lowest survivor that is not in the map's basis yet."""

    @property
    def work(self) -> int:
        """The layer below the highest gap is run once more, as it was fitted."""
        gaps = gaps_of(self.streams.pruned.stack)
        return super().work + (bool(gaps) and gaps[-1].below >= 0) * self.streams.sweeper.windows.count

    def close(self, gap: Gap, advance: Advance) -> GapRecord:
        stack, pruned = self.streams.pruned.stack, self.streams.pruned
        above = sum(1 for layer in stack.alive if layer < gap.above)
        self._fold(above)
        record = super().close(gap, advance)
        if gap.below < 0:
            return record
        pruned.carry(above, advance)
        sums = NormalEquations.empty(self.decoder.hidden_size, self.decoder.hidden_size, self.decoder.device)
        for batch in self.streams.sweeper.batches:
            y = self.as_fitted(token_rows(batch, pruned.get(batch)))
            sums.add(y, y, token_rows(batch, self.streams.dense.get(batch)))
        sums = sums.summed()
        missing = sums.missing(record.scale)
        change = sums.solve(MAP_RIDGE * self.ridge, missing)
        self.map = self.map + change.T @ self.map
        condition = float(torch.linalg.cond(self.map))
        if not condition <= LARGEST_CONDITION:
            raise NumericalError(
                f"--repair map: above layer {gap.layers[-1]} the map has a condition number of {condition:.3g}, and "
                f"past {LARGEST_CONDITION:g} roundings count; give a larger --ridge than {self.ridge:g}, more "
                "--samples, or use --repair joint"
            )
        self.ratio = self._ratio()
        after = fitted_error(sums, record.scale, missing, change)
        return replace(record, error_after=after, condition=condition)

    def as_fitted(self, stream: torch.Tensor) -> torch.Tensor:
        if self.ratio is None:
            return stream
        work = torch.promote_types(stream.dtype, torch.float32)
        return stream.to(work) @ self.map.to(work).T

    def as_run(self, change: torch.Tensor) -> torch.Tensor:
        return change if self.ratio is None else torch.linalg.solve(self.map, change.T).T

    def _ratio(self) -> float:
        """The c that minimises ``sum (rms(M x) / rms(x) / c - 1)^2`` over tokens."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.decoder.device)
        for batch in self.streams.sweeper.batches:
            x = token_rows(batch, self.streams.pruned.get(batch)).double()
            ratio = (x @ self.map.T).norm(dim=1) / x.norm(dim=1).clamp(min=TINY)
            sums += torch.stack([ratio.square().sum(), ratio.sum()])
        squares, ratios = total(sums).tolist()
        return float(squares / ratios)

    def _fold(self, position: int) -> None:
        """Bring the survivors below ``position`` that are not yet into the basis of the maps so far."""
        for layer in self.streams.pruned.stack.alive[self.folded : position]:
            if self.ratio is not None:
                self._set(overlaid(self.streams.pruned.stack, layer, self._in_basis(layer)))
        self.folded = position

    def _in_basis(self, layer: int) -> dict[str, torch.Tensor]:
        decoder, family, module = self.decoder, self.decoder.family, self.decoder.layers[layer]

        def there(name: str) -> torch.Tensor:
            return standing(decoder, self.streams.pruned.stack, layer, name).to(decoder.device)

        tensors: dict[str, torch.Tensor] = {}
        for norm, paths in zip(family.readers, family.read, strict=True):
            names = [f"{path}.weight" for path in paths if has(module, path)]
            tensors |= self._read_through(f"{norm}.weight", names, there)
        for full in decoder.writer_tensors(layer):
            name = full.removeprefix(f"{family.layers}.{layer}.")
            tensors[name] = torch.linalg.solve(self.map, there(name)).cpu().contiguous()  # columns lie together
        return tensors

    def _read_through(
        self, norm: str, names: Iterable[str], there: Callable[[str], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Matrices that read through a norm, its gain folded into them."""
        assert self.ratio is not None
        offset = self.decoder.family.gain_offset
        gain = there(norm) + offset
        read = {name: (there(name) * gain @ self.map / self.ratio).cpu() for name in names}
        return {norm: torch.full_like(gain, 1.0 - offset).cpu(), **read}

    def finish(self) -> None:
        decoder, family = self.decoder, self.decoder.family
        self._fold(len(self.streams.pruned.stack.alive))
        if self.ratio is None:
            return
        norm, head = f"{family.final_norm}.weight", f"{family.head}.weight"
        tensors = self._read_through(norm, [head], lambda name: decoder.stored(name).double().to(decoder.device))
        top, stack = Overlay({name: tensor.float() for name, tensor in tensors.items()}), self.streams.pruned.stack
        self._set(replace(stack, overlays={**stack.overlays, stack.num_layers: top}))
