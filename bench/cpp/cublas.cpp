#include "cublas.h"

#include <cublas_v2.h>

#include <stdexcept>
#include <string>

#include "device.h"

namespace sparsedrop::bench {
namespace {

void check_cublas(cublasStatus_t status, char const* what) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string(what) + ": " + cublasGetStatusString(status));
  }
}

class Cublas final : public DenseProduct {
 public:
  Cublas() : workspace_(kWorkspace) { check_cublas(cublasCreate(&handle_), "cublasCreate"); }
  ~Cublas() override { cublasDestroy(handle_); }
  Cublas(Cublas const&) = delete;
  Cublas& operator=(Cublas const&) = delete;

  void operator()(Problem const& p, cudaStream_t stream) override {
    float const one = 1.0f;
    float const zero = 0.0f;
    check_cublas(cublasSetStream(handle_, stream), "cublasSetStream");
    // Its own workspace would be an allocation inside the capture; setting the stream resets it.
    check_cublas(cublasSetWorkspace(handle_, workspace_.data(), kWorkspace), "cublasSetWorkspace");
    // cuBLAS is column-major, so it makes Dᵀ = Bᵀ Aᵀ; what is row-major here is transposed already.
    check_cublas(
        cublasGemmEx(handle_, as_transpose(p.b), as_transpose(p.a), int(p.n), int(p.m), int(p.k),
                     &one, p.b.data, CUDA_R_16BF, int(p.b.ld), p.a.data, CUDA_R_16BF, int(p.a.ld),
                     &zero, p.d, CUDA_R_16BF, int(p.d_ld), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
  }

 private:
  static constexpr size_t kWorkspace = size_t(32) << 20;  // what NVIDIA recommends for Hopper

  static cublasOperation_t as_transpose(Matrix const& matrix) {
    return matrix.order == Order::row_major ? CUBLAS_OP_N : CUBLAS_OP_T;
  }

  Buffer workspace_;
  cublasHandle_t handle_ = nullptr;
};

}  // namespace

std::unique_ptr<DenseProduct> dense_product() { return std::make_unique<Cublas>(); }

}  // namespace sparsedrop::bench
