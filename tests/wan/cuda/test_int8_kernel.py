"""Our attention kernel as an H100 would run it: compiled for sm_90 by Triton and NVIDIA's assembler, its instructions read."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the Triton language is not installed")

HEAD_DIM = 128
POINTERS = {"q_ptr": "*i8", "k_ptr": "*i8", "out_ptr": "*bf16", "q_scale_ptr": "*fp32", "k_scale_ptr": "*fp32"}
NUMBERS = ("queries", "keys", "heads", "padded_queries", "padded_keys", "q_blocks", "k_blocks", "v_batch_stride",
           "out_batch_stride")  # fmt: skip
MULTIPLES_OF_16 = (
    *POINTERS,
    "v_ptr",
    "v_scale_ptr",
    "padded_queries",
    "padded_keys",
    "v_batch_stride",
    "out_batch_stride",
)


def compiled(fp8_values: bool):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from wan.attention_kernels.int8 import _kernel
    from wan.int8_attention import BLOCK_K, BLOCK_Q, FP8_MAX

    constants = {"HEAD_DIM": HEAD_DIM, "WIDTH": HEAD_DIM, "BLOCK_Q": BLOCK_Q, "BLOCK_K": BLOCK_K,
                 "FP8_VALUES": fp8_values, "FP8_MAX": FP8_MAX}  # fmt: skip
    values = {"v_ptr": "*fp8e4nv", "v_scale_ptr": "*fp32"} if fp8_values else {"v_ptr": "*bf16", "v_scale_ptr": "*bf16"}
    signature = POINTERS | values | dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(constants, "constexpr")
    place = {name: i for i, name in enumerate(_kernel.arg_names)}
    aligned = {(place[name],): [["tt.divisibility", 16]] for name in MULTIPLES_OF_16}
    source = ASTSource(_kernel, signature, {(place[name],): value for name, value in constants.items()}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "num_stages": 3})


def instructions(cubin: bytes, folder: Path) -> tuple[Counter, Counter]:
    """Of the whole program and of its longest loop, by the name before the first dot."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    text = subprocess.run([disassembler, "-c", file], capture_output=True, text=True, check=True).stdout
    program, labels, loops = [], {}, []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(program)
        if found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            program.append(found[1])
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", found[1])
            if jump and jump[1] in labels:
                loops.append((labels[jump[1]], len(program)))
    names = [re.sub(r"^@!?U?P\d+\s+", "", one).split()[0].split(".")[0] for one in program]
    start, stop = max(loops, key=lambda loop: loop[1] - loop[0])
    return Counter(names), Counter(names[start:stop])


@pytest.mark.parametrize("fp8_values", [False, True])
def test_the_inner_loop_uses_the_tensor_cores_of_hopper_and_spills_nothing(fp8_values, tmp_path):
    kernel = compiled(fp8_values)
    program, loop = instructions(kernel.asm["cubin"], tmp_path)
    assert loop["IGMMA"]  # INT8 scores
    assert loop["QGMMA" if fp8_values else "HGMMA"]
    assert not loop["IMMA"]
    assert not loop["HMMA"]
    assert not program["STL"]  # no register is kept in memory
    assert not program["LDL"]
    assert kernel.metadata.shared <= 227 << 10


def test_keys_and_values_come_ahead_of_their_use(tmp_path):
    """Without a synchronous load in the loop, but that of a block's scale; FP8 values still have to be transposed there."""
    _, loop = instructions(compiled(False).asm["cubin"], tmp_path)
    assert loop["LDGSTS"] or loop["UTMALDG"]
    assert loop["LDG"] <= 1
