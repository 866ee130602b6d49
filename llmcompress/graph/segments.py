"""A graph as segments that follow one another: each is run for all inputs before the next is compiled.

So what a runtime unpacks of the weights is in memory for one segment at a time. Between segments goes what later ones
take of computations with weights, which of a decoder is the residual stream; what is made of the inputs alone, as
positions and masks are, each segment makes by itself. So the runtime sees whole layers, and fuses them as in the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.graph.model import is_weight
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import openvino as ov
    from numpy.typing import NDArray

    from llmcompress.system.file_memory import FileMemory

    Inputs = Mapping[str, NDArray[Any]]
    """Of a graph, by names."""

MIN_SEGMENT_BYTES = 256 << 20
"""Of weights: compiling takes a tenth of a second, whatever the size."""
STAGE = "statistics of segments"
MATRIX_SHARE = 1 / 256
"""Of the weights' bytes, from which on a constant makes heavy what is computed with it."""


class Segment(NamedTuple):
    """Part of a graph."""

    model: ov.Model
    """Its first results are the graph's own."""
    taken: tuple[str, ...]
    """Keys of values that earlier segments left: what its last parameters are."""
    left: tuple[str, ...]
    """Keys of values for later segments: what its last results are."""


def segments(model: ov.Model, min_bytes: int = MIN_SEGMENT_BYTES) -> list[Segment]:
    """Take a graph apart where least is carried from one layer to the next.

    Args:
        model: It is used up where there is more than one segment.
        min_bytes: Of the weights of one.

    Returns:
        One segment, the whole graph, where there is no such place.
    """
    import openvino as ov

    graph = _Graph(model)
    numbers = graph.segment_numbers(min_bytes)
    num_segments = max(numbers.values(), default=0) + 1
    if num_segments == 1 or not graph.are_in_order(numbers):
        return [Segment(model, (), ())]
    carried = graph.carried(numbers)
    taken: list[dict[str, ov.op.Parameter]] = [{} for _ in range(num_segments)]
    left: list[dict[str, ov.Output]] = [{} for _ in range(num_segments)]
    for key, (value, readers) in carried.items():
        left[graph.number_of(value.get_node(), numbers)][key] = value
        for number, ports in readers.items():
            taken[number][key] = ov.opset13.parameter(value.get_partial_shape(), value.get_element_type())
            for port in ports:
                port.replace_source_output(taken[number][key].output(0))
    results, sinks = model.get_results(), model.get_sinks()
    return [
        _segment(
            model,
            [each for each in results if graph.number_of(each, numbers) == number],
            [each for each in sinks if graph.number_of(each, numbers) == number],
            taken[number],
            left[number],
        )
        for number in range(num_segments)
    ]


def infer_by_segments(
    parts: Sequence[Segment],
    inputs: Callable[[], Iterable[Inputs]],
    num_inputs: int,
    properties: Mapping[str, Any],
    take: Callable[[dict[str, NDArray[Any]]], None],
    rooms: Callable[[], FileMemory | None],
    progress: Reporter,
) -> None:
    """Infer each input with the states reset, all of them by one segment before the next.

    Args:
        parts: Of the graph.
        inputs: Gives the same ones each time.
        num_inputs: So many.
        properties: To compile with.
        take: Is given the graph's outputs of a segment and an input, by their tensors' names.
        rooms: Gives memory for what a segment leaves; None: ordinary one.
        progress: Told of each input in each segment.
    """
    carried: list[dict[str, NDArray[Any]]] = []
    for number, part in enumerate(parts):
        run, room = _Run(part, properties), rooms()
        needed = {key for later in parts[number + 1 :] for key in later.taken}
        for index, given in enumerate(inputs()):
            if number == 0:
                carried.append({})
            found, left = run(given, carried[index])
            take(found)
            kept = {key: value for key, value in carried[index].items() if key in needed}
            carried[index] = kept | {key: _put(value, room) for key, value in left.items()}
            progress(Progress(STAGE, number * num_inputs + index + 1, len(parts) * num_inputs))
        del run


