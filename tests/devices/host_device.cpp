// A device whose memory is the host's: every operation runs on the processor, and one that mixes devices fails as on a GPU.
//
// Tensors of it are ordinary tensors of torch's "PrivateUse1" device, so that autograd, optimizers, modules and torch.export treat
// them as they treat those of any accelerator.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

namespace {

constexpr auto DEVICE = c10::DeviceType::PrivateUse1;

struct HostAllocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    return {memory, memory, &std::free, at::Device(DEVICE, 0)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

HostAllocator allocator;

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static auto generator = at::globalContext().defaultGenerator(at::kCPU);
    return generator;
  }
  at::Device getDeviceFromPtr(void*) const override { return at::Device(DEVICE, 0); }
};

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DEVICE> {  // one device, which is done when a call returns
  c10::Device getDevice() const override { return c10::Device(DEVICE, 0); }
  c10::Device exchangeDevice(c10::Device) const override { return c10::Device(DEVICE, 0); }
  c10::Stream getStream(c10::Device device) const noexcept override { return default_stream(device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return default_stream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  static c10::Stream default_stream(c10::Device) { return c10::Stream(c10::Stream::DEFAULT, c10::Device(DEVICE, 0)); }
};

bool is_there(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == DEVICE; }

at::Tensor as_host(const at::Tensor& tensor) {  // the same memory as a tensor of the processor
  if (!is_there(tensor)) return tensor;
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  return at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
}

at::Tensor from_host(const at::Tensor& made) {  // takes the memory over
  if (!made.defined()) return made;
  auto* owner = new at::Tensor(made);
  at::DataPtr data(made.mutable_data_ptr(), owner, [](void* kept) { delete static_cast<at::Tensor*>(kept); },
                   at::Device(DEVICE, 0));
  size_t bytes = at::detail::computeStorageNbytes(made.sizes(), made.strides(), made.itemsize());
  at::Storage storage(at::Storage::use_byte_size_t(), bytes, std::move(data), &allocator, true);
  auto keys = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  auto there = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, made.dtype());
  there.unsafeGetTensorImpl()->set_sizes_and_strides(made.sizes(), made.strides(), 0);
  return there;
}

at::Tensor view_of(const at::Tensor& base, at::IntArrayRef size, at::IntArrayRef stride, int64_t offset, caffe2::TypeMeta type) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), type);
  made.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return made;
}

at::Tensor view_of(const at::Tensor& base, const at::Tensor& made) {
  auto distance = static_cast<char*>(made.mutable_data_ptr()) - static_cast<char*>(base.storage().mutable_data());
  auto offset = made.numel() ? distance / static_cast<int64_t>(made.itemsize()) : 0;
  return view_of(base, made.sizes(), made.strides(), offset, made.dtype());
}

bool may_mix(const std::string& name) {  // as on a GPU: indices may lie on the host
  static const std::set<std::string> names = {"aten::index", "aten::_copy_from", "aten::_copy_from_and_resize"};
  return names.count(name) > 0;
}

void require_there(const at::Tensor& tensor, const std::string& name) {
  if (!tensor.defined() || is_there(tensor) || tensor.dim() == 0 || may_mix(name)) return;
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ",
              tensor.device(), " and ", at::Device(DEVICE, 0), " (", name, ")");
}

c10::IValue given(const c10::IValue& value, const std::string& name) {
  if (value.isTensor()) {
    require_there(value.toTensor(), name);
    return as_host(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> host;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      require_there(tensor, name);
      host.push_back(as_host(tensor));
    }
    return host;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> host;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      if (tensor) require_there(*tensor, name);
      host.push_back(tensor ? std::optional<at::Tensor>(as_host(*tensor)) : std::nullopt);
    }
    return host;
  }
  if (value.isDevice() && value.toDevice().type() == DEVICE) return at::Device(at::kCPU);
  return value;
}

at::Tensor first_tensor(const std::vector<c10::IValue>& arguments) {
  for (const auto& argument : arguments)
    if (argument.isTensor() && is_there(argument.toTensor())) return argument.toTensor();
  return {};
}

c10::IValue returned(const c10::IValue& value, const c10::Argument& said, const std::vector<c10::IValue>& arguments) {
  auto base = first_tensor(arguments);
  auto wrapped = [&](const at::Tensor& made) {
    if (!made.defined() || is_there(made)) return made;
    if (said.alias_info() != nullptr && base.defined()) return view_of(base, made);
    return from_host(made);
  };
  if (value.isTensor()) return wrapped(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> found;
    for (const at::Tensor& made : value.toTensorVector()) found.push_back(wrapped(made));
    return found;
  }
  return value;
}

void refresh(const at::Tensor& there, const at::Tensor& host) {  // an operation has resized what it was given to write to
  if (there.sizes() == host.sizes()) {
    if (there.mutable_data_ptr() != host.mutable_data_ptr()) as_host(there).copy_(host);
    return;
  }
  auto made = from_host(host);
  there.unsafeGetTensorImpl()->set_storage_keep_dtype(made.storage());
  there.unsafeGetTensorImpl()->set_sizes_and_strides(made.sizes(), made.strides(), 0);
}

