"""Where values stop being finite in a run that takes no statistics: looked for once a loss is not finite."""

from __future__ import annotations

from prunecomp.data.windows import Windows
from prunecomp.engine.parallel import Workers
from prunecomp.engine.placement import Placement
from prunecomp.engine.sinks import LayerSink, remedy
from prunecomp.engine.states import StateStore
from prunecomp.engine.sweep import Sweeper
from prunecomp.errors import NumericalError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack


def overflow(
    decoder: Decoder, stack: LayerStack, windows: Windows, first: int, sequence: int, placement: Placement
) -> NumericalError:
    """What there is to say of a ``sequence`` of the ``windows`` that has no finite loss: it is run again, alone and
    measured. ``first`` is where the windows stand in a larger set."""
    alone = windows.take(slice(sequence, sequence + 1))
    sweeper = Sweeper(decoder, alone, placement)
    states = StateStore(sweeper.state_shape, decoder.device, {}, carry=placement.carry, disk=placement.disk_folder)
    measured = LayerSink(alone, Workers(1), first=first + sequence)
    try:
        with decoder.evaluating():
            sweeper.sweep(stack, 0, states, [measured])
    except NumericalError as error:
        return NumericalError(f"{windows.source}: {error}")
    return NumericalError(
        f"{windows.source}: sequence {first + sequence} has no finite loss, though what leaves each layer is finite. "
        f"{remedy(decoder.dtype, 'weights of final norm and head')}"
    )