def _put(value: NDArray[Any], room: FileMemory | None) -> NDArray[Any]:
    """The same in that memory, where it has room."""
    block = None if room is None else room.block(value.nbytes)
    if block is None:
        return value
    copied = block.view(value.dtype).reshape(value.shape)
    copied[...] = value
    return copied


class _Run:
    """A compiled segment."""

    def __init__(self, part: Segment, properties: Mapping[str, Any]) -> None:
        import openvino as ov

        self._part = part
        self._compiled = ov.Core().compile_model(part.model, "CPU", dict(properties))
        self._request = self._compiled.create_infer_request()

    def __call__(self, given: Inputs, carried: Inputs) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """The graph's outputs by names, and what later segments take."""
        part, ports = self._part, self._compiled.inputs
        own = ports[: len(ports) - len(part.taken)]
        fed: dict[Any, Any] = {port: next(given[name] for name in port.get_names() if name in given) for port in own}
        fed |= {port: carried[key] for port, key in zip(ports[len(own) :], part.taken, strict=True)}
        self._request.reset_state()
        found = self._request.infer(fed, share_inputs=True)
        outputs = self._compiled.outputs
        results, left = outputs[: len(outputs) - len(part.left)], outputs[len(outputs) - len(part.left) :]
        named = {name: found[port] for port in results for name in port.get_names()}
        return named, {key: found[port] for key, port in zip(part.left, left, strict=True)}


def _segment(
    model: ov.Model,
    results: Sequence[ov.op.Result],
    sinks: Sequence[ov.Node],
    taken: Mapping[str, ov.op.Parameter],
    left: Mapping[str, ov.Output],
) -> Segment:
    import openvino as ov

    outputs = [*results, *(ov.opset13.result(value) for value in left.values())]
    needed = _names_above([*outputs, *sinks])
    given = [each for each in model.get_parameters() if each.get_name() in needed]
    return Segment(ov.Model(outputs, list(sinks), [*given, *taken.values()]), tuple(taken), tuple(left))


def _names_above(ends: Sequence[ov.Node]) -> set[str]:
    """Unique names of nodes and of all that they are made of."""
    found: set[str] = set()
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node.get_name() not in found:
            found.add(node.get_name())
            pending += [value.get_node() for value in node.input_values()]
    return found


