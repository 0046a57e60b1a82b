// A device of host memory, for torch: it computes by the CPU's kernels, but refuses what a real one would refuse, tensors
// that lie elsewhere and, as Apple's GPUs do, float64. So a tensor left on the wrong device is found without a GPU.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

namespace {

using at::IntArrayRef;
using at::Tensor;
using std::optional;

constexpr auto kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kType, 0);

// -- memory -----------------------------------------------------------------------------------------------------------

std::mutex guard;
std::set<const void*> pinned;

void* take(size_t bytes) {
  void* memory = nullptr;
  TORCH_CHECK(posix_memalign(&memory, 64, bytes ? bytes : 64) == 0, "out of memory");
  return memory;
}

void let_go(void* memory) {
  {
    std::lock_guard<std::mutex> held(guard);
    pinned.erase(memory);
  }
  std::free(memory);
}

struct Memory final : c10::Allocator {
  explicit Memory(bool pin) : pin(pin) {}
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = take(bytes);
    if (pin) {
      std::lock_guard<std::mutex> held(guard);
      pinned.insert(memory);
    }
    return {memory, memory, &let_go, pin ? c10::Device(c10::kCPU) : kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &let_go; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool pin;
};

Memory on_device(false), pinned_host(true);
REGISTER_ALLOCATOR(kType, &on_device);

// -- what torch asks of any device ------------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kType;
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_host; }
  bool isPinnedPtr(const void* memory) const override {
    std::lock_guard<std::mutex> held(guard);
    return pinned.count(memory) > 0;
  }
};
const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

// -- tensors ----------------------------------------------------------------------------------------------------------

at::ScalarType allowed(optional<at::ScalarType> dtype) {
  const auto type = c10::dtype_or_default(dtype);
  TORCH_CHECK(type != at::kDouble, "the test device has no float64");
  return type;
}

Tensor empty(IntArrayRef size, optional<at::ScalarType> dtype, optional<at::Layout>, optional<at::Device>,
             optional<bool>, optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &on_device, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   allowed(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<at::ScalarType> dtype, optional<at::Layout>,
                     optional<at::Device>, optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &on_device,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), allowed(dtype));
}

// The same memory as a tensor of the CPU.
Tensor host(const Tensor& tensor) {
  if (!tensor.is_privateuseone()) return tensor;
  c10::Storage storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
                       c10::DataPtr(tensor.storage().mutable_data(), c10::Device(c10::kCPU)), nullptr, false);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                      tensor.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return out;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  host(to).copy_(host(from));
  return to;
}

const Tensor& resize(const Tensor& self, c10::SymIntArrayRef symbolic, optional<at::MemoryFormat>) {
  const auto size = C10_AS_INTARRAYREF_SLOW(symbolic);
  const size_t bytes = (c10::multiply_integers(size) + self.storage_offset()) * self.itemsize();
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < bytes) {
    auto fresh = on_device.allocate(bytes);
    std::memcpy(fresh.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(fresh));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

Tensor copy_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

Tensor strided(const Tensor& self, IntArrayRef size, IntArrayRef stride, optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

Tensor alias(const Tensor& self, IntArrayRef size, IntArrayRef stride) {
  return strided(self, size, stride, self.storage_offset());
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor unfold(const Tensor& self, int64_t axis, int64_t size, int64_t step) {
  auto sizes = self.sizes().vec(), strides = self.strides().vec();
  axis = at::maybe_wrap_dim(axis, self.dim(), true);
  sizes.push_back(size);
  strides.push_back(self.dim() ? self.stride(axis) : 1);
  if (self.dim()) {
    sizes[axis] = (self.size(axis) - size) / step + 1;
    strides[axis] *= step;
  }
  return strided(self, sizes, strides, self.storage_offset());
}

Tensor& set_storage(Tensor& self, at::Storage from, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, from, offset, size, stride);
}

at::Scalar item(const Tensor& self) { return host(self).item(); }

// -- computing --------------------------------------------------------------------------------------------------------

void refuse(const Tensor& tensor, const char* name) {
  // numbers may come from the CPU, arrays may not
  TORCH_CHECK(!tensor.defined() || !tensor.is_cpu() || tensor.dim() == 0, name, " was given a CPU tensor of shape ",
              tensor.sizes(), " beside tensors of the test device");
}

// CUDA's fused and foreach kernels walk through the memory of all lists alike. The CPU's do so unasked.
void refuse_unlike(const c10::OperatorHandle& op, const torch::jit::Stack* stack, const char* name) {
  std::vector<Tensor> first;
  for (const auto& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (!argument.isTensorList()) continue;
    const auto list = argument.toTensorVector();
    if (list.empty() || (list[0].dim() == 0 && !first.empty())) continue;  // none, or counts
    if (first.empty()) first = list;
    TORCH_CHECK(list.size() == first.size(), name, " was given lists of different lengths");
    for (size_t k = 0; k < list.size(); k++)
      TORCH_CHECK(list[k].sizes() == first[k].sizes() && list[k].strides() == first[k].strides() &&
                      list[k].dtype() == first[k].dtype() && list[k].device() == first[k].device(),
                  name, ": params, grads, exp_avgs, and exp_avg_sqs must have same dtype, device, and layout");
  }
}

void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto name = op.schema().operator_name().name;
  if (name.find("_fused_") != std::string::npos || name.find("_foreach_") != std::string::npos)
    refuse_unlike(op, stack, name.c_str());
  const bool indexed = name == "aten::index" || name == "aten::_index_put_impl_" || name == "aten::index_put_";
  for (const auto& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (argument.isTensor()) refuse(argument.toTensor(), name.c_str());
    if (argument.isTensorList() && !indexed)
      for (const Tensor& tensor : argument.toTensorVector()) refuse(tensor, name.c_str());
  }
  at::native::cpu_fallback(op, stack);
}

Tensor convolution(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef more, int64_t groups) {
  optional<Tensor> own;
  for (const Tensor& tensor : {input, weight, bias.value_or(Tensor())}) refuse(tensor, "convolution");
  if (bias && bias->defined()) own = host(*bias);
  return at::convolution(host(input), host(weight), own, stride, padding, dilation, transposed, more, groups)
      .to(kDevice);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& gradient, const Tensor& input,
                                                        const Tensor& weight, IntArrayRef stride, IntArrayRef padding,
                                                        IntArrayRef dilation, bool transposed, IntArrayRef more,
                                                        int64_t groups, std::array<bool, 3> wanted) {
  for (const Tensor& tensor : {gradient, input, weight}) refuse(tensor, "convolution_backward");
  const std::vector<int64_t> bias{weight.size(transposed ? 1 : 0)};
  auto [one, two, three] =
      at::convolution_backward(host(gradient), host(input), host(weight), at::OptionalIntArrayRef(IntArrayRef(bias)),
                               stride, padding, dilation, transposed, more, groups, wanted);
  const auto back = [](const Tensor& tensor) { return tensor.defined() ? tensor.to(kDevice) : tensor; };
  return {back(one), back(two), back(three)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_and_resize);
  m.impl("resize_", &resize);
  m.impl("as_strided", &strided);
  m.impl("_reshape_alias", &alias);
  m.impl("view", &view);
  m.impl("unfold", &unfold);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("_local_scalar_dense", &item);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

}  // namespace