bool is_output(const c10::Argument& argument, const c10::IValue& value) {
  return argument.kwarg_only() && argument.alias_info() != nullptr && argument.alias_info()->isWrite() && value.isTensor();
}

void on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  auto count = schema.arguments().size();
  std::vector<c10::IValue> arguments(stack->end() - count, stack->end());
  stack->erase(stack->end() - count, stack->end());
  std::vector<c10::IValue> host;
  for (size_t i = 0; i < count; i++) {
    host.push_back(given(arguments[i], schema.name()));
    // An operation may resize the output that it is given, which memory that is only looked at does not allow.
    if (is_output(schema.arguments()[i], host[i])) host[i] = at::empty({0}, host[i].toTensor().options());
  }
  for (const auto& argument : host) stack->push_back(argument);
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(stack);
  }
  std::vector<c10::IValue> made(stack->end() - schema.returns().size(), stack->end());
  stack->erase(stack->end() - schema.returns().size(), stack->end());
  for (size_t i = 0; i < made.size(); i++) {
    const auto& said = schema.returns()[i];
    c10::IValue result;
    if (said.alias_info() != nullptr && said.alias_info()->isWrite()) {
      for (size_t j = 0; j < count; j++) {
        const auto* alias = schema.arguments()[j].alias_info();
        if (alias != nullptr && *alias == *said.alias_info()) {
          result = arguments[j];
          if (result.isTensor() && is_there(result.toTensor())) refresh(result.toTensor(), host[j].toTensor());
        }
      }
    } else {
      result = returned(made[i], said, arguments);
    }
    stack->push_back(result);
  }
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  as_host(to).copy_(as_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, size, format);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  auto contiguous = at::detail::defaultStrides(size);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride.empty() && !size.empty() ? at::IntArrayRef(contiguous) : stride, offset);
  return self;
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  return view_of(self, size, stride, offset.value_or(self.storage_offset()), self.dtype());
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage storage) {
  int64_t count = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  return set_storage(self, std::move(storage), 0, {count}, {1});
}

at::Tensor sum_of(const at::Tensor& one, const at::Tensor& other, const std::optional<at::Tensor>& first_bias,
                  const std::optional<at::Tensor>& second_bias) {
  auto sum = one + other;
  if (first_bias && first_bias->defined()) sum = sum + *first_bias;
  return second_bias && second_bias->defined() ? sum + *second_bias : sum;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& read, const at::Tensor& recurrent, const at::Tensor& state,
    const std::optional<at::Tensor>& read_bias, const std::optional<at::Tensor>& recurrent_bias) {
  auto gates = sum_of(read, recurrent, read_bias, recurrent_bias).chunk(4, 1);
  auto kept = gates[1].sigmoid() * state + gates[0].sigmoid() * gates[2].tanh();
  return {gates[3].sigmoid() * kept.tanh(), kept, read.detach()};
}

std::tuple<at::Tensor, at::Tensor> gru_cell(
    const at::Tensor& read, const at::Tensor& recurrent, const at::Tensor& state,
    const std::optional<at::Tensor>& read_bias, const std::optional<at::Tensor>& recurrent_bias) {
  auto own = (read_bias && read_bias->defined() ? read + *read_bias : read).chunk(3, 1);
  auto past = (recurrent_bias && recurrent_bias->defined() ? recurrent + *recurrent_bias : recurrent).chunk(3, 1);
  auto reset = (own[0] + past[0]).sigmoid(), update = (own[1] + past[1]).sigmoid();
  auto fresh = (own[2] + reset * past[2]).tanh();
  return {(state - fresh) * update + fresh, read.detach()};
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  require_there(input, "aten::convolution");
  require_there(weight, "aten::convolution");
  if (bias) require_there(*bias, "aten::convolution");
  auto host_bias = bias && bias->defined() ? std::optional<at::Tensor>(as_host(*bias)) : std::nullopt;
  return from_host(at::convolution(as_host(input), as_host(weight), host_bias, stride, padding, dilation, transposed,
                                   output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  for (const auto& tensor : {gradient, input, weight}) require_there(tensor, "aten::convolution_backward");
  std::vector<int64_t> bias_sizes = {gradient.size(1)};
  auto [of_input, of_weight, of_bias] =
      at::convolution_backward(as_host(gradient), as_host(input), as_host(weight), at::OptionalIntArrayRef(bias_sizes),
                               stride, padding, dilation, transposed, output_padding, groups, mask);
  return {from_host(of_input), from_host(of_weight), from_host(of_bias)};
}

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  c10::SetAllocator(DEVICE, &allocator);
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("as_strided", &as_strided);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) {  // which only fused kernels of accelerators have
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_gru_cell", &gru_cell);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_host>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}
