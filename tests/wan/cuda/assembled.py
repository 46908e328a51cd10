"""Triton's kernels as an H100 would run them: compiled for sm_90 by Triton and NVIDIA's assembler, as instructions."""

import re
import subprocess
from collections import Counter
from pathlib import Path


def compiled(kernel, pointers: dict[str, str], constants: dict, options: dict, numbers: dict | None = None):
    """`pointers` by name and type, those that are not there are None; the other arguments are 32-bit numbers."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place = {name: i for i, name in enumerate(kernel.arg_names)}
    absent = {name: None for name in place if name.endswith("_ptr") and name not in pointers}
    constants = constants | absent
    others = {name: "fp32" if name == "eps" else "i32" for name in place if name not in pointers | constants}
    signature = {
        name: pointers.get(name) or ("constexpr" if name in constants else others[name]) for name in kernel.arg_names
    }
    strided = [name for name in place if name in pointers or name.endswith("stride")]
    aligned = {(place[name],): [["tt.divisibility", 16]] for name in strided}
    source = ASTSource(kernel, signature, {(place[name],): value for name, value in constants.items()}, aligned)
    import triton

    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def instructions(cubin: bytes, folder: Path) -> list[str]:
    """Of a program, without predicates."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    text = subprocess.run([disassembler, "-c", file], capture_output=True, text=True, check=True).stdout
    lines = [found[1] for line in text.splitlines() if (found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line))]
    return [re.sub(r"^@!?U?P\d+\s+", "", line) for line in lines]


def assembled(kernel, pointers, constants, options, folder):
    """Instructions and metadata."""
    made = compiled(kernel, pointers, constants, options)
    return instructions(made.asm["cubin"], folder), made.metadata


def widths(program: list[str], name: str) -> Counter:
    """Bits of each access `name` of a thread."""
    found = [line.split()[0].split(".") for line in program if line.startswith(name + ".")]
    return Counter(next((int(part) for part in parts if part in ("64", "128")), 32) for parts in found)
