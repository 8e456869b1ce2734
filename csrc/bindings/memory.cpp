// The caching allocator as torch's allocator of CPU tensors, and its controls for gencore.memory.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <mutex>

#include "memory/caching_allocator.h"

namespace gencore::memory {

namespace {

namespace py = pybind11;

// Every buffer's context is its data pointer and its deleter this one function, so raw_allocate() works too. Profilers
// are told of allocations through the reporter of torch's own CPU allocator: one total, whoever made the tensor.
void delete_buffer(void* data) {
  if (!data) return;
  c10::profiledCPUMemoryReporter().Delete(data);
  CachingAllocator::instance().deallocate(data);
}

class TorchAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = CachingAllocator::instance().allocate(bytes);
    if (!data && bytes > 0) {
      c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
      const Stats stats = CachingAllocator::instance().stats();
      // The words of torch's own allocator first: programs that retry with a smaller batch look for them.
      TORCH_CHECK(false, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes,
                  " bytes (gencore.memory has emptied its cache and tried again; tensors hold ", stats.allocated_bytes,
                  " bytes)");
    }
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &delete_buffer, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &delete_buffer; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }
};

std::mutex installation;
c10::Allocator* previous = nullptr;  // what torch used before

c10::Allocator* torch_allocator() {
  static TorchAllocator* const allocator = new TorchAllocator;  // never destroyed, as tensors may be freed at exit
  return allocator;
}

bool installed() { return c10::GetCPUAllocator() == torch_allocator(); }

// False where an allocator registered with a higher priority is not to be replaced.
bool install() {
  std::lock_guard lock(installation);
  if (installed()) return true;
  c10::Allocator* const before = c10::GetCPUAllocator();
  CachingAllocator::instance().set_caching(true);
  c10::SetCPUAllocator(torch_allocator());
  if (!installed()) {
    CachingAllocator::instance().set_caching(false);
    return false;
  }
  previous = before;
  return true;
}

void uninstall() {
  std::lock_guard lock(installation);
  if (installed()) c10::SetCPUAllocator(previous);
  CachingAllocator::instance().set_caching(false);
  CachingAllocator::instance().set_poison(false);
}

py::dict stats() {
  const Stats s = CachingAllocator::instance().stats();
  py::dict result;
  result["allocated_bytes"] = s.allocated_bytes;
  result["peak_allocated_bytes"] = s.peak_allocated_bytes;
  result["reserved_bytes"] = s.reserved_bytes;
  result["peak_reserved_bytes"] = s.peak_reserved_bytes;
  result["cached_bytes"] = s.cached_bytes;
  result["cached_blocks"] = s.cached_blocks;
  result["hits"] = s.hits;
  result["misses"] = s.misses;
  result["system_allocations"] = s.system_allocations;
  result["system_frees"] = s.system_frees;
  result["evictions"] = s.evictions;
  return result;
}

}  // namespace

PYBIND11_MODULE(_memory, m) {
  using Release = py::call_guard<py::gil_scoped_release>;  // giving back gigabytes takes a while
  m.attr("TORCH_VERSION") = TORCH_VERSION;
  m.def("install", &install);
  m.def("uninstall", &uninstall, Release());
  m.def("installed", &installed);
  m.def("stats", &stats);
  m.def("empty_cache", [] { return CachingAllocator::instance().empty_cache(); }, Release());
  m.def("reset_peaks", [] { CachingAllocator::instance().reset_peaks(); });
  m.def("limit", [] { return CachingAllocator::instance().limit(); });
  m.def("set_limit", [](size_t bytes) { CachingAllocator::instance().set_limit(bytes); }, Release());
  m.def("poison", [] { return CachingAllocator::instance().poison(); });
  m.def("set_poison", [](bool poison) { CachingAllocator::instance().set_poison(poison); });
}

}  // namespace gencore::memory
