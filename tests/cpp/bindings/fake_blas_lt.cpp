#include "bindings/fake_blas_lt.hpp"

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <algorithm>
#include <cstring>

namespace sparsedrop {
namespace {

constexpr int kInvalidValue = 7;
// Attributes of a product, and of a preference.
constexpr int kTransposeA = 3, kTransposeB = 4, kEpilogue = 7, kBiasPointer = 8;
constexpr int kMaxWorkspaceBytes = 1, kReductionSchemes = 3;
constexpr int kMinAlignmentA = 5, kMinAlignmentD = 8;
constexpr int32_t kNoEpilogue = 1, kAddBias = 4;

struct Product {
  int compute_type = 0;
  int32_t transposes_a = 0;
  int32_t transposes_b = 0;
  int32_t epilogue = kNoEpilogue;
  float const* bias = nullptr;
};

struct Layout {
  cudaDataType type;
  int64_t rows;
  int64_t cols;
  int64_t ld;
};

struct Preference {
  uint32_t reductions = ~0u;
  uint64_t workspace_limit = 0;
  uint32_t alignments[4] = {};
};

struct Algorithm {
  uint64_t alignment;
  uint64_t unused[7];
};

struct Found {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

// What is multiplied is column-major.
struct Operand {
  float const* data;
  Layout const& layout;
  bool is_transposed;

  int64_t rows() const { return is_transposed ? layout.cols : layout.rows; }
  int64_t cols() const { return is_transposed ? layout.rows : layout.cols; }
  float at(int64_t row, int64_t col) const {
    return is_transposed ? data[row * layout.ld + col] : data[col * layout.ld + row];
  }
};

template <class T>
int make(void** object, T const& value) {
  *object = new T(value);
  ++fake_blas_lt().alive;
  return 0;
}

template <class T>
int destroy(void* object) {
  delete static_cast<T*>(object);
  --fake_blas_lt().alive;
  return 0;
}

template <class T>
int copy(T& to, void const* value, size_t bytes) {
  if (bytes != sizeof(T)) {
    return kInvalidValue;
  }
  std::memcpy(&to, value, bytes);
  return 0;
}

bool fits(Operand const& a, Operand const& b, Layout const& d) {
  auto const has_room = [](Layout const& of) {
    return of.type == CUDA_R_32F && of.rows > 0 && of.cols > 0 && of.ld >= of.rows;
  };
  return has_room(a.layout) && has_room(b.layout) && has_room(d) && a.rows() == d.rows &&
         b.cols() == d.cols && a.cols() == b.rows();
}

}  // namespace

FakeBlasLt& fake_blas_lt() {
  static FakeBlasLt fake;
  return fake;
}

}  // namespace sparsedrop

using namespace sparsedrop;

extern "C" {

int cublasLtMatmulDescCreate(void** object, int compute_type, int scale_type) {
  return scale_type == CUDA_R_32F ? make(object, Product{compute_type}) : kInvalidValue;
}

int cublasLtMatrixLayoutCreate(void** object, cudaDataType type, uint64_t rows, uint64_t cols,
                               int64_t ld) {
  return make(object, Layout{type, int64_t(rows), int64_t(cols), ld});
}

int cublasLtMatmulPreferenceCreate(void** object) { return make(object, Preference{}); }

int cublasLtMatmulDescDestroy(void* object) { return destroy<Product>(object); }

int cublasLtMatrixLayoutDestroy(void* object) { return destroy<Layout>(object); }

int cublasLtMatmulPreferenceDestroy(void* object) { return destroy<Preference>(object); }

int cublasLtMatmulDescSetAttribute(void* object, int attribute, void const* value, size_t bytes) {
  auto& product = *static_cast<Product*>(object);
  switch (attribute) {
    case kTransposeA:
      return copy(product.transposes_a, value, bytes);
    case kTransposeB:
      return copy(product.transposes_b, value, bytes);
    case kEpilogue:
      return copy(product.epilogue, value, bytes);
    case kBiasPointer:
      return copy(product.bias, value, bytes);
    default:
      return kInvalidValue;
  }
}

int cublasLtMatmulPreferenceSetAttribute(void* object, int attribute, void const* value,
                                         size_t bytes) {
  auto& preference = *static_cast<Preference*>(object);
  if (attribute >= kMinAlignmentA && attribute <= kMinAlignmentD) {
    return copy(preference.alignments[attribute - kMinAlignmentA], value, bytes);
  }
  switch (attribute) {
    case kMaxWorkspaceBytes:
      return copy(preference.workspace_limit, value, bytes);
    case kReductionSchemes:
      return copy(preference.reductions, value, bytes);
    default:
      return kInvalidValue;
  }
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, void*, void*, void*, void*, void*,
                                   void* preference, int wanted, Found* found, int* count) {
  FakeBlasLt& fake = fake_blas_lt();
  auto const& asked = *static_cast<Preference const*>(preference);
  ++fake.finds;
  fake.handle = handle;
  fake.workspace_limit = asked.workspace_limit;
  fake.alignment = *std::min_element(asked.alignments, asked.alignments + 4);
  fake.reductions = asked.reductions;
  *count = std::min(wanted, fake.find_status == 0 ? fake.found : 0);
  if (*count > 0) {
    size_t const workspace = std::min<size_t>(fake.wanted_workspace, asked.workspace_limit);
    *found = Found{{fake.alignment, {}}, workspace, 0, 1.0f, {}};
  }
  return fake.find_status;
}

int cublasLtMatmul(void* handle, void* product, void const* alpha, void const* a, void* a_layout,
                   void const* b, void* b_layout, void const* beta, void const* c, void* c_layout,
                   void* d, void* d_layout, Algorithm const* algorithm, void* workspace,
                   size_t workspace_bytes, cudaStream_t) {
  FakeBlasLt& fake = fake_blas_lt();
  auto const& of = *static_cast<Product const*>(product);
  ++fake.multiplies;
  fake.handle = handle;
  fake.workspace = workspace;
  fake.workspace_bytes = workspace_bytes;
  fake.compute_type = of.compute_type;
  if (fake.multiply_status != 0) {
    return fake.multiply_status;
  }
  Operand const left{static_cast<float const*>(a), *static_cast<Layout const*>(a_layout),
                     of.transposes_a != 0};
  Operand const right{static_cast<float const*>(b), *static_cast<Layout const*>(b_layout),
                      of.transposes_b != 0};
  auto const& out = *static_cast<Layout const*>(d_layout);
  bool const has_bias = of.epilogue == kAddBias;
  bool is_good =
      fits(left, right, out) && c == d && c_layout == d_layout && (!has_bias || of.bias != nullptr);
  for (void const* address : {a, b, c, static_cast<void const*>(of.bias)}) {
    is_good = is_good && reinterpret_cast<uintptr_t>(address) % algorithm->alignment == 0;
  }
  if (!is_good) {
    return kInvalidValue;
  }
  float const scale = *static_cast<float const*>(alpha), held = *static_cast<float const*>(beta);
  for (int64_t col = 0; col < out.cols; ++col) {
    for (int64_t row = 0; row < out.rows; ++row) {
      float sum = 0.0f;
      for (int64_t k = 0; k < left.cols(); ++k) {
        sum += left.at(row, k) * right.at(k, col);
      }
      float& to = static_cast<float*>(d)[col * out.ld + row];
      to = scale * sum + (held == 0.0f ? 0.0f : held * to) + (has_bias ? of.bias[row] : 0.0f);
    }
  }
  return 0;
}

}  // extern "C"
