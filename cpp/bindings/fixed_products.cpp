#include "bindings/fixed_products.hpp"

#include <dlfcn.h>
#include <library_types.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "bindings/call.hpp"

namespace sparsedrop {
namespace {

// What is used of cuBLASLt's interface; it is the same in its releases 12 and 13. Descriptors are
// pointers to what it keeps to itself.
struct Algorithm {
  uint64_t data[8];
};

struct Found {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

using Create = int (*)(void** object, int compute_type, int scale_type);
using CreateLayout = int (*)(void** object, cudaDataType type, uint64_t rows, uint64_t cols,
                             int64_t ld);
using CreatePreference = int (*)(void** object);
using Set = int (*)(void* object, int attribute, void const* value, size_t bytes);
using Destroy = int (*)(void* object);
using Find = int (*)(void* handle, void* product, void* a, void* b, void* c, void* d,
                     void* preference, int wanted, Found* found, int* count);
using Multiply = int (*)(void* handle, void* product, void const* alpha, void const* a,
                         void* a_layout, void const* b, void* b_layout, void const* beta,
                         void const* c, void* c_layout, void* d, void* d_layout,
                         Algorithm const* algorithm, void* workspace, size_t workspace_bytes,
                         cudaStream_t stream);

constexpr int kTransposeA = 3, kTransposeB = 4, kEpilogue = 7, kBiasPointer = 8;
constexpr int kMaxWorkspaceBytes = 1, kReductionSchemes = 3, kMinAlignments[] = {5, 6, 7, 8};
constexpr int kAddBias = 4;
constexpr uint32_t kReductionsInResult = 1, kReductionsInFp32 = 2;
constexpr int kNormal = 0, kTransposed = 1;
constexpr int kCompute32f = 68, kComputeTf32 = 77;
constexpr size_t kWorkspaceLimit = size_t(32) << 20;  // as torch's on a Hopper GPU
constexpr uint32_t kTorchAlignment = 256, kLeastAlignment = 16;
constexpr size_t kMostPlans = 16;
constexpr int kNoWay = -1;
constexpr int kNotInitialized = 1, kAllocFailed = 3, kExecutionFailed = 13, kInternalError = 14;

struct BlasLt {
  Create create_product = nullptr;
  CreateLayout create_layout = nullptr;
  CreatePreference create_preference = nullptr;
  Set set_product = nullptr;
  Set set_preference = nullptr;
  Destroy destroy_product = nullptr;
  Destroy destroy_layout = nullptr;
  Destroy destroy_preference = nullptr;
  Find find = nullptr;
  Multiply multiply = nullptr;

