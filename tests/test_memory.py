"""The caching CPU allocator: reuse, limits, live tensors across enable and disable, threads, forks, errors, no leak."""

import gc
import multiprocessing
import os
import resource
import shutil
import subprocess
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from gencore import env, extension, memory
from tests.processes import ROOT, run_python

MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    not memory.is_available(), reason=f"gencore._memory: {extension.MEMORY_EXTENSION.reason}"
)


@pytest.fixture(autouse=True)
def fresh():
    """Each test begins and ends with the allocator off and the cache empty."""
    memory.disable()
    yield
    memory.disable()


def output_of(code: str) -> str:
    """Runs `code` in its own interpreter, where it cannot disturb this one; returns what it printed."""
    result = run_python("-c", textwrap.dedent(code))
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def tensor_of(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


# What it is for.


def test_import_leaves_it_off():
    code = "import gencore, torch; a = torch.empty(1 << 20); s = gencore.memory.stats(); print(s.enabled, s.misses)"
    assert output_of(code) == "False 0"


@pytest.mark.parametrize("nbytes", [1000, 5000, 100_000, 3 * MIB, 40 * MIB])
def test_freed_block_is_reused_last_in_first_out(nbytes):
    memory.enable()
    first, second = tensor_of(nbytes), tensor_of(nbytes)
    addresses = first.data_ptr(), second.data_ptr()
    before = memory.stats()
    del first
    del second
    third, fourth = tensor_of(nbytes), tensor_of(nbytes - nbytes // 100)
    assert (third.data_ptr(), fourth.data_ptr()) == addresses[::-1]
    after = memory.stats()
    assert (after.hits - before.hits, after.misses - before.misses) == (2, 0)
    assert after.cached_bytes == before.cached_bytes


def test_repeated_tensors_fault_no_pages():
    memory.enable()
    shape = (64, 128, 32, 32)
    torch.empty(shape).fill_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(shape).fill_(1.0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 200  # 163,840 pages were filled


def test_large_blocks_ask_for_huge_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this kernel has no transparent huge pages")
    memory.enable()
    x = tensor_of(64 * MIB)
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= x.data_ptr() < end
            assert not inside or begin % (2 * MIB) == 0
        elif inside and first == "VmFlags:":
            assert "hg" in line.split()
            return
    pytest.fail("the tensor is in no mapping of the process")


def test_results_are_the_same_bits():
    def train() -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 100, 10))
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            loss = model(torch.randn(8, 3, 12, 12)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    plain = train()
    with memory.caching(poison=True):
        assert torch.equal(train(), plain)


# Sizes, alignment, contents.


def test_sizes_align_and_do_not_overlap():
    memory.enable()
    sizes = sorted({n + d for e in range(20) for n in (1 << e, 3 << e) for d in (-1, 0, 1)} - {0, -1})
    for _ in range(2):  # the second time from the cache
        tensors = [tensor_of(n).fill_(i % 251) for i, n in enumerate(sizes)]
        for i, x in enumerate(tensors):
            assert x.data_ptr() % 64 == 0
            assert x.numel() == 0 or (int(x.min()), int(x.max())) == (i % 251, i % 251)
        del tensors, x


@pytest.mark.parametrize("nbytes", [961, 1024, 1025, 4096, 4097, 70_000, 10**6, MIB, MIB + 1, 33_554_432, 50_000_001])
def test_rounding_wastes_at_most_an_eighth(nbytes):
    memory.enable()
    before = memory.stats()
    x = tensor_of(nbytes)
    after = memory.stats()
    assert after.allocated_bytes - before.allocated_bytes == nbytes
    overhead = 128 if nbytes < MIB else 4096
    held = after.reserved_bytes - before.reserved_bytes
    assert nbytes < held <= nbytes * 9 / 8 + overhead
    del x
    assert memory.stats().cached_bytes == held


def test_zero_size():
    memory.enable()
    before = memory.stats()
    x = torch.empty(0, 3)
    assert x.data_ptr() == 0
    assert x.sum() == 0
    x.resize_(2000).fill_(1.0)
    assert x.sum() == 2000
    assert memory.stats().misses == before.misses + 1


@pytest.mark.parametrize("numel", [1, 3, 200, 5000, MIB])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_poison_fills_new_and_reused_buffers_with_nan(numel, dtype):
    memory.enable(poison=True)
    for _ in range(2):
        x = torch.empty(numel, dtype=dtype)
        assert x.isnan().all()
        x.fill_(1)
        del x
    memory.enable()
    del_me = torch.ones(numel, dtype=dtype)
    assert not del_me.isnan().any()


# Turning it on and off.


def test_tensors_outlive_disable_and_enable():
    before = [torch.full((n,), 3.0) for n in (10, 10_000, MIB)]
    memory.enable()
    during = [torch.full((n,), 4.0) for n in (10, 10_000, MIB)]
    held = memory.stats().allocated_bytes
    assert held >= 4 * (10_000 + MIB)
    del before  # of the default allocator, freed while ours is on
    memory.disable()
    assert memory.stats().cached_bytes == 0
    assert all((x == 4.0).all() for x in during)
    during[1].resize_(20_000)  # its storage still knows our allocator
    del during
    after = memory.stats()
    assert held - after.allocated_bytes >= 4 * (10_000 + MIB)
    assert after.cached_bytes == 0
    misses = after.misses
    torch.empty(MIB)
    assert memory.stats().misses == misses


def test_enable_twice_and_disable_twice():
    memory.enable(limit=MIB)
    memory.enable(limit=2 * MIB)
    assert memory.stats().limit == 2 * MIB
    memory.disable()
    memory.disable()
    assert not memory.is_enabled()


def test_caching_restores_the_state_before():
    with memory.caching(limit=MIB, poison=True):
        with memory.caching(limit=2 * MIB):
            assert memory.stats().limit == 2 * MIB
            assert not torch.empty(1000).fill_(0).isnan().any()
        assert memory.stats().limit == MIB
        assert torch.empty(1000).isnan().all()
        with pytest.raises(ZeroDivisionError), memory.caching():
            raise ZeroDivisionError
        assert memory.is_enabled()
    assert not memory.is_enabled()


# The limit.


def test_limit_evicts_what_lay_longest():
    memory.enable(limit=10 * MIB)
    old, middle, new = (tensor_of(nbytes) for nbytes in (4 * MIB, 5 * MIB, 3 * MIB))
    kept = middle.data_ptr(), new.data_ptr()
    before = memory.stats()
    del old
    del middle
    del new
    after = memory.stats()
    assert after.evictions - before.evictions == 1
    assert after.cached_bytes <= 10 * MIB
    assert (tensor_of(5 * MIB).data_ptr(), tensor_of(3 * MIB).data_ptr()) == kept
    tensor_of(4 * MIB)
    assert memory.stats().misses == after.misses + 1


def test_block_over_the_limit_leaves_the_cache_alone():
    memory.enable(limit=10 * MIB)
    tensor_of(8 * MIB)
    cached = memory.stats().cached_bytes
    tensor_of(20 * MIB)
    assert memory.stats().cached_bytes == cached


def test_set_limit_takes_effect_at_once():
    memory.enable()
    tensor_of(8 * MIB)
    tensor_of(4 * MIB)
    memory.set_limit(5 * MIB)
    assert 4 * MIB <= memory.stats().cached_bytes <= 5 * MIB
    memory.set_limit(0)
    assert memory.stats().cached_bytes == 0
    tensor_of(4 * MIB)
    assert memory.stats().cached_bytes == 0
    memory.set_limit(None)
    assert memory.stats().limit > 2**28


def test_empty_cache_gives_the_memory_back():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    memory.enable()
    torch.ones(64 * MIB)
    cached, full = memory.stats().cached_bytes, resident()
    assert cached >= 256 * MIB
    assert memory.empty_cache() == cached
    assert memory.stats().cached_bytes == 0
    assert full - resident() > 200 * MIB
    assert memory.empty_cache() == 0


def test_peaks():
    memory.enable()
    memory.reset_peak_stats()
    start = memory.stats()
    assert start.peak_allocated_bytes == start.allocated_bytes
    x = tensor_of(8 * MIB)
    del x
    assert memory.stats().peak_allocated_bytes == start.allocated_bytes + 8 * MIB
    memory.empty_cache()
    memory.reset_peak_stats()
    end = memory.stats()
    assert end.peak_allocated_bytes == end.allocated_bytes
    assert end.peak_reserved_bytes == end.reserved_bytes


# Out of memory.


def test_out_of_memory_is_torchs_error():
    with pytest.raises(
        RuntimeError, match="DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ) as plain:
        tensor_of(1 << 50)
    memory.enable()
    tensor_of(4 * MIB)
    for nbytes in (1 << 46, 1 << 50, (1 << 62) + 1):
        with pytest.raises(
            RuntimeError, match="DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ) as ours:
            tensor_of(nbytes)
        assert type(ours.value) is type(plain.value)
        assert str(nbytes) in str(ours.value)
    torch.ones(1000)


def test_out_of_memory_empties_the_cache_and_tries_again():
    code = """
        import resource, torch, gencore
        gencore.memory.enable(limit=1 << 40)
        torch.ones(1 << 28)  # 1 GiB, cached from here on
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28),) * 2)
        x = torch.ones(300 << 20, dtype=torch.uint8)
        stats = gencore.memory.stats()
        print(bool(x[::4096].all()), stats.cached_bytes < 1 << 20)
        try:
            torch.empty(2 << 30, dtype=torch.uint8)
        except RuntimeError as error:
            print("can't allocate memory" in str(error))
    """
    assert output_of(code).split() == ["True", "True", "True"]


# The rest of torch.


def test_storages_that_change_hands():
    memory.enable()
    array = torch.arange(10_000.0).numpy()  # a view that keeps our block
    gc.collect()
    torch.zeros(10_000)
    assert array[9999] == 9999
    assert torch.from_numpy(array).sum() == array.sum()
    x = torch.arange(5000.0)
    x.untyped_storage().resize_(4 * 20_000)
    assert torch.equal(x, torch.arange(5000.0))
    x.share_memory_()
    assert x.is_shared()
    assert torch.equal(x, torch.arange(5000.0))
    y = torch._lazy_clone(torch.ones(5000))
    y.add_(1)
    assert (y == 2).all()
    z = torch.ones(5000)
    z.set_()
    z.resize_(300_000).fill_(2.0)
    assert (z == 2).all()


def test_pin_memory_behaves_as_before():
    def outcome() -> object:
        try:
            return torch.ones(5000).pin_memory().is_pinned()
        except RuntimeError as error:
            return str(error)

    plain = outcome()
    memory.enable()
    assert outcome() == plain


def test_profiler_sees_the_same_bytes():
    def allocated() -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            x = torch.ones(100_000)
            y = x + 1
            del x, y
            torch.ones(100)
        return sum(
            max(0, event.cpu_memory_usage) for event in profile.events() if event.name in ("aten::ones", "aten::add")
        )

    plain = allocated()
    assert plain >= 800_400
    memory.enable()
    assert allocated() == plain


def test_threads():
    memory.enable(limit=8 * MIB)
    errors: list[str] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        kept: list[torch.Tensor] = []
        for step in range(200):
            n = int(torch.randint(1, 200_000, (), generator=generator))
            kept.append(torch.full((n,), float(seed), requires_grad=True))
            (kept[-1] * kept[-1]).sum().backward()  # freed by autograd's thread, too
            if len(kept) > 10:
                x = kept.pop(step % 10)
                if not ((x == seed).all() and (x.grad == 2 * seed).all()):
                    errors.append(f"thread {seed}, step {step}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert memory.stats().cached_bytes <= 8 * MIB


def _in_child(inherited: torch.Tensor, queue: "multiprocessing.Queue[object]") -> None:
    torch.set_num_threads(1)  # OpenMP's pool does not survive a fork, with any allocator
    stats = memory.stats()
    x = torch.ones(100_000) + inherited
    queue.put((stats.enabled, stats.cached_bytes, float(x.sum())))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork():
    memory.enable()
    tensor_of(8 * MIB)
    inherited = torch.ones(100_000)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(inherited, queue), daemon=True)
    child.start()
    assert queue.get(timeout=60) == (True, 0, 200_000.0)
    child.join(60)
    assert child.exitcode == 0
    assert memory.stats().cached_bytes >= 8 * MIB  # the parent's cache is the parent's


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_loader_workers():
    memory.enable()
    data = torch.arange(64.0).reshape(64, 1).repeat(1, 5000)
    loader = DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        assert [float(batch[0, 0]) for batch in loader] == list(range(0, 64, 8))


def test_soak_of_ten_thousand_steps_leaks_nothing():
    model = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64))
    batches = [torch.randn(n, 64) for n in (64, 64, 64, 9)]  # the last of an epoch is smaller

    def steps(count: int) -> None:
        for step in range(count):
            model.zero_grad()
            model(batches[step % 4]).square().mean().backward()

    memory.enable()
    steps(100)
    gc.collect()  # what other tests left in cycles
    warm = memory.stats()
    steps(10_000)
    end = memory.stats()
    assert end.allocated_bytes == warm.allocated_bytes
    assert end.hits - warm.hits > 50_000
    assert end.system_allocations - warm.system_allocations < 50
    assert end.reserved_bytes - warm.reserved_bytes < MIB


# Errors and the report.


@pytest.mark.parametrize(("limit", "error"), [(-1, ValueError), (1.5, TypeError), ("1G", TypeError)])
def test_bad_limit(limit, error):
    for function in (memory.enable, memory.set_limit):
        with pytest.raises(error, match="limit must be"):
            function(limit)
    assert not memory.is_enabled()


def test_missing_extension_says_why_and_the_fix(monkeypatch):
    missing = extension.Extension(False, "no C++ compiler was found", extension.REBUILD)
    monkeypatch.setattr(memory, "MEMORY_MODULE", None)
    monkeypatch.setattr(memory, "MEMORY_EXTENSION", missing)
    monkeypatch.setattr("gencore.environment.MEMORY_EXTENSION", missing)
    for call in (memory.enable, memory.stats, memory.empty_cache, memory.caching().__enter__):
        with pytest.raises(RuntimeError, match=r"no C\+\+ compiler was found.*make build"):
            call()
    memory.disable()
    assert not memory.is_enabled()
    assert not memory.is_available()
    assert "no C++ compiler was found" in str(env())


def test_stats_print_every_counter():
    memory.enable(limit=3 * MIB)
    text = str(memory.stats())
    assert "limit                 3.0 MiB" in text
    assert all(name in text for name in ("cached_bytes", "peak_reserved_bytes", "hits", "evictions"))


# The allocator by itself, without torch, in C++.


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Builds tests/native/memory_stress.cpp with a sanitizer (or none) and runs one of its tests."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler")
    directory = tmp_path_factory.mktemp("native")

    def run(test: str, sanitizer: str = "") -> subprocess.CompletedProcess[str]:
        binary = directory / f"stress_{sanitizer}"
        if not binary.exists():
            sources = ["csrc/memory/caching_allocator.cpp", "tests/native/memory_stress.cpp"]
            flags = ["-std=c++20", "-O1", "-g", "-pthread", f"-I{ROOT}/csrc"]
            flags += [f"-fsanitize={sanitizer}"] if sanitizer else []
            build = subprocess.run(
                [compiler, *flags, *sources, "-o", str(binary)], cwd=ROOT, capture_output=True, text=True
            )
            if build.returncode != 0 and sanitizer and "cannot find" in build.stderr:
                pytest.skip(f"this compiler has no -fsanitize={sanitizer}")
            assert build.returncode == 0, build.stderr
        return subprocess.run([str(binary), test], capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_native_threads(native, sanitizer):
    result = native("threads", sanitizer)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("the thread sanitizer does not run with this kernel's address space layout")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


def test_native_forks_while_threads_allocate(native):
    result = native("forks")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


@pytest.mark.parametrize(("test", "message"), [("double_free", "freed twice"), ("underrun", "header was overwritten")])
def test_native_misuse_aborts_with_a_message(native, test, message):
    result = native(test)
    assert result.returncode == -6
    assert message in result.stderr
