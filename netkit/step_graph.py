"""A training step on a GPU as one CUDA graph, where that is found to do what the step does.

A step of adversarial training of a small network is thousands of kernels of a few microseconds each, which a GPU runs
faster than Python starts them. A graph, recorded once, starts them all in one call. The update of the weights stays
outside: the GPU is still busy with the graph when Python starts it, and any optimiser will do.

A graph repeats what was recorded. Decisions made in Python, and draws from generators that are not the GPU's, stay as
they were. So the first steps, and later one an epoch, are made both ways, from the same state, and their gradients and
buffers are compared.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from netkit.randomness import seeded_globally

Step = Callable[[Tensor], Tensor]
"""(images' numbers (B,)) -> some results; it leaves new gradients in the parameters."""

_CHECKED_STEPS = 2  # the second with other images and other draws than those of the recording
_TOLERANCE = 0.01  # of the length of all gradients; the sign in an attack makes much of rounding errors
_SPREAD = 3.0  # times what two plain steps differ by, where a GPU's sums change their order


class StepGraph:
    """`step` for batches of `batch_size`, as a graph from the third on, unless that gives anything else.

    What a call returns, and the gradients, are overwritten by the next. Where the step cannot be recorded, or the graph
    differs, a warning of one line says so, and steps are made one by one.
    """

    def __init__(self, step: Step, module: nn.Module, generators: Collection[torch.Generator], batch_size: int) -> None:
        self.step, self.module, self.generators, self.batch_size = step, module, generators, batch_size
        self.parameters = list(module.parameters())
        self.checks_left = _CHECKED_STEPS
        self.is_used = True
        self._index = torch.zeros(0)
        self._gradients: list[Tensor | None] = []
        self._result = torch.zeros(0)
        self._run: Callable[[], None] | None = None

    def __call__(self, index: Tensor) -> Tensor:
        if not self.is_used or len(index) != self.batch_size:
            return self.step(index)
        if self.checks_left > 0:
            self.checks_left -= 1
            self._check(index)
            return self.step(index)
        return self._replay(index)

    def check_again(self) -> None:
        """Compare the next step, too: what decides in Python may have changed since the recording."""
        self.checks_left = max(self.checks_left, 1)

    def _replay(self, index: Tensor) -> Tensor:
        assert self._run is not None
        self._index.copy_(index)
        self._run()
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._result

    def _check(self, index: Tensor) -> None:
        """Make the step plainly and as a graph, both from the state that is there, and bring that back."""
        state = _State(self.module, self.generators)
        plain = self._outcome(state, self.step, index)
        try:
            if self._run is None:
                self._record(index)
                state.restore()
            found = self._outcome(state, self._replay, index)
        except RuntimeError as error:
            state.restore()
            self._give_up(f"this step cannot be recorded: {str(error).strip().splitlines()[0]}")
            return
        again: dict[str, list[Tensor]] | None = None
        for name, expected in plain.items():
            distance = _distance(found[name], expected)
            if distance <= _TOLERANCE * _length(expected):
                continue
            again = again or self._outcome(state, self.step, index)
            if not distance <= _SPREAD * _distance(again[name], expected):  # written so that NaN fails too
                self._give_up(f"one recorded gives other {name}, as if it decided or drew numbers outside the GPU")
                return

    def _outcome(self, state: "_State", step: Step, index: Tensor) -> dict[str, list[Tensor]]:
        with seeded_globally(0):
            step(index)
        gradients = [parameter.grad.clone() for parameter in self.parameters if parameter.grad is not None]
        buffers = [buffer.clone() for buffer in self.module.buffers() if buffer.is_floating_point()]
        state.restore()
        return {"gradients": gradients, "buffers": buffers}

    def _record(self, index: Tensor) -> None:
        self._index = index.clone()
        with seeded_globally(1):  # another seed than that of the comparison, to find what follows it in Python
            self._run, self._result = record(lambda: self.step(self._index), self.generators)
        self._gradients = [parameter.grad for parameter in self.parameters]

    def _give_up(self, reason: str) -> None:
        self.is_used, self._run = False, None
        warnings.warn(f"training goes on without a CUDA graph, as {reason}", stacklevel=2)


def is_available(device: torch.device) -> bool:
    """Whether steps on `device` can be recorded."""
    return device.type == "cuda"


def record(run: Callable[[], Tensor], generators: Collection[torch.Generator]) -> tuple[Callable[[], None], Tensor]:
    """Record the GPU's work in `run`, which draws from its default generator and from `generators`.

    Returns a function that repeats the work, with the generators' next draws, and the result that it overwrites.
    Raises RuntimeError where `run` waits for the GPU, or does anything else that cannot be recorded.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # libraries choose their algorithms and make their handles, which they may not do while recording
        with _waiting_refused():
            run()
    torch.cuda.current_stream().wait_stream(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # later releases of torch do this by themselves
        for generator in generators:
            graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=stream):
            result = run()
    except RuntimeError:
        # A recording that ends early leaves its generators as if it went on: the next draw would fail.
        for generator in (*generators, torch.cuda.default_generators[torch.cuda.current_device()]):
            generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph.replay, result


@contextlib.contextmanager
def _waiting_refused() -> Iterator[None]:
    """Inside the block a read of the GPU is an error, which leaves all as it was; while recording it would not."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _State:
    """All that a step changes before the update: the buffers of the module and the generators."""

    def __init__(self, module: nn.Module, generators: Collection[torch.Generator]) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        self._generators = [(generator, generator.get_state()) for generator in generators]

    def restore(self) -> None:
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        for generator, state in self._generators:
            generator.set_state(state)


def _length(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt()) if tensors else 0.0


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return _length([one - other for one, other in zip(first, second, strict=True)])
