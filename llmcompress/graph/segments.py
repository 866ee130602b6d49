"""A graph as segments that follow one another: each is run for all inputs before the next is compiled.

So what a runtime unpacks of the weights is in memory for one segment at a time. Between segments goes what later ones
take of computations with weights, which of a decoder is the residual stream; what is made of the inputs alone, as
positions and masks are, each segment makes by itself. So the runtime sees whole layers, and fuses them as in the graph.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
"""Of weights."""
STAGE = "statistics of segments"
MATRIX_SHARE = 1 / 4
"""Of the median matrix, from which on a constant makes heavy what is computed with it; tables of positions are less."""


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
    graph.make_shapes_again(model, numbers)
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
        # An input that is not given is left to the runtime.
        fed: dict[Any, Any] = {
            port: given[name] for port in own for name in itertools.islice(port.get_names() & given.keys(), 1)
        }
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


def _key(value: ov.Output) -> str:
    return f"{value.get_node().get_name()}.{value.get_index()}"


def _names_above(ends: Sequence[ov.Node], but: Collection[str] = ()) -> set[str]:
    """Unique names of nodes and of all that they are made of, other than some nodes and what these are made of."""
    found: set[str] = set()
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node.get_name() not in found and node.get_name() not in but:
            found.add(node.get_name())
            pending += [value.get_node() for value in node.input_values()]
    return found


def _num_covering(uses: Sequence[tuple[int, int]], num_positions: int) -> list[int]:
    """How many values are carried from each position to the next."""
    changes = Counter(first for first, _ in uses)
    changes.subtract(last for _, last in uses)
    return list(itertools.accumulate(changes[position] for position in range(num_positions)))


def _is_matrix(node: ov.Node) -> bool:
    return sum(int(dimension) > 1 for dimension in node.get_output_shape(0)) > 1


class _Graph:
    """Nodes in the order of their computation, by their unique names."""

    def __init__(self, model: ov.Model) -> None:
        self.nodes = {node.get_name(): node for node in model.get_ordered_ops()}
        self._above = {name: [v.get_node().get_name() for v in n.input_values()] for name, n in self.nodes.items()}
        matrices = [node.get_byte_size() for node in self.nodes.values() if is_weight(node) and _is_matrix(node)]
        least = statistics.median(matrices) * MATRIX_SHARE if matrices else math.inf
        self._fixed: dict[str, dict[str, int]] = {}
        """What is made of constants alone: these, with the bytes of weights."""
        self.heavy: set[str] = set()
        """What is made of inputs by large constants."""
        self._shaped_by: dict[str, set[str]] = {}
        """What is made of inputs and of shapes alone, with what is heavy and has these shapes."""
        for name, node in self.nodes.items():
            above = self._above[name]
            if node.get_type_name() == "Constant":
                self._fixed[name] = {name: node.get_byte_size() if is_weight(node) else 0}
            elif above and all(each in self._fixed for each in above):
                self._fixed[name] = {key: size for each in above for key, size in self._fixed[each].items()}
            elif node.get_type_name() == "ShapeOf" and above[0] in self.heavy:
                self._shaped_by[name] = {above[0]}
            elif any(each in self.heavy for each in above) or self._weight_bytes(name) >= least:
                self.heavy.add(name)
            elif any(each in self._shaped_by for each in above):
                self._shaped_by[name] = set[str]().union(*(self._shaped_by.get(each, ()) for each in above))

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
                numbers[name] = max((numbers[each] for each in self._above[name] if each in self.heavy), default=0)
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
        return all(
            numbers.get(made_of, 0) <= number
            for name, number in numbers.items()
            for each in self._above[name]
            for made_of in (each, *self._shaped_by.get(each, ()))
        )

    def make_shapes_again(self, model: ov.Model, numbers: dict[str, int]) -> None:
        """Have each segment make by itself what it takes of the shapes of others' values, which the numbers then know.

        A shape that is handed over as numbers says less: what the runtime knows of a size without knowing it is lost.
        """
        for number in range(max(numbers.values()) + 1):
            ports = [
                port
                for name in [name for name, of in numbers.items() if of == number]
                for port in self.nodes[name].inputs()
                if self._is_of_other_shapes(port.get_source_output().get_node().get_name(), number, numbers)
            ]
            if ports:
                self._copy_above(model, ports, number, numbers)

    def _is_of_other_shapes(self, name: str, number: int, numbers: Mapping[str, int]) -> bool:
        return name not in numbers and any(numbers[each] != number for each in self._shaped_by.get(name, ()))

    def _copy_above(self, model: ov.Model, ports: Sequence[ov.Input], number: int, numbers: dict[str, int]) -> None:
        """Give inputs a copy of all that is above them, down to values that have shapes."""
        import openvino as ov

        sources = {_key(port.get_source_output()): port.get_source_output() for port in ports}
        above = _names_above([value.get_node() for value in sources.values()], self.heavy | numbers.keys())
        asked = [self.nodes[name].input(0) for name in self.nodes if name in above and self._asks_shape(name)]
        shaped = {_key(port.get_source_output()): port.get_source_output() for port in asked}
        stand_ins = {
            key: ov.opset13.parameter(value.get_partial_shape(), value.get_element_type())
            for key, value in shaped.items()
        }
        for port in asked:
            port.replace_source_output(stand_ins[_key(port.get_source_output())].output(0))
        given = [each for each in model.get_parameters() if each.get_name() in above]
        results = [ov.opset13.result(value) for value in sources.values()]
        copied = ov.Model(results, [*given, *stand_ins.values()]).clone()
        back = dict(zip((each.get_name() for each in stand_ins.values()), shaped.values(), strict=True))
        for port in asked:
            port.replace_source_output(back[port.get_source_output().get_node().get_name()])
        nodes = copied.get_ordered_ops()
        originals = [*(each.output(0) for each in given), *shaped.values()]
        for parameter, value in zip(copied.get_parameters(), originals, strict=True):
            parameter.output(0).replace(value)
        made = dict(zip(sources, (each.input_value(0) for each in copied.get_results()), strict=True))
        for port in ports:
            port.replace_source_output(made[_key(port.get_source_output())])
        for node in nodes:
            if node.get_type_name() == "ShapeOf" and node.input_value(0).get_node().get_name() in self.heavy:
                self.nodes[node.get_name()] = node
                numbers[node.get_name()] = number

    def _asks_shape(self, name: str) -> bool:
        return self.nodes[name].get_type_name() == "ShapeOf" and self._above[name][0] in self.heavy

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
        read_bytes, uses = self._read_bytes(spine), self._uses(spine)
        total = read_bytes[-1] if spine else 0
        middle = [position for position, size in enumerate(read_bytes) if total < 4 * size < 3 * total]
        num_carried = _num_covering(uses, len(spine))
        least = min((num_carried[position] for position in middle), default=0)
        ends = [position for position in middle if num_carried[position] == least]
        if not ends:
            return set()
        # What goes through all of them, as masks do, belongs to no layer; before it is made others may be as many.
        own = [(first, last) for first, last in uses if len(ends) == 1 or not (first <= ends[0] and last > ends[-1])]
        num_own, kinds = _num_covering(own, len(spine)), {self._kind(spine[position]) for position in ends}
        most, cuts, begun = num_own[ends[0]], set[int](), 0
        for position, (name, count, size) in enumerate(zip(spine, num_own, read_bytes, strict=True)):
            is_end = 0 < count <= most and self._kind(name) in kinds
            if is_end and size - begun >= min_bytes and total - size >= min_bytes:
                cuts.add(position)
                begun = size
        return cuts

    def _uses(self, spine: Sequence[str]) -> list[tuple[int, int]]:
        """Where each value is made, and where it is used for the last time."""
        positions = {name: position for position, name in enumerate(spine)}
        found: dict[tuple[str, int], int] = {}
        for name in spine:
            for value in self.nodes[name].input_values():
                if (above := value.get_node().get_name()) in positions:
                    found[above, value.get_index()] = positions[name]
        return [(positions[name], last) for (name, _), last in found.items()]

    def _read_bytes(self, spine: Sequence[str]) -> list[int]:
        """Of weights, up to each position."""
        seen: dict[str, int] = {}
        found, total = [], 0
        for name in spine:
            constants = {key: size for each in self._above[name] for key, size in self._fixed.get(each, {}).items()}
            total += sum(size for key, size in constants.items() if key not in seen)
            seen |= constants
            found.append(total)
        return found

    def _kind(self, name: str) -> tuple[str, str]:
        node = self.nodes[name]
        return node.get_type_name(), str(node.get_output_partial_shape(0))

    def number_of(self, node: ov.Node, numbers: Mapping[str, int]) -> int:
        """The segment of a node; of what is made of inputs alone, the first."""
        shaped_by = self._shaped_by.get(node.get_name(), ())
        return numbers.get(node.get_name(), max((numbers[each] for each in shaped_by), default=0))

    def carried(self, numbers: Mapping[str, int]) -> dict[str, tuple[ov.Output, dict[int, list[ov.Input]]]]:
        """Values that other segments than their own take, by keys: with the inputs that do, by segments."""
        found: dict[str, tuple[ov.Output, dict[int, list[ov.Input]]]] = {}
        for name, number in numbers.items():
            for port in self.nodes[name].inputs():
                value = port.get_source_output()
                above = value.get_node().get_name()
                if above in numbers and numbers[above] != number:
                    readers = found.setdefault(_key(value), (value, {}))[1]
                    readers.setdefault(number, []).append(port)
        return found
