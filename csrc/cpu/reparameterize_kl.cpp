#include "cpu/reparameterize_kl.h"

#include "gencore/parallel.h"
#include "gencore/philox.h"

namespace gencore::GENCORE_ISA {

namespace {

constexpr int64_t kBlocksPerChunk = kKlChunk / kPhiloxBlock;
// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 4096;

int64_t blocks_per_row(int64_t columns) { return (columns + kPhiloxBlock - 1) / kPhiloxBlock; }

template <class V>
GENCORE_INLINE V load_noise(const float* p);
template <>
GENCORE_INLINE vfloat load_noise<vfloat>(const float* p) {
  return load(p);
}
template <>
GENCORE_INLINE double load_noise<double>(const float* p) {
  return *p;
}

// Calls element(offset, noise, count) for each vector of columns [begin, end) of `row`; count < lanes at a row's end.
template <class V, int lanes, bool sample, class Element>
GENCORE_INLINE void for_each_vector(const Element& element, uint64_t seed, int64_t row, int64_t columns, int64_t begin,
                                    int64_t end) {
  alignas(64) float noise[kPhiloxBlock] = {};
  const int64_t row_offset = row * columns;
  const int64_t first_block = row * blocks_per_row(columns);
  for (int64_t column = begin; column < end; column += kPhiloxBlock) {
    if (sample) normal_block(seed, static_cast<uint64_t>(first_block + column / kPhiloxBlock), noise);
    const int64_t count = end - column < kPhiloxBlock ? end - column : kPhiloxBlock;
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) element(row_offset + column + i, load_noise<V>(noise + i), int64_t{lanes});
    if (i < count) element(row_offset + column + i, load_noise<V>(noise + i), count - i);
  }
}

// Sum over columns [begin, end) of exp(logvar) - 1 - logvar + mu^2; writes z.
template <class T, bool sample>
double forward_chunk(const ReparameterizeKlArgs& args, int64_t row, int64_t begin, int64_t end) {
  using V = vector_t<compute_t<T>>;
  const T* mu = static_cast<const T*>(args.mu);
  const T* logvar = static_cast<const T*>(args.logvar);
  T* z = static_cast<T*>(args.z);
  V sum = {};
  for_each_vector<V, Vector<compute_t<T>>::lanes, sample>(
      [&](int64_t i, V eps, int64_t count) {
        const V m = load(mu + i, count), lv = load(logvar + i, count);
        V h;  // sigma - 1, so that exp(logvar) - 1 = h (h + 2) keeps its digits near logvar = 0
        const V sigma = exponential_and_minus_one(lv * 0.5f, &h);
        store(z + i, sample ? m + sigma * eps : m, count);
        sum += m * m + (h * (h + 2.0f) - lv);  // zero in the lanes past `count`, which loaded as zero
      },
      args.seed, row, args.columns, begin, end);
  return horizontal_sum(sum);
}

template <class T, bool sample>
void forward(const ReparameterizeKlArgs& args) {
  using C = compute_t<T>;
  C* kl = static_cast<C*>(args.kl);
  const int64_t chunks = kl_chunks(args.columns);
  if (chunks <= 1) {
    parallel_for(0, args.rows, kGrain / (args.columns + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++)
        kl[row] = static_cast<C>(0.5 * forward_chunk<T, sample>(args, row, 0, args.columns));
    });
    return;
  }
  parallel_for(0, args.rows * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t row = task / chunks, start = task % chunks * kKlChunk;
      const int64_t stop = start + kKlChunk < args.columns ? start + kKlChunk : args.columns;
      args.partial_sums[task] = forward_chunk<T, sample>(args, row, start, stop);
    }
  });
  for (int64_t row = 0; row < args.rows; row++) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) sum += args.partial_sums[row * chunks + chunk];
    kl[row] = static_cast<C>(0.5 * sum);
  }
}

template <class T, bool sample>
void backward_chunk(const ReparameterizeKlBackwardArgs& args, int64_t row, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  using V = vector_t<C>;
  const T* grad_z = static_cast<const T*>(args.grad_z);
  const T* mu = static_cast<const T*>(args.mu);
  const T* logvar = static_cast<const T*>(args.logvar);
  T* grad_mu = static_cast<T*>(args.grad_mu);
  T* grad_logvar = static_cast<T*>(args.grad_logvar);
  const C row_grad_kl = static_cast<const C*>(args.grad_kl)[row];
  const V grad_kl = broadcast<V>(row_grad_kl);
  const V half_grad_kl = 0.5f * grad_kl;  // halved first: the product may be all but infinite
  for_each_vector<V, Vector<C>::lanes, sample>(
      [&](int64_t i, V eps, int64_t count) {
        const V gz = load(grad_z + i, count);
        const V m = load(mu + i, count), lv = load(logvar + i, count);
        V h;
        const V sigma = exponential_and_minus_one(lv * 0.5f, &h);
        V g = {};
        if (row_grad_kl != 0) g = half_grad_kl * (h * (h + 2.0f));  // an unused divergence may be infinite: no 0 * inf
        if (sample) g += 0.5f * gz * eps * sigma;
        store(grad_mu + i, gz + grad_kl * m, count);
        store(grad_logvar + i, g, count);
      },
      args.seed, row, args.columns, begin, end);
}

template <class T, bool sample>
void backward(const ReparameterizeKlBackwardArgs& args) {
  const int64_t chunks = kl_chunks(args.columns);
  const int64_t chunk_size = chunks <= 1 ? args.columns : kKlChunk;
  parallel_for(0, args.rows * chunks, kGrain / (chunk_size + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t start = task % chunks * kKlChunk;
      const int64_t stop = start + kKlChunk < args.columns ? start + kKlChunk : args.columns;
      backward_chunk<T, sample>(args, task / chunks, start, stop);
    }
  });
}

}  // namespace

void reparameterize_kl(const ReparameterizeKlArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype, args.sample ? forward<scalar_t, true>(args) : forward<scalar_t, false>(args));
}

void reparameterize_kl_backward(const ReparameterizeKlBackwardArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype, args.sample ? backward<scalar_t, true>(args) : backward<scalar_t, false>(args));
}

void philox_normal(const PhiloxNormalArgs& args) {
  const int64_t blocks = blocks_per_row(args.columns);
  parallel_for(0, args.rows * blocks, kBlocksPerChunk, [&](int64_t begin, int64_t end) {
    alignas(64) float noise[kPhiloxBlock];
    for (int64_t block = begin; block < end; block++) {
      normal_block(args.seed, static_cast<uint64_t>(block), noise);
      const int64_t column = block % blocks * kPhiloxBlock;
      const int64_t count = args.columns - column < kPhiloxBlock ? args.columns - column : kPhiloxBlock;
      std::memcpy(args.out + block / blocks * args.columns + column, noise, count * sizeof(float));
    }
  });
}

}  // namespace gencore::GENCORE_ISA
