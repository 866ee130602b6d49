"""What NNCF reads of a graph: found sooner, and once for several recipes, it is the same."""

from __future__ import annotations

import filecmp
import itertools
from pathlib import Path
from typing import Any

import networkx as nx
import openvino as ov
import pytest
from nncf.common import factory
from nncf.common.graph.graph_matching import find_subgraphs_matching_pattern
from nncf.common.graph.patterns import GraphPattern
from nncf.openvino.graph.metatypes import openvino_metatypes as om
from nncf.openvino.quantization.ignored_patterns import create_rope, create_sam_pe
from nncf.openvino.quantization.quantize_model import build_graph
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.compression.nncf.graph_reading import find_patterns, graphs_read_once
from llmcompress.graph.model import read_ir


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading")


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> Path:
    return build_checkpoint(place / "llama", hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def graph(place: Path, checkpoint: Path) -> Any:
    """As NNCF keeps it, of a decoder whose positions are turned."""
    llmcompress.compress(checkpoint, "none", place / "none", tokenizer=False, graph_cache=False)
    return build_graph(read_ir(place / "none"))._nx_graph


def chain(*kinds: Any) -> GraphPattern:
    """A pattern of operations one after the other."""
    pattern = GraphPattern()
    nodes = [
        pattern.add_node(**{GraphPattern.LABEL_ATTR: str(kind), GraphPattern.METATYPE_ATTR: kind}) for kind in kinds
    ]
    for before, after in itertools.pairwise(nodes):
        pattern.add_edge(before, after)
    return pattern


def several(*patterns: GraphPattern) -> GraphPattern:
    whole = patterns[0]
    for each in patterns[1:]:
        whole.add_pattern_alternative(each)
    return whole


@pytest.mark.parametrize(
    "pattern",
    [
        several(create_rope(), create_sam_pe()),
        chain(om.OVPowerMetatype, om.OVReduceMeanMetatype),
        several(chain(om.OVPowerMetatype, om.OVReduceMeanMetatype), chain(om.OVSqrtMetatype, om.OVDivideMetatype)),
        chain([om.OVSinMetatype, om.OVCosMetatype], om.OVUnsqueezeMetatype),
        chain(GraphPattern.ANY_PATTERN_NODE_TYPE, om.OVSinMetatype),
    ],
    ids=["rotary", "each layer", "alternatives", "kinds", "any"],
)
def test_patterns_are_those_that_nncf_finds(graph: Any, pattern: GraphPattern) -> None:
    expected = find_subgraphs_matching_pattern(graph, pattern, strict=False)
    assert expected
    assert sorted(map(sorted, find_patterns(graph, pattern, strict=False))) == sorted(map(sorted, expected))


def test_a_pattern_that_is_not_there(graph: Any) -> None:
    assert find_patterns(graph, chain(om.OVMatMulMetatype, om.OVSinMetatype, om.OVLSTMSequenceMetatype), False) == []
    assert find_patterns(nx.MultiDiGraph(), create_rope(), False) == []


def test_strict_patterns_see_the_whole_graph(graph: Any) -> None:
    pattern = chain(om.OVMultiplyMetatype, om.OVAddMetatype)
    strict = find_patterns(graph, pattern, strict=True)
    assert strict == find_subgraphs_matching_pattern(graph, pattern, strict=True)
    assert len(strict) < len(find_patterns(graph, pattern, strict=False))


def test_a_graph_is_read_once_for_several_recipes(
    place: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    build = factory.build_graph
    monkeypatch.setattr(factory, "build_graph", lambda model: read.append(model) or build(model))
    loaded = llmcompress.load(checkpoint)
    recipes = ("int4-sym", "int8", "nf4", "int4")

    def make(folder: str) -> None:
        for recipe in recipes:
            llmcompress.compress(loaded, recipe, place / folder / recipe, tokenizer=False, graph_cache=False)

    make("each")
    assert len(read) == len(recipes)
    with graphs_read_once():
        make("once")
    assert len(read) == len(recipes) + 1
    for recipe in recipes:
        for name in ("openvino_model.xml", "openvino_model.bin"):
            assert filecmp.cmp(place / "each" / recipe / name, place / "once" / recipe / name, shallow=False)
    make_again = place / "after"
    llmcompress.compress(loaded, "int8", make_again, tokenizer=False, graph_cache=False)
    assert len(read) == len(recipes) + 2


def test_another_model_is_read_anew(place: Path, checkpoint: Path) -> None:
    other = build_checkpoint(place / "two-layers", hidden_size=128, intermediate_size=256, num_hidden_layers=3)
    with graphs_read_once():
        for number, source in enumerate((checkpoint, other, checkpoint)):
            llmcompress.compress(source, "int4-sym", place / f"own-{number}", tokenizer=False, graph_cache=False)
    llmcompress.compress(other, "int4-sym", place / "alone", tokenizer=False, graph_cache=False)
    assert filecmp.cmp(place / "own-1" / "openvino_model.bin", place / "alone" / "openvino_model.bin", shallow=False)
    assert filecmp.cmp(place / "own-0" / "openvino_model.bin", place / "own-2" / "openvino_model.bin", shallow=False)
    assert isinstance(ov.Core().read_model(place / "own-1" / "openvino_model.xml"), ov.Model)
