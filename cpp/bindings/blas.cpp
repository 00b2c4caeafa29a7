#include "bindings/blas.hpp"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace sparsedrop {
namespace {

// What is used of cuBLAS's interface; it is the same in its releases 12 and 13.
using Gemm = int (*)(void* handle, int trans_a, int trans_b, int m, int n, int k, void const* alpha,
                     void const* a, cudaDataType a_type, int lda, void const* b,
                     cudaDataType b_type, int ldb, void const* beta, void* c, cudaDataType c_type,
                     int ldc, int compute_type, int algorithm);
using GetMathMode = int (*)(void* handle, int* mode);
using SetMathMode = int (*)(void* handle, int mode);

constexpr int kNormal = 0, kTransposed = 1;
constexpr int kCompute32f = 68, kCompute64f = 70;
constexpr int kDefaultAlgorithm = -1;
constexpr int kMathModes = 15, kTf32 = 3, kDisallowNarrowSums = 16;
constexpr int kSuccess = 0;

struct Blas {
  Gemm gemm = nullptr;
  GetMathMode get_math_mode = nullptr;
  SetMathMode set_math_mode = nullptr;

  bool is_whole() const {
    return gemm != nullptr && get_math_mode != nullptr && set_math_mode != nullptr;
  }
};

Blas& blas() {
  static Blas loaded;
  return loaded;
}

// Sums are added up in fp32 for as long as this lives.
class WideSums {
 public:
  explicit WideSums(void* handle) : handle_(handle) {
    blas().get_math_mode(handle_, &before_);
    blas().set_math_mode(handle_, before_ | kDisallowNarrowSums);
  }
  ~WideSums() { blas().set_math_mode(handle_, before_); }
  WideSums(WideSums const&) = delete;
  WideSums& operator=(WideSums const&) = delete;

 private:
  void* handle_;
  int before_ = 0;
};

// cuBLAS is column-major: it multiplies the transposes, in the other order.
int call(DenseProduct const& p, void* handle) {
  auto const type = cuda_type(p.dtype);
  auto const alpha32 = float(p.alpha);
  auto const beta32 = float(p.beta);
  bool const is_double = p.dtype == DataType::fp64;
  void const* const alpha = is_double ? static_cast<void const*>(&p.alpha) : &alpha32;
  void const* const beta = is_double ? static_cast<void const*>(&p.beta) : &beta32;
  return blas().gemm(handle, p.b.is_transposed ? kTransposed : kNormal,
                     p.a.is_transposed ? kTransposed : kNormal, int(p.n), int(p.m), int(p.k), alpha,
                     p.b.data, type, int(p.b.ld), p.a.data, type, int(p.a.ld), beta, p.out,
                     cuda_type(p.out_dtype), int(p.out_ld), is_double ? kCompute64f : kCompute32f,
                     kDefaultAlgorithm);
}

}  // namespace

cudaDataType cuda_type(DataType dtype) {
  switch (dtype) {
    case DataType::bf16:
      return CUDA_R_16BF;
    case DataType::fp16:
      return CUDA_R_16F;
    case DataType::fp32:
      return CUDA_R_32F;
    case DataType::fp64:
      break;
  }
  return CUDA_R_64F;
}

std::string describe(DenseProduct const& product) {
  return "[" + std::to_string(product.m) + ", " + std::to_string(product.k) + "] times [" +
         std::to_string(product.k) + ", " + std::to_string(product.n) + "]";
}

bool load_blas(int release) {
  std::string const name = "libcublas.so." + std::to_string(release);
  void* const library = dlopen(name.c_str(), RTLD_NOLOAD | RTLD_LAZY);
  if (library == nullptr) {
    return false;
  }
  blas() = {reinterpret_cast<Gemm>(dlsym(library, "cublasGemmEx")),
            reinterpret_cast<GetMathMode>(dlsym(library, "cublasGetMathMode")),
            reinterpret_cast<SetMathMode>(dlsym(library, "cublasSetMathMode"))};
  return blas().is_whole();
}

void require_blas() {
  if (!blas().is_whole()) {
    throw std::logic_error("dense products are cuBLAS's: load_blas has to find it first");
  }
}

bool multiplies_as_tf32(void* handle) {
  int mode = 0;
  return blas().get_math_mode(handle, &mode) == kSuccess && (mode & kMathModes) == kTf32;
}

void multiply(DenseProduct const& product, BlasSettings const& settings) {
  bool const is_narrow = product.dtype == DataType::bf16 || product.dtype == DataType::fp16;
  int status = kSuccess;
  if (is_narrow && !settings.allows_narrow_sums) {
    WideSums const wide(settings.handle);
    status = call(product, settings.handle);
  } else {
    status = call(product, settings.handle);
  }
  if (status != kSuccess) {
    throw std::runtime_error("cublasGemmEx for " + describe(product) + ": status " +
                             std::to_string(status));
  }
}

}  // namespace sparsedrop
