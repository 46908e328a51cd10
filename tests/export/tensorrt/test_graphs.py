"""The BF16 graphs: what TensorRT takes, and how exact they are."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from export.onnx.bf16 import Bf16Clip, Bf16Vae
from export.onnx.checks import parity, validate
from export.onnx.graphs import GraphMismatch, clip_graph, decoder_graphs, write
from export.onnx.rewrite import tensor_types, twin
from export.tensorrt.graphs import BF16_OPSET, TEXT_GRAPH, VAE_GRAPHS
from export.tensorrt.support import unsupported
from wan.checkpoint import Checkpoint
from wan.clip import ClipVision
from wan.config import ClipConfig

KINDS_OF_CLIP = ("MatMul", "Conv", "Gemm", "Softmax", "LayerNormalization")
ALL = [TEXT_GRAPH, *VAE_GRAPHS]


@pytest.fixture(scope="module")
def vae(checkpoint):
    return Checkpoint.open(checkpoint).load_vae()


@pytest.mark.parametrize("name", ALL, ids="/".join)
def test_every_node_is_supported_by_tensorrt(graphs, name):
    model = validate(graphs[0].joinpath(*name))
    assert unsupported(model) == []
    types = tensor_types(model)
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert heavy
    assert {types[node.output[0]] for node in heavy} == {TensorProto.BFLOAT16}


@pytest.mark.parametrize("name", ALL, ids="/".join)
def test_resize_softmax_and_norms_run_in_float32(graphs, name):
    model = validate(graphs[0].joinpath(*name))
    types = tensor_types(model)
    for node in model.graph.node:
        if node.op_type in ("Resize", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt"):
            assert types[node.input[0]] != TensorProto.BFLOAT16, node.name
    kinds = {node.op_type for node in model.graph.node}
    assert "Softmax" in kinds
    assert ("Resize" in kinds) == (name[0] == "vae_decoder")


@pytest.mark.parametrize("name", ALL, ids="/".join)
def test_parity_is_recorded_for_several_shapes(graphs, name):
    recorded = graphs[1]["/".join(name)]["parity"]
    assert recorded["precision"] == "bf16"
    shapes = [tuple(row["shape"]) for row in recorded["shapes"]]
    assert len(set(shapes)) == (1 if name == TEXT_GRAPH else 3)
    assert all(0 < row["relative_rms"] < 0.06 for row in recorded["shapes"])


def test_inputs_and_outputs_are_float32_and_caches_bf16(graphs):
    model = onnx.load(graphs[0] / "vae_decoder" / "next.onnx", load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        expected = TensorProto.BFLOAT16 if "CACHE" in value.name else TensorProto.FLOAT
        assert value.type.tensor_type.elem_type == expected, value.name
    model = onnx.load(graphs[0] / "text_encoder" / "model.onnx", load_external_data=False)
    assert [v.type.tensor_type.elem_type for v in model.graph.input] == [TensorProto.INT32] * 2
    context = model.graph.output[0]
    assert context.type.tensor_type.elem_type == TensorProto.FLOAT
    assert context.type.tensor_type.shape.dim[1].dim_value == 512


def test_embeddings_are_zero_after_the_end_of_the_text_inside_the_graph(graphs):
    model = twin(onnx.load(graphs[0] / "text_encoder" / "model.onnx"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, mask = np.ones((1, 512), np.int32), np.zeros((1, 512), np.int32)
    mask[0, :9] = 1
    context = session.run(["CONTEXT"], {"IDS": ids, "MASK": mask})[0]
    assert np.abs(context[0, :9]).min(axis=1).max() > 0
    assert not context[0, 9:].any()


def test_bf16_steps_stay_close_to_float32_over_a_whole_video(vae):
    narrow = Bf16Vae(vae)
    latents = torch.randn(1, vae.config.z_dim, 5, 8, 8, generator=torch.Generator().manual_seed(4))
    cache, frames = None, []
    with torch.inference_mode():
        for t in range(5):
            out, cache = narrow.decode_step(latents[:, :, t : t + 1], cache)
            frames.append(out)
    ours, expected = torch.cat(frames, dim=2), vae.decode(latents)
    assert ours.dtype == torch.float32
    assert all(slot.dtype == torch.bfloat16 for slot in cache)
    assert float((ours - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()) < 0.05


def test_the_float32_vae_is_left_as_it_is(vae):
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    Bf16Vae(vae)
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())


def _model(node: onnx.NodeProto, kind: int, extra=()) -> onnx.ModelProto:
    shape = [1, 4, 4, 4]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        list(extra),
    )
    # The IR version that goes with the opset; the library's newest may be newer than what ONNX Runtime reads.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def test_what_tensorrt_lacks_is_found():
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2])
    resize = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up", mode="nearest")
    assert unsupported(_model(resize, TensorProto.FLOAT, [scales])) == []
    (problem,) = {line.split(";")[0] for line in unsupported(_model(resize, TensorProto.BFLOAT16, [scales]))[:1]}
    assert problem == "Resize up: x is BF16"
    cubic = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up", mode="cubic")
    assert unsupported(_model(cubic, TensorProto.FLOAT, [scales])) == [
        "Resize up: mode is 'cubic'; allowed: nearest, linear"
    ]
    unknown = helper.make_node("Det", ["x"], ["y"], name="d")
    assert unsupported(_model(unknown, TensorProto.FLOAT)) == ["Det d: operator is not supported"]


def test_a_bf16_graph_of_other_weights_is_found(graphs, vae, checkpoint):
    other = Checkpoint.open(checkpoint).load_vae()
    with torch.no_grad():
        other.decoder.conv1.weight.mul_(1.5)
    reference = decoder_graphs(other)[0]
    graph = decoder_graphs(Bf16Vae(vae))[0]
    with pytest.raises(GraphMismatch, match=r"first.onnx: differs from PyTorch by"):
        parity(graph, graphs[0] / "vae_decoder" / "first.onnx", reference, samples=1)


def test_the_twin_rounds_to_bf16():
    add = helper.make_node("Add", ["x", "x"], ["y"])
    session = onnxruntime.InferenceSession(twin(_model(add, TensorProto.BFLOAT16)).SerializeToString())
    x = np.full((1, 4, 4, 4), 1 + 2**-9, np.float32)  # not a BF16 number
    assert np.array_equal(session.run(None, {"x": x})[0], np.full_like(x, 2.0))


def test_clip_is_bf16_with_norms_and_softmax_in_float32_and_close_to_pytorch(tmp_path):
    torch.manual_seed(0)
    tower = ClipVision(ClipConfig(dim=32, num_layers=2, num_heads=2, ffn_dim=64, patch=8, image_size=32)).eval()
    before = {name: parameter.clone() for name, parameter in tower.named_parameters()}
    graph = clip_graph(Bf16Clip(tower))
    path = write(graph, tmp_path, BF16_OPSET)
    assert all(torch.equal(parameter, before[name]) for name, parameter in tower.named_parameters())
    model = validate(path)
    assert unsupported(model) == []
    types = tensor_types(model)
    kinds = {kind: {types[n.input[0]] for n in model.graph.node if n.op_type == kind} for kind in KINDS_OF_CLIP}
    assert kinds["MatMul"] | kinds["Conv"] | kinds["Gemm"] == {TensorProto.BFLOAT16}
    assert kinds["Softmax"] | kinds["LayerNormalization"] == {TensorProto.FLOAT}
    assert 0 < max(row["relative_rms"] for row in parity(graph, path, clip_graph(tower))["shapes"]) < 0.02
