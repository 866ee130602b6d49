"""What NNCF reads of a graph before it compresses: the same as by itself, in less time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmcompress.system.patching import replaced

if TYPE_CHECKING:
    import openvino as ov
    from nncf.common.graph.graph import NNCFGraph
    from nncf.common.graph.patterns import GraphPattern

_Known = dict[tuple[tuple[str, str], ...], "NNCFGraph"]
_known: _Known | None = None


@contextlib.contextmanager
def graphs_read_once() -> Iterator[None]:
    """Have NNCF read a graph once, for copies of one model that are compressed one after the other.

    Only for these do the names and kinds of operations tell the whole graph.
    """
    global _known
    _known = {}
    try:
        yield
    finally:
        _known = None


@contextlib.contextmanager
def reading_sped_up() -> Iterator[None]:
    """Have NNCF search its patterns only where they can be, and use what was read."""
    from nncf.common.graph import graph
    from nncf.openvino.quantization import quantize_model

    with (
        replaced(graph, "find_subgraphs_matching_pattern", find_patterns),
        replaced(quantize_model, "build_graph", _build),
    ):
        yield


def _build(model: ov.Model) -> NNCFGraph:
    from nncf.common.factory import build_graph

    if _known is None:
        return build_graph(model)
    key = tuple((op.get_type_name(), op.get_friendly_name()) for op in model.get_ordered_ops())
    if key not in _known:
        _known.clear()
        _known[key] = build_graph(model)
    return _known[key]


def find_patterns(graph: Any, pattern_graph: GraphPattern, strict: bool = True) -> list[list[str]]:
    """As NNCF's function of this name, of a part of the graph: the search takes time for each node that there is.

    What a pattern matches is connected, and each of its nodes is of a kind that the pattern names. Strict matches
    depend on what is around them, so that for them the graph stays whole.

    Args:
        graph: A networkx graph, as NNCF keeps it.
        pattern_graph: The patterns.
        strict: As of NNCF's function.
    """
    import networkx as nx
    from nncf.common.graph.graph_matching import _are_nodes_matched as is_of_kind
    from nncf.common.graph.graph_matching import find_subgraphs_matching_pattern

    if strict:
        return list(find_subgraphs_matching_pattern(graph, pattern_graph, strict))
    patterns = [[kind for _, kind in each.nodes(data=True)] for each in pattern_graph.get_weakly_connected_subgraphs()]
    kinds = [kind for pattern in patterns for kind in pattern]
    part = nx.MultiDiGraph()
    part.add_nodes_from(each for each in graph.nodes(data=True) if any(is_of_kind(each[1], kind) for kind in kinds))
    part.add_edges_from(edge for edge in graph.edges(keys=True, data=True) if edge[0] in part and edge[1] in part)
    possible = set[str]()
    for names in nx.weakly_connected_components(part):
        nodes = [part.nodes[name] for name in names]
        if any(all(any(is_of_kind(node, kind) for node in nodes) for kind in pattern) for pattern in patterns):
            possible |= names
    part.remove_nodes_from([name for name in part if name not in possible])
    return list(find_subgraphs_matching_pattern(part, pattern_graph, strict))