  bool is_whole() const {
    return create_product != nullptr && create_layout != nullptr && create_preference != nullptr &&
           set_product != nullptr && set_preference != nullptr && destroy_product != nullptr &&
           destroy_layout != nullptr && destroy_preference != nullptr && find != nullptr &&
           multiply != nullptr;
  }
};

BlasLt& lt() {
  static BlasLt loaded;
  return loaded;
}

// A descriptor, or null where it could not be made.
using Owned = std::unique_ptr<void, Destroy>;

Owned owned(void* object, int status, Destroy destroy) {
  return {status == 0 ? object : nullptr, destroy};
}

Owned layout(DataType dtype, int64_t rows, int64_t cols, int64_t ld) {
  void* object = nullptr;
  int const status =
      lt().create_layout(&object, cuda_type(dtype), uint64_t(rows), uint64_t(cols), ld);
  return owned(object, status, lt().destroy_layout);
}

template <class T>
bool set(Set setter, Owned const& object, int attribute, T const& value) {
  return setter(object.get(), attribute, &value, sizeof(value)) == 0;
}

Owned preference(size_t workspace_limit, uint32_t alignment, DataType out_dtype) {
  void* object = nullptr;
  int const status = lt().create_preference(&object);
  Owned made = owned(object, status, lt().destroy_preference);
  uint32_t const reductions =
      kReductionsInFp32 | (out_dtype == DataType::fp32 ? kReductionsInResult : 0);
  bool is_good = made != nullptr &&
                 set(lt().set_preference, made, kMaxWorkspaceBytes, workspace_limit) &&
                 set(lt().set_preference, made, kReductionSchemes, reductions);
  for (int const attribute : kMinAlignments) {
    is_good = is_good && set(lt().set_preference, made, attribute, alignment);
  }
  return is_good ? std::move(made) : owned(nullptr, 0, lt().destroy_preference);
}

// For a bias that is a multiple of `alignment`.
Owned description(DenseProduct const& of, uint32_t alignment) {
  void* object = nullptr;
  bool const is_tf32 = of.tf32 && of.dtype == DataType::fp32;
  int const status = lt().create_product(&object, is_tf32 ? kComputeTf32 : kCompute32f, CUDA_R_32F);
  Owned made = owned(object, status, lt().destroy_product);
  int32_t const left = of.b.is_transposed ? kTransposed : kNormal;
  int32_t const right = of.a.is_transposed ? kTransposed : kNormal;
  bool is_good = made != nullptr && set(lt().set_product, made, kTransposeA, left) &&
                 set(lt().set_product, made, kTransposeB, right);
  if (of.bias != nullptr) {
    is_good = is_good && set(lt().set_product, made, kEpilogue, int32_t(kAddBias)) &&
              set(lt().set_product, made, kBiasPointer, at<void const>(alignment));
  }
  return is_good ? std::move(made) : owned(nullptr, 0, lt().destroy_product);
}

// Whether they differ in addresses and alpha alone.
bool is_alike(DenseProduct const& a, DenseProduct const& b) {
  auto const facts = [](DenseProduct const& p) {
    return std::make_tuple(p.m, p.n, p.k, p.a.ld, p.a.is_transposed, p.b.ld, p.b.is_transposed,
                           p.dtype, p.out_ld, p.out_dtype, p.beta, p.bias != nullptr, p.tf32);
  };
  return facts(a) == facts(b);
}

// Of what all addresses are multiples: as torch allocates, 16 bytes, or 0: less.
uint32_t alignment_of(DenseProduct const& of) {
  uintptr_t bits = 0;
  for (void const* address : {of.a.data, of.b.data, static_cast<void const*>(of.out), of.bias}) {
    bits |= reinterpret_cast<uintptr_t>(address);
  }
  for (uint32_t const alignment : {kTorchAlignment, kLeastAlignment}) {
    if (bits % alignment == 0) {
      return alignment;
    }
  }
  return 0;
}

// Whether another time may end otherwise.
bool may_change(int status) {
  return status == kNotInitialized || status == kAllocFailed || status == kExecutionFailed ||
         status == kInternalError;
}

bool rows_are_aligned(DenseProduct const& of) {
  auto const bytes = int64_t(size_of(of.dtype)), out_bytes = int64_t(size_of(of.out_dtype));
  int64_t const pitches[] = {of.a.ld * bytes, of.b.ld * bytes, of.out_ld * out_bytes};
  return std::all_of(std::begin(pitches), std::end(pitches),
                     [](int64_t pitch) { return pitch % kLeastAlignment == 0; });
}

}  // namespace

// cuBLASLt is column-major, as cuBLAS is: left and right are the transposes of b and a.
struct FixedProducts::Plan {
  DenseProduct of;  // but for addresses and alpha
  uint32_t alignment;
  Owned product;
  Owned left;
  Owned right;
  Owned out;
  Found found;  // with a status of 0 where there is a way
};

FixedProducts::FixedProducts() = default;

FixedProducts::~FixedProducts() = default;

bool FixedProducts::prepare(DenseProduct const& of, void* handle) {
  if (!lt().is_whole() || of.dtype == DataType::fp64) {
    return false;
  }
  Plan const* const plan = add(of, handle, kWorkspaceLimit);
  if (plan == nullptr) {
    workspace_bytes_ = kWorkspaceLimit;  // what is found later may need so much
    return false;
  }
  bool const has_way = plan->found.status == 0;
  workspace_bytes_ = has_way ? plan->found.workspace_bytes : 0;
  return has_way;
}

FixedProducts::Plan* FixedProducts::add(DenseProduct const& of, void* handle,
                                        size_t workspace_limit) {
  uint32_t const alignment = alignment_of(of);
  bool const is_awkward = of.bias != nullptr && !rows_are_aligned(of);
  if (is_awkward) {
    // With room to align operands first it rounds the product before it adds the bias.
    workspace_limit = 0;
  }
  auto const factor = [&](Factor const& f, int64_t rows, int64_t cols) {
    return f.is_transposed ? layout(of.dtype, rows, cols, f.ld)
                           : layout(of.dtype, cols, rows, f.ld);
  };
  auto made = std::unique_ptr<Plan>(new Plan{of, alignment, description(of, alignment),
                                             factor(of.b, of.k, of.n), factor(of.a, of.m, of.k),
                                             layout(of.out_dtype, of.n, of.m, of.out_ld), Found{}});
  Plan& plan = *made;
  Owned const how = preference(workspace_limit, alignment, of.out_dtype);
  int count = 0, status = kNoWay;
  if (plan.product != nullptr && plan.left != nullptr && plan.right != nullptr &&
      plan.out != nullptr && how != nullptr) {
    status = lt().find(handle, plan.product.get(), plan.left.get(), plan.right.get(),
                       plan.out.get(), plan.out.get(), how.get(), 1, &plan.found, &count);
  }
  if (may_change(status)) {
    return nullptr;
  }
  // Without room it adds up a long sum of fp32 in one go, and loses more than cuBLAS.
  if (status != 0 || count == 0 || (is_awkward && of.out_dtype == DataType::fp32)) {
    plan.found.status = kNoWay;
  }
  plans_.push_back(std::move(made));
  return plans_.back().get();
}

FixedProducts::Plan* FixedProducts::find(DenseProduct const& of, void* handle) {
  uint32_t const alignment = alignment_of(of);
  for (auto const& plan : plans_) {
    if (plan->alignment == alignment && is_alike(plan->of, of)) {
      return plan.get();
    }
  }
  return plans_.size() < kMostPlans ? add(of, handle, workspace_bytes_) : nullptr;
}

bool FixedProducts::run(DenseProduct const& of, void* handle, void* workspace,
                        cudaStream_t stream) {
  if (!lt().is_whole() || of.dtype == DataType::fp64 || alignment_of(of) == 0) {
    return false;
  }
  Plan* const plan = find(of, handle);
  if (plan == nullptr || plan->found.status != 0) {
    return false;
  }
  auto const alpha = float(of.alpha);
  auto const beta = float(of.beta);
  int status = 0;
  if (of.bias != nullptr) {
    status = lt().set_product(plan->product.get(), kBiasPointer, &of.bias, sizeof(of.bias));
  }
  if (status == 0) {
    status =
        lt().multiply(handle, plan->product.get(), &alpha, of.b.data, plan->left.get(), of.a.data,
                      plan->right.get(), &beta, of.out, plan->out.get(), of.out, plan->out.get(),
                      &plan->found.algorithm, workspace, plan->found.workspace_bytes, stream);
  }
  if (status == 0) {
    return true;
  }
  plan->found.status = kNoWay;
  cudaGetLastError();  // what failed is known: a launch that comes next has not
  if (of.beta != 0.0 && (status == kExecutionFailed || status == kInternalError)) {
    throw std::runtime_error("cublasLtMatmul for " + describe(of) + ": status " +
                             std::to_string(status));
  }
  return false;
}

void load_blas_lt(int release) {
  std::string const name = "libcublasLt.so." + std::to_string(release);
  void* const library = dlopen(name.c_str(), RTLD_NOLOAD | RTLD_LAZY);
  if (library == nullptr) {
    return;
  }
  auto const find = [&](char const* symbol) { return dlsym(library, symbol); };
  lt() = {reinterpret_cast<Create>(find("cublasLtMatmulDescCreate")),
          reinterpret_cast<CreateLayout>(find("cublasLtMatrixLayoutCreate")),
          reinterpret_cast<CreatePreference>(find("cublasLtMatmulPreferenceCreate")),
          reinterpret_cast<Set>(find("cublasLtMatmulDescSetAttribute")),
          reinterpret_cast<Set>(find("cublasLtMatmulPreferenceSetAttribute")),
          reinterpret_cast<Destroy>(find("cublasLtMatmulDescDestroy")),
          reinterpret_cast<Destroy>(find("cublasLtMatrixLayoutDestroy")),
          reinterpret_cast<Destroy>(find("cublasLtMatmulPreferenceDestroy")),
          reinterpret_cast<Find>(find("cublasLtMatmulAlgoGetHeuristic")),
          reinterpret_cast<Multiply>(find("cublasLtMatmul"))};
}

}  // namespace sparsedrop