class _Graph:
    """Nodes in the order of their computation, by their unique names."""

    def __init__(self, model: ov.Model) -> None:
        self.nodes = {node.get_name(): node for node in model.get_ordered_ops()}
        self._above = {name: [v.get_node().get_name() for v in n.input_values()] for name, n in self.nodes.items()}
        total = sum(node.get_byte_size() for node in self.nodes.values() if is_weight(node))
        self._fixed: dict[str, dict[str, int]] = {}
        """What is made of constants alone: these, with the bytes of weights."""
        self.heavy: set[str] = set()
        """What is made of inputs by large constants."""
        for name, node in self.nodes.items():
            above = self._above[name]
            if node.get_type_name() == "Constant":
                self._fixed[name] = {name: node.get_byte_size() if is_weight(node) else 0}
            elif above and all(each in self._fixed for each in above):
                self._fixed[name] = {key: size for each in above for key, size in self._fixed[each].items()}
            elif any(each in self.heavy for each in above) or self._weight_bytes(name) >= total * MATRIX_SHARE > 0:
                self.heavy.add(name)

    def _weight_bytes(self, name: str) -> int:
        """Of the constants that a node takes."""
        return max((max(self._fixed[each].values()) for each in self._above[name] if self._fixed.get(each)), default=0)

    def segment_numbers(self, min_bytes: int) -> dict[str, int]:
        """Of what is heavy: on the longest way through the graph by its cuts, elsewhere by its inputs."""
        spine = self._spine()
        cuts = self._cuts(spine, min_bytes)
        numbers: dict[str, int] = {}
        number = 0
        for position, name in enumerate(spine):
            numbers[name] = number
            number += position in cuts
        for name in self.nodes:
            if name in self.heavy and name not in numbers:
                numbers[name] = max(numbers[each] for each in self._above[name] if each in self.heavy)
        return numbers | self._numbers_of_states(numbers)

    def _numbers_of_states(self, numbers: Mapping[str, int]) -> dict[str, int]:
        """Of what is made of states and inputs alone: a state is read where it is written."""
        written = {
            node.get_variable_id(): numbers.get(name, 0)
            for name, node in self.nodes.items()
            if node.get_type_name() == "Assign"
        }
        found: dict[str, int] = {}
        for name, node in self.nodes.items():
            if node.get_type_name() == "ReadValue":
                found[name] = written.get(node.get_variable_id(), 0)
            elif name not in numbers and any(each in found for each in self._above[name]):
                found[name] = max(found[each] for each in self._above[name] if each in found)
        return found

    def are_in_order(self, numbers: Mapping[str, int]) -> bool:
        """Whether no segment takes what a later one makes."""
        return all(numbers.get(each, 0) <= number for name, number in numbers.items() for each in self._above[name])

    def _spine(self) -> list[str]:
        """What the end of the longest way is made of, in order."""
        depths: dict[str, int] = {}
        for name in self.nodes:
            if name in self.heavy:
                depths[name] = 1 + max((depths[each] for each in self._above[name] if each in self.heavy), default=0)
        if not depths:
            return []
        needed = _names_above([self.nodes[max(depths, key=depths.__getitem__)]])
        return [name for name in depths if name in needed]

    def _cuts(self, spine: Sequence[str], min_bytes: int) -> set[int]:
        """Positions after which a segment ends."""
        positions = {name: position for position, name in enumerate(spine)}
        last_use: dict[tuple[str, int], int] = {}
        for name in spine:
            for value in self.nodes[name].input_values():
                if (above := value.get_node().get_name()) in positions:
                    last_use[above, value.get_index()] = positions[name]
        changes: defaultdict[int, int] = defaultdict(int)
        for (name, _), last in last_use.items():
            changes[positions[name]] += 1
            changes[last] -= 1
        num_carried, read_bytes, seen = [], [], set[str]()
        carried = read = 0
        for position, name in enumerate(spine):
            constants = {key: size for each in self._above[name] for key, size in self._fixed.get(each, {}).items()}
            read += sum(size for key, size in constants.items() if key not in seen)
            seen |= constants.keys()
            carried += changes[position]
            num_carried.append(carried)
            read_bytes.append(read)
        shares = [size / read if read else 0.0 for size in read_bytes]
        middle = [position for position, share in enumerate(shares) if 0.25 < share < 0.75]
        least = min((num_carried[position] for position in middle), default=0)
        # What ends a layer there ends one elsewhere too.
        ends = {self._kind(spine[position]) for position in middle if num_carried[position] == least}
        cuts, begun = set[int](), 0
        for position, (name, count, size) in enumerate(zip(spine, num_carried, read_bytes, strict=True)):
            is_end = 0 < count <= least and self._kind(name) in ends
            if is_end and size - begun >= min_bytes and read - size >= min_bytes:
                cuts.add(position)
                begun = size
        return cuts

    def _kind(self, name: str) -> tuple[str, str]:
        node = self.nodes[name]
        return node.get_type_name(), str(node.get_output_partial_shape(0))

    def number_of(self, node: ov.Node, numbers: Mapping[str, int]) -> int:
        """The segment of a node; of what is made of inputs alone, the first."""
        return numbers.get(node.get_name(), 0)

    def carried(self, numbers: Mapping[str, int]) -> dict[str, tuple[ov.Output, dict[int, list[ov.Input]]]]:
        """Values that other segments than their own take, by keys: with the inputs that do, by segments."""
        found: dict[str, tuple[ov.Output, dict[int, list[ov.Input]]]] = {}
        for name, number in numbers.items():
            for port in self.nodes[name].inputs():
                value = port.get_source_output()
                above = value.get_node().get_name()
                if above in numbers and numbers[above] != number:
                    readers = found.setdefault(f"{above}.{value.get_index()}", (value, {}))[1]
                    readers.setdefault(number, []).append(port)
        return found
