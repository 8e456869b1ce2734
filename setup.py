"""Builds the C++ extensions; everything else about the package stands in pyproject.toml.

Two shared libraries come out of csrc/:

* ``gencore/_C.so``       the CPU kernels behind torch's stable ABI. Every file of csrc/cpu is compiled once for each
                          instruction set of ``ISAS``; which one runs is decided at run time by CPUID.
* ``gencore/_memory.so``  the caching CPU allocator (pybind11 and c10).

Ninja does the work, so a second build compiles what changed and nothing else. Without a compiler the build goes on, the
package works on its PyTorch and Triton implementations, and ``python -m gencore env`` says what is missing.

``GENCORE_BUILD_CUDA`` decides about csrc/cuda, never the presence of a GPU: ``0`` leaves it out, ``1`` builds it or
fails, ``auto`` (the default) builds it where nvcc and a CUDA build of torch are there. ``GENCORE_CUDA_ARCHS`` names the
targets (default ``80;90;100``).

``GENCORE_SANITIZE=address,undefined`` instruments the CPU kernels (``make sanitize``).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# Compiler flags of each instruction set; the first is what every machine of the architecture has.
if platform.machine() in ("x86_64", "AMD64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    ISAS = {
        "baseline": [],
        "avx2": AVX2,
        "avx512": [*AVX2, *(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl")), "-mprefer-vector-width=512"],
    }
else:
    ISAS = {"baseline": []}

COMMON_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]

SANITIZE = [f"-fsanitize={os.environ['GENCORE_SANITIZE']}"] if os.environ.get("GENCORE_SANITIZE") else []
if SANITIZE:
    COMMON_FLAGS += [*SANITIZE, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O1"]


class BuildWithNinja(build_ext):
    """Writes one build.ninja for both libraries and runs it."""

    def run(self):
        output = ROOT / "gencore" if self.inplace else Path(self.build_lib).resolve() / "gencore"
        output.mkdir(parents=True, exist_ok=True)
        record = {"built": False, "isas": [], "cuda": False}
        try:
            record.update(self.compile(output))
        except BuildProblem as problem:
            record["reason"] = str(problem)
            for stale in output.glob("_*.so"):  # of an earlier build: not what these sources say
                stale.unlink()
            print(f"gencore: built without its C++ extension: {problem}", file=sys.stderr)
            if "1" in (os.environ.get("GENCORE_BUILD_EXTENSION"), os.environ.get("GENCORE_BUILD_CUDA")):
                raise
        (output / "_build.json").write_text(json.dumps(record, indent=1) + "\n")

    def compile(self, output: Path) -> dict:
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
        if not compiler or not shutil.which(compiler):
            raise BuildProblem("no C++ compiler was found; install g++ (or set CXX), then install gencore again")
        try:
            import ninja
            import pybind11
            import torch
        except ImportError as error:
            raise BuildProblem(
                f"{error.name} is missing while building; `pip install torch ninja pybind11`, "
                "then `pip install --no-build-isolation gencore`"
            ) from error

        kind = "sanitized" if SANITIZE else "ninja"
        work = ROOT / "build" / f"{kind}-{platform.machine()}-torch{torch.__version__}"
        work.mkdir(parents=True, exist_ok=True)
        nvcc, cuda_reason = find_nvcc(torch)
        text = ninja_file(compiler, nvcc, output, Path(torch.__file__).parent, pybind11)
        write_if_changed(work / "build.ninja", text)
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(work)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if subprocess.run(command).returncode != 0:
            raise BuildProblem("the compiler failed (its messages stand above)")
        return {
            "built": True,
            "isas": list(ISAS),
            "compiler": subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.split("\n")[0],
            "torch": torch.__version__,
            "cuda": nvcc is not None,
            "cuda_reason": cuda_reason,
        }

    def get_outputs(self):
        return [str(p) for p in (Path(self.build_lib) / "gencore").glob("_*.*") if p.suffix in (".so", ".json")]


class BuildProblem(RuntimeError):
    """Why there is no extension, and how to mend it."""


def find_nvcc(torch) -> tuple[str | None, str]:
    """The CUDA compiler to use, or None and why there are no CUDA kernels."""
    wish = os.environ.get("GENCORE_BUILD_CUDA", "auto")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc")
    if wish not in ("0", "1", "auto"):
        raise BuildProblem(f"GENCORE_BUILD_CUDA must be 0, 1 or auto; got {wish!r}")
    if wish == "0":
        return None, "GENCORE_BUILD_CUDA=0"
    if not list((ROOT / "csrc").glob("cuda/*.cu")):
        return None, "this version has no CUDA C++ kernels; Triton serves GPUs"
    if nvcc is None:
        reason = "nvcc was not found; install the CUDA toolkit or set CUDA_HOME"
    elif wish == "auto" and torch.version.cuda is None:
        reason = "this torch is a CPU build; GENCORE_BUILD_CUDA=1 builds the kernels all the same"
    else:
        return nvcc, ""
    if wish == "1":
        raise BuildProblem(f"GENCORE_BUILD_CUDA=1, but {reason}")
    return None, reason


def ninja_file(compiler: str, nvcc: str | None, output: Path, torch_dir: Path, pybind11) -> str:
    includes = [f"-I{ROOT}/csrc/include", f"-I{ROOT}/csrc"]
    torch_includes = [f"-isystem {torch_dir}/include", f"-isystem {torch_dir}/include/torch/csrc/api/include"]
    have = [f"-DGENCORE_HAVE_{isa.upper()}" for isa in ISAS if isa != "baseline"]
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {compiler}",
        f"flags = {' '.join(COMMON_FLAGS + includes + have)}",
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $flags $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = CXX $out",
        "rule link",
        f"  command = {' '.join(['$cxx', '-shared', *SANITIZE])} $in -o $out $libs",
        "  description = LINK $out",
    ]

    def compile_to(target: str, source: Path, extra: list[str]) -> str:
        lines.extend([f"build {target}: cxx {source}", f"  extra = {' '.join(extra)}"])
        return target

    objects = []
    for source in sorted((ROOT / "csrc/cpu").glob("*.cpp")):
        for isa, flags in ISAS.items():
            objects.append(compile_to(f"{source.stem}.{isa}.o", source, [f"-DGENCORE_ISA={isa}", *flags]))
    for source in sorted((ROOT / "csrc/bindings").glob("*.cpp")):
        if source.stem != "memory":
            objects.append(compile_to(f"bind_{source.stem}.o", source, torch_includes))
    libs = f"-L{torch_dir}/lib -ltorch_cpu -ltorch -Wl,-rpath,$$ORIGIN/../torch/lib"
    if nvcc:
        archs = os.environ.get("GENCORE_CUDA_ARCHS", "80;90;100").split(";")
        targets = " ".join(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs)
        lines += [
            "rule nvcc",
            f"  command = {nvcc} -std=c++17 -O3 -Xcompiler -fPIC {targets} {' '.join(includes)} -MD -MF $out.d "
            "-c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = NVCC $out",
        ]
        for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
            objects.append(f"cuda_{source.stem}.o")
            lines.append(f"build {objects[-1]}: nvcc {source}")
        # nvcc links too: it knows where its runtime lies.
        libs = libs.replace("-Wl,-rpath,", "-Xlinker -rpath -Xlinker ")
        lines += ["rule link_cuda", f"  command = {nvcc} -shared -cudart=static $in -o $out $libs"]
    lines += [f"build {output}/_C.so: {'link_cuda' if nvcc else 'link'} {' '.join(objects)}", f"  libs = {libs}"]

    memory = [
        compile_to(
            f"memory_{source.stem}.o",
            source,
            [*torch_includes, f"-isystem {pybind11.get_include()}", f"-isystem {sysconfig.get_path('include')}"],
        )
        for source in [*sorted((ROOT / "csrc/memory").glob("*.cpp")), *(ROOT / "csrc/bindings").glob("memory.cpp")]
    ]
    if memory:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        libs = f"-L{torch_dir}/lib -lc10 -Wl,-rpath,$$ORIGIN/../torch/lib"
        lines += [f"build {output}/_memory{suffix}: link {' '.join(memory)}", f"  libs = {libs}"]
    return "\n".join(lines) + "\n"


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


# The one Extension tells setuptools that the wheel is for this platform; BuildWithNinja knows what to build.
setup(ext_modules=[Extension("gencore._memory", sources=[])], cmdclass={"build_ext": BuildWithNinja})
