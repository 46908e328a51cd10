"""`python -m tests.wan.cuda.inductor VARIANT LINEAR [fused]`: what Inductor makes of one block for sm_90, as JSON.

{"kernels": [[name, GB], ...], "calls": [...]}: fused kernels with the bytes they move, our own among them where blocks are
"fused", and the products between them.
"""

import json
import re
import sys

import torch
from torch._dynamo import device_interface
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor import config
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from tests.wan.cuda import pretended
from wan import fp8, optimize
from wan.compile import OPTIONS
from wan.dit import Source
from wan.fusion.blocks import FusedBlock

TOKENS = 32760  # 832x480, 81 frames
TEXT = 512


def pretend_to_compile() -> None:
    """What Inductor asks of CUDA and of Triton before it writes code."""
    import torch.utils._triton
    import triton
    from triton.backends.compiler import GPUTarget

    pretended.install()
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
    torch.cuda.get_device_name, torch.version.cuda = lambda *_: "NVIDIA H200", "13.0"
    worker, interface = device_interface.CudaInterface.Worker, device_interface.CudaInterface
    worker.get_device_properties = staticmethod(lambda device=None: pretended.PROPERTIES)
    worker.current_device = staticmethod(lambda: 0)
    interface.get_device_properties = staticmethod(lambda device=None: pretended.PROPERTIES)
    interface.get_compute_capability = staticmethod(lambda device=None: 90)
    interface.is_available = staticmethod(lambda: True)
    interface.is_bf16_supported = staticmethod(lambda *_, **__: True)

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_device_interface(self):
            return torch.cuda

        def get_active_torch_device(self):
            return torch.device("cuda")

    triton.runtime.driver.set_active(Driver())
    torch.utils._triton.triton_hash_with_backend = lambda: "pretended"
    torch.compiler.is_compiling = lambda: True


def inputs(block, config_, tokens: int) -> list:
    """Residual, modulation, rotary table, keys and values of the text."""
    heads, dim = config_.num_heads, config_.head_dim

    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="cuda")

    text = [empty(1, TEXT, heads, dim, dtype=torch.bfloat16) for _ in range(2)]
    return [empty(1, tokens, config_.dim), empty(1, 6, config_.dim), empty(1, tokens, 1, dim // 2, 2), *text]


def moved(graph) -> list[list]:
    """Our own kernels in a graph, with what they read and write; each value once, as a row stays in registers."""
    found = []
    for node in graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("wan."):
            given = [other.meta["val"] for other in node.all_input_nodes]
            tensors = [*given, *tree_leaves(node.meta["val"])]
            found.append([str(node.target), sum(t.numel() * t.dtype.itemsize for t in tensors) / 1e9])
    return found


def generated(variant: str, linear: str, fused: bool, tokens: int = TOKENS) -> tuple[str, list[list]]:
    """Inductor's code for one block, and our own kernels in it."""
    config.profile_bandwidth = True
    for name, value in OPTIONS.items():
        setattr(config, name, value)
    mode = FakeTensorMode()
    with mode, torch.no_grad():
        dit = pretended.real_size(variant, 1, linear)
        fp8.check = lambda *_: None  # it multiplies
        fp8.use(dit)
        optimize.fuse_gelu(dit)
        block = dit.blocks[0]
        if fused:
            block.__class__ = FusedBlock
        block.self_attn.attend = block.cross_attn.attend = lambda q, k, v, bias=None: pretended.attention(q, k, v)
        names, values = zip(*block.named_parameters(), strict=True)

        def forward(x, modulation, rotary, keys, text_values, *parameters):
            sources = (Source(keys, text_values, None),)
            given = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(block, given, (x, modulation, rotary, sources))

        arguments = [*inputs(block, dit.config, tokens), *values]
        graph = make_fx(torch.func.functionalize(forward), select_decomp_table(), tracing_mode="fake")(*arguments)
        graph.graph = fx_graph_cse(graph.graph)
        graph.recompile()
        with V.set_fake_mode(mode):
            post_grad_passes(graph, is_inference=True)
            lowering = GraphLowering(graph, example_inputs=arguments, is_inference=True)
            with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
                lowering.run(*arguments)
                code, _ = lowering.codegen()
    return code.value, moved(graph.graph)


def summary(code: str, ours: list[list]) -> dict:
    sizes = dict(re.findall(r"async_compile\.triton\('(\w+)'.*?'kernel_num_gb': ([\d.e-]+)", code, re.DOTALL))
    calls = re.findall(r"^\s*(triton_\w+)\.run\(|^\s*(?:\w+ = )?(extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", code, re.M)
    kernels = [[name, float(sizes[name])] for name, _ in calls if name]
    others = [other for _, other in calls if other and not other.startswith("torch.ops.wan.")]
    return {"kernels": kernels + ours, "calls": others}


if __name__ == "__main__":
    pretend_to_compile()
    print(json.dumps(summary(*generated(*sys.argv[1:3], "fused" in sys.argv[3:]))))
